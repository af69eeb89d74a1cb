"""Files that survive a kill, a full disk and a second writer; altered ones are named instead of used."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

from mirai import states
from mirai.errors import UserError
from mirai.states import (
    Lock,
    atomic_file,
    build_once,
    check_payload,
    is_published,
    payload_entry,
    publish,
    read_json,
    sealed,
    write_json,
    write_text,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def fail(code: int) -> Any:
    """A function that fails as the operating system would."""

    def failing(*_: Any, **__: Any) -> NoReturn:
        raise OSError(code, os.strerror(code))

    return failing


def overwrite(path: Path, *, then: BaseException | None = None) -> None:
    """Write atomically, failing halfway if told."""
    with atomic_file(path) as file:
        file.write(b"half")
        if then is not None:
            raise then


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A file with earlier content."""
    path = tmp_path / "file.txt"
    path.write_text("old")
    return path


# Atomic writes


def test_a_file_is_written_with_its_folders_and_nothing_beside_it(tmp_path: Path) -> None:
    write_text(tmp_path / "a/b/file.txt", "new")
    assert (tmp_path / "a/b/file.txt").read_text() == "new"
    assert names(tmp_path / "a/b") == ["file.txt"]


def test_nobody_sees_a_file_before_it_is_whole(old: Path) -> None:
    with atomic_file(old) as file:
        file.write(b"half")
        file.flush()
        assert old.read_text() == "old"
    assert old.read_text() == "half"


@pytest.mark.parametrize("reason", [RuntimeError("a bug"), KeyboardInterrupt()])
def test_whatever_interrupts_a_write_leaves_the_old_file_and_no_other(old: Path, reason: BaseException) -> None:
    with pytest.raises(type(reason)):
        overwrite(old, then=reason)
    assert old.read_text() == "old"
    assert names(old.parent) == ["file.txt"]


def test_a_kill_in_the_middle_of_a_write_leaves_the_old_file(old: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from mirai.states import atomic_file\n"
        "with atomic_file(Path(sys.argv[1])) as file:\n"
        "    file.write(b'half'); file.flush(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(old)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert old.read_text() == "old"
    with Lock(old.parent / "lock"):
        assert names(old.parent) == ["file.txt", "lock"], "the next writer clears what the killed one left"


def test_data_are_on_the_disk_before_they_get_their_name(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(os.fstat(file).st_size))
    monkeypatch.setattr(os, "replace", fail(errno.EIO))
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        write_text(old, "new")
    assert synced == [len("new")]


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EDQUOT, "the disk quota is used up"),
        (errno.EROFS, "the file system is read-only"),
        (errno.EACCES, "this folder is not writable for you"),
    ],
)
@pytest.mark.parametrize("moment", ["opening", "writing", "syncing", "renaming"])
def test_a_disk_that_takes_no_more_is_told_and_the_old_file_stays(
    moment: str, code: int, reason: str, old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        if moment == "opening":
            patch.setattr(Path, "open", fail(code))
        if moment == "syncing":
            patch.setattr(os, "fsync", fail(code))
        if moment == "renaming":
            patch.setattr(os, "replace", fail(code))
        with pytest.raises(UserError) as caught:
            overwrite(old, then=OSError(code, os.strerror(code)) if moment == "writing" else None)
    assert str(caught.value) == f"cannot write {old}: {reason}; what was there before is unchanged"
    assert old.read_text() == "old"
    assert names(old.parent) == ["file.txt"]


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "mkdir", fail(errno.EACCES))
    with pytest.raises(UserError, match="this folder is not writable for you"):
        write_text(tmp_path / "new/file.txt", "new")


def test_an_error_of_another_kind_is_no_users_mistake(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", fail(errno.EIO))
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        write_text(old, "new")
    assert old.read_text() == "old"


def test_json_is_written_for_readers_and_numbers_that_json_lacks_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"b": 1, "a": [2.5]})
    assert path.read_text() == '{\n "a": [\n  2.5\n ],\n "b": 1\n}\n'
    assert read_json(path) == {"a": [2.5], "b": 1}
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(path, float("nan"))
    assert read_json(path) == {"a": [2.5], "b": 1}


