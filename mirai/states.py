"""Files that survive a kill: atomic writes, checksums, locks, and the manifest that publishes a finished stage.

A stage writes its payloads (large, checksummed) first and its manifest (small JSON) last. Whoever reads goes through
the manifest, so a half-written stage is invisible and an altered payload is named instead of used.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from mirai.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor


# What the operating system says when a user's disk or folder takes no file.
DISK_TROUBLE = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the file system is read-only",
}
UNWRITABLE = DISK_TROUBLE | {
    errno.EACCES: "this folder is not writable for you",
    errno.EPERM: "this folder is not writable for you",
    errno.ENOTDIR: "a file is where its folder should be",
    errno.EEXIST: "a file is where its folder should be",
}


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A file that appears under `path` whole or not at all: temporary in the same folder, fsync, rename."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")
        try:
            with temporary.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        raise UserError(
            f"cannot write {path}: {UNWRITABLE[error.errno]}; what was there before is unchanged"
        ) from error


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_file(path) as file:
        file.write(text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically, indented for a human reader."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file; UserError if it is missing or damaged."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path} is missing") from None
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise UserError(f"{path} is damaged (no valid JSON); delete it and run the same command again") from None


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def payload_entry(path: Path) -> dict[str, Any]:
    """What a manifest says of a payload: name, bytes, SHA-256."""
    return {"file": path.name, "bytes": path.stat().st_size, "sha256": sha256(path)}


def check_payload(folder: Path, entry: Mapping[str, Any], *, deep: bool = True) -> Path:
    """Path of a payload after comparing it with its manifest entry; UserError names a missing, truncated or altered file.

    `deep=False` compares the size only: for files read through a memory map, whose bytes are checked when written.
    """
    path = folder / entry["file"]
    mend = f"delete {folder} and run the same command again"
    if not path.exists():
        raise UserError(f"{path} is missing although its manifest lists it; {mend}")
    if path.stat().st_size != entry["bytes"]:
        raise UserError(f"{path} is truncated: {path.stat().st_size} bytes, its manifest says {entry['bytes']}; {mend}")
    if deep and sha256(path) != entry["sha256"]:
        raise UserError(f"{path} was altered: its SHA-256 is not the one in its manifest; {mend}")
    return path


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Write tensors as safetensors, atomically -> the manifest entry of the file."""
    from safetensors.torch import save  # imports torch

    data = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    with atomic_file(path) as file:
        file.write(data)
    return {"file": path.name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def load_tensors(folder: Path, entry: Mapping[str, Any]) -> dict[str, Tensor]:
    """Read a safetensors payload listed in a manifest, after checking it."""
    from safetensors.torch import load_file

    return load_file(check_payload(folder, entry))


def publish(
    manifest: Path, content: Mapping[str, Any], payloads: Mapping[str, Path | Mapping[str, Any]] | None = None
) -> None:
    """Write the manifest that makes a stage's result visible. Payloads must lie in the manifest's folder."""
    entries = {
        name: payload_entry(item) if isinstance(item, Path) else dict(item) for name, item in (payloads or {}).items()
    }
    write_json(sealed(manifest), {**content, "payloads": entries})
    unseal(manifest)


def sealed(manifest: Path) -> Path:
    """The copy of a manifest that workflow engines do not know: they delete declared outputs before a rerun."""
    return manifest.with_name(f".{manifest.name}")


def unseal(manifest: Path) -> bool:
    """Show a sealed manifest under its public name, with a new time stamp -> whether there was one with good payloads."""
    if not is_published(sealed(manifest)):
        return False
    write_text(manifest, sealed(manifest).read_text())
    return True


def is_published(manifest: Path) -> bool:
    """Whether a stage's manifest and all payloads it lists are there with their sizes (contents are checked on reading)."""
    if not manifest.exists():
        return False
    try:
        for entry in read_json(manifest).get("payloads", {}).values():
            check_payload(manifest.parent, entry, deep=False)
    except UserError:
        return False
    return True


class Lock:
    """One writer per result: an flock on `path`, with its owner written inside for the message to the second one.

    The kernel drops the lock when its process dies, kill -9 included; the owner line is then stale and overwritten,
    and temporary files that the dead writer left in the folder are removed. The second one is refused with a UserError,
    or, if it `waits`, gets the lock when the first is done with it.
    """

    def __init__(self, path: Path, *, waits: bool = False) -> None:
        self.path, self.waits = path, waits

    def __enter__(self) -> Lock:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a+")
        except OSError as error:
            raise UserError(f"cannot write {self.path}: {error.strerror}") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.seek(0)
            taken = f"{self.path.parent} is being written by {self._file.read().strip() or 'another process'}"
            if not self.waits:
                self._file.close()
                raise UserError(f"{taken}; wait for it or stop it, then run the same command again") from None
            print(f"{taken}: waiting for it", file=sys.stderr, flush=True)
            fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            self._file.truncate(0)
            self._file.write(
                f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}\n"
            )
            self._file.flush()
        except OSError as error:
            raise UserError(f"cannot write {self.path}: {error.strerror}") from error
        for leftover in self.path.parent.glob(f".*.{socket.gethostname()}.*.tmp"):
            if not Path(f"/proc/{leftover.name.split('.')[-2]}").exists():  # its writer is dead
                leftover.unlink(missing_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._file.truncate(0)
        self._file.close()


def build_once(manifest: Path, build: Callable[[], None], *, waits: bool = False) -> bool:
    """Run `build` under the folder's `Lock` unless its result is there -> whether anything was built.

    A rerun over finished work only publishes it again: what has its key is never made twice.
    """
    with Lock(manifest.parent / "lock", waits=waits):
        if unseal(manifest):
            return False
        build()
        return True