@pytest.mark.parametrize("content", [b"", b'{"a": 1', b"\xff\xfe"])
def test_damaged_json_is_told_with_what_to_do(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_json(path)
    assert str(caught.value) == f"{path} is damaged (no valid JSON); delete it and run the same command again"


def test_missing_json_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.json is missing$"):
        read_json(tmp_path / "a.json")


# Payloads and manifests


@pytest.fixture
def payload(tmp_path: Path) -> Path:
    path = tmp_path / "payload.bin"
    path.write_bytes(b"0123456789")
    return path


def test_a_payload_is_described_by_name_size_and_checksum(payload: Path) -> None:
    assert payload_entry(payload) == {
        "file": "payload.bin",
        "bytes": 10,
        "sha256": "84d89877f0d4041efb6bf91a16f0248f2fd573e6af05c19f96bedb9f882f7882",
    }
    assert check_payload(payload.parent, payload_entry(payload)) == payload


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"01234", "is truncated: 5 bytes, its manifest says 10"),
        (b"", "is truncated: 0 bytes, its manifest says 10"),
        (b"0123456780", "was altered: its SHA-256 is not the one in its manifest"),
        (None, "is missing although its manifest lists it"),
    ],
)
def test_a_damaged_payload_is_named_with_what_to_do(payload: Path, content: bytes | None, sentence: str) -> None:
    entry = payload_entry(payload)
    payload.unlink()
    if content is not None:
        payload.write_bytes(content)
    with pytest.raises(UserError) as caught:
        check_payload(payload.parent, entry)
    assert str(caught.value) == f"{payload} {sentence}; delete {payload.parent} and run the same command again"


def test_a_shallow_check_looks_at_the_size_only(payload: Path) -> None:
    entry = payload_entry(payload)
    payload.write_bytes(b"0123456780")
    assert check_payload(payload.parent, entry, deep=False) == payload
    payload.write_bytes(b"01234")
    with pytest.raises(UserError, match="truncated"):
        check_payload(payload.parent, entry, deep=False)


def test_a_result_is_published_by_its_manifest_alone(payload: Path) -> None:
    manifest = payload.parent / "result.json"
    assert not is_published(manifest)
    publish(manifest, {"epoch": 3}, {"data": payload})
    assert is_published(manifest)
    assert read_json(manifest) == {"epoch": 3, "payloads": {"data": payload_entry(payload)}}


@pytest.mark.parametrize("damage", ["truncate", "delete", "manifest"])
def test_a_result_with_a_damaged_file_is_not_published(payload: Path, damage: str) -> None:
    manifest = payload.parent / "result.json"
    publish(manifest, {}, {"data": payload})
    if damage == "truncate":
        payload.write_bytes(b"01234")
    if damage == "delete":
        payload.unlink()
    if damage == "manifest":
        manifest.write_text(manifest.read_text()[:20])
    assert not is_published(manifest)


def test_a_manifest_whose_payload_is_not_there_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        publish(tmp_path / "result.json", {}, {"data": tmp_path / "payload.bin"})
    assert names(tmp_path) == []


def test_tensors_come_back_as_they_were_and_altered_ones_are_refused(tmp_path: Path) -> None:
    import torch

    tensors = {"a": torch.arange(6.0).view(2, 3).T, "b": torch.tensor([1, 2], dtype=torch.int32)}
    entry = states.save_tensors(tmp_path / "x.safetensors", tensors)
    assert entry == payload_entry(tmp_path / "x.safetensors")
    loaded = states.load_tensors(tmp_path, entry)
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)
    assert all(loaded[name].dtype == tensors[name].dtype for name in tensors)
    content = bytearray((tmp_path / "x.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=r"x\.safetensors was altered"):
        states.load_tensors(tmp_path, entry)


# One writer

HOLD = (
    "import sys, time; from pathlib import Path; from mirai.states import Lock\n"
    "with Lock(Path(sys.argv[1])):\n"
    "    print('locked', flush=True); sys.stdin.read()"
)


@contextlib.contextmanager
def other_process(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock until its input ends."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        try:
            yield process
        finally:
            process.kill()


def test_a_second_process_is_refused_with_the_owner_and_let_in_after_kill_9(tmp_path: Path) -> None:
    path = tmp_path / "state/lock"
    with other_process(path) as process:
        with pytest.raises(UserError) as caught, Lock(path):
            pass
        assert re.fullmatch(
            f"{path.parent} is being written by process {process.pid} on .+ since [-0-9: ]+; "
            "wait for it or stop it, then run the same command again",
            str(caught.value),
        )
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        with Lock(path):
            assert f"process {os.getpid()} " in path.read_text()
            assert str(process.pid) not in path.read_text().split()


def test_who_waits_gets_the_lock_when_its_owner_is_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "lock"
    with other_process(path) as process:
        assert process.stdin is not None
        threading.Timer(0.5, process.stdin.close).start()
        with Lock(path, waits=True):
            assert process.wait() == 0
            assert f"process {os.getpid()} " in path.read_text()
    assert f"{tmp_path} is being written by process {process.pid}" in capsys.readouterr().err


def test_a_lock_is_free_again_once_its_owner_is_done(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with pytest.raises(RuntimeError), Lock(path):
        raise RuntimeError("the stage failed")
    assert path.read_text() == ""
    with Lock(path):
        pass


def test_one_process_cannot_write_twice_at_once_either(tmp_path: Path) -> None:
    with Lock(tmp_path / "lock"), pytest.raises(UserError, match="is being written by"), Lock(tmp_path / "lock"):
        pass


def test_locks_of_different_folders_do_not_meet(tmp_path: Path) -> None:
    with Lock(tmp_path / "a/lock"), Lock(tmp_path / "b/lock"):
        pass


def test_a_folder_without_room_for_a_lock_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "open", fail(errno.EROFS))
    with pytest.raises(UserError, match=rf"cannot write .*/lock: {os.strerror(errno.EROFS)}"), Lock(tmp_path / "lock"):
        pass


# Building


class Build:
    """A stage that writes one payload and publishes it, counted."""

    def __init__(self, folder: Path) -> None:
        self.manifest = folder / "result.json"
        self.times = 0

    def __call__(self) -> None:
        self.times += 1
        write_text(self.manifest.with_name("payload.bin"), "content")
        publish(self.manifest, {"number": 7}, {"data": self.manifest.with_name("payload.bin")})


@pytest.fixture
def build(tmp_path: Path) -> Build:
    return Build(tmp_path / "stage")


def test_finished_work_is_not_done_twice_but_gets_a_new_time_stamp(build: Build) -> None:
    assert build_once(build.manifest, build) is True
    content = build.manifest.read_bytes()
    os.utime(build.manifest, (0, 0))
    assert build_once(build.manifest, build) is False
    assert build.times == 1
    assert build.manifest.read_bytes() == content
    assert build.manifest.stat().st_mtime > 0


def test_a_manifest_that_a_workflow_engine_deleted_comes_back_without_work(build: Build) -> None:
    build_once(build.manifest, build)
    content = build.manifest.read_bytes()
    build.manifest.unlink()
    assert build_once(build.manifest, build) is False
    assert build.manifest.read_bytes() == content


def test_damaged_work_is_done_again(build: Build) -> None:
    build_once(build.manifest, build)
    build.manifest.with_name("payload.bin").write_text("cont")
    assert build_once(build.manifest, build) is True
    assert is_published(build.manifest)


def test_a_stage_that_fails_publishes_nothing_and_frees_its_folder(build: Build) -> None:
    def failing() -> None:
        write_text(build.manifest.with_name("payload.bin"), "half")
        raise RuntimeError("the stage failed")

    with pytest.raises(RuntimeError):
        build_once(build.manifest, failing)
    assert not is_published(build.manifest)
    assert not is_published(sealed(build.manifest))
    assert build_once(build.manifest, build) is True


def test_nothing_is_built_while_another_process_builds(build: Build) -> None:
    with other_process(build.manifest.parent / "lock"), pytest.raises(UserError, match="is being written by process"):
        build_once(build.manifest, build)
    assert build.times == 0


def test_a_manifest_is_valid_json_for_other_tools(build: Build) -> None:
    build_once(build.manifest, build)
    assert json.loads(build.manifest.read_text())["number"] == 7
