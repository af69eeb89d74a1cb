"""`mirai download` against a server of our own, which cuts connections, forgets ranges and serves wrong files."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from mirai import downloads
from mirai.cli import main
from mirai.downloads import download, print_files
from mirai.errors import UserError
from mirai.experiments import paths
from mirai.experiments.public_files import PublicFile, PublicFiles, check_released, public_files, shown_bytes
from mirai.experiments.scale import load_scale
from mirai.experiments.yaml_input import validate
from mirai.states import Lock

ROOT = Path(__file__).parents[1]
CONTENT = np.random.default_rng(0).bytes(3_000_001)  # over two chunks
OTHER = np.random.default_rng(1).bytes(3_000_001)


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@dataclass
class Answer:
    """How one request is answered; all that is not said is as a good server does it."""

    status: int = 200
    cut_after: int | None = None  # bytes of the body, then the connection closes
    refuse: bool = False  # close without an answer
    ranges: bool = True
    if_range: bool = True  # False: a part of whatever version there is
    headers: dict[str, str | None] = field(default_factory=dict)  # None removes one
    redirect: str | None = None
    hold: threading.Event | None = None  # keep the connection open until then


@dataclass
class Server:
    """One file, the answers to come, and the requests that came."""

    port: int
    content: bytes = CONTENT
    etag: str | None = '"one"'
    answers: list[Answer] = field(default_factory=list)
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}/model.bin"

    @property
    def ranges(self) -> list[str | None]:
        return [headers.get("Range") for _, headers in self.requests]


class Handler(BaseHTTPRequestHandler):
    server_version = "Test"

    def do_GET(self) -> None:
        state: Server = self.server.state  # type: ignore[attr-defined]
        state.requests.append((self.path, dict(self.headers)))
        answer = state.answers.pop(0) if state.answers else Answer()
        if answer.refuse:
            self.close_connection = True
            return
        body, headers = state.content, {"Content-Type": "application/octet-stream", "ETag": state.etag}
        status = answer.status
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if status >= 400:
            body = b"sorry"
        elif answer.redirect:
            status, body = 302, b""
            headers["Location"] = answer.redirect
        elif (
            asked and answer.ranges and (not answer.if_range or self.headers.get("If-Range", state.etag) == state.etag)
        ):
            begin = int(asked[1])
            if begin >= len(body):
                status, headers["Content-Range"], body = 416, f"bytes */{len(body)}", b""
            else:
                status = 206
                headers["Content-Range"] = f"bytes {begin}-{len(body) - 1}/{len(body)}"
                body = body[begin:]
        headers["Content-Length"] = str(len(body))
        self.send_response(status)
        for name, value in (headers | answer.headers).items():
            if value is not None:
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body[: answer.cut_after])
        if answer.hold:
            answer.hold.wait(30)

    def log_message(self, *_: Any) -> None:
        pass


class Http(ThreadingHTTPServer):
    def handle_error(self, *_: Any) -> None:
        """A client that leaves is no error here."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(downloads, "PAUSES", (0, 0))
    with Http(("127.0.0.1", 0), Handler) as http:
        http.state = Server(http.server_port)  # type: ignore[attr-defined]
        threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
        yield http.state  # type: ignore[attr-defined]
        http.shutdown()


ListFiles = Callable[..., None]


@pytest.fixture
def list_files(project: Path, server: Server) -> ListFiles:
    """Write config/downloads.yaml with the server's file as `model`, and others as given."""

    def write(others: dict[str, dict[str, Any]] | None = None, **model: Any) -> None:
        entry = {"file": "model.bin", "address": server.address, "sha256": digest(CONTENT), "licence": "MIT"}
        files = {"model": {**entry, "needed_by": "a test", **model}}
        for name, other in (others or {}).items():
            files[name] = {**entry, "file": f"{name}.bin", "needed_by": "a test", **other}
        (project / "config").mkdir(exist_ok=True)
        (project / "config/downloads.yaml").write_text(yaml.safe_dump({"files": files}, sort_keys=False))

    return write


TARGET = Path("weights/model.bin")
PART = Path("weights/model.bin.part")


def refused(names: tuple[str, ...] = ("model",), **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        download(names, **options)
    return str(caught.value)


def left() -> set[str]:
    """What is in weights/, without lock files."""
    return {path.name for path in Path("weights").iterdir() if not path.name.endswith(".lock")}


# Fetching


def test_a_file_is_fetched_checked_and_named_last(server: Server, list_files: ListFiles, capsys: Any) -> None:
    list_files(bytes=len(CONTENT))
    download(["model"])
    assert TARGET.read_bytes() == CONTENT
    assert left() == {"model.bin"}
    assert capsys.readouterr().out == (
        "model: fetched to weights/model.bin, its SHA-256 is the published one (licence: MIT)\n"
    )


def test_a_file_that_is_there_is_checked_and_not_fetched_again(
    server: Server, list_files: ListFiles, capsys: Any
) -> None:
    list_files()
    TARGET.parent.mkdir()
    TARGET.write_bytes(CONTENT)
    download(["model", "model"])
    assert server.requests == []
    assert capsys.readouterr().out == "model: weights/model.bin is there, its SHA-256 is the published one\n"


def test_a_cut_connection_is_resumed_where_it_was_cut(server: Server, list_files: ListFiles) -> None:
    list_files()
    server.answers = [Answer(cut_after=1_234_567), Answer(cut_after=700_000)]
    download(["model"])
    assert TARGET.read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=1234567-", "bytes=1934567-"]
    assert [headers.get("If-Range") for _, headers in server.requests] == [None, '"one"', '"one"']


def test_arriving_bytes_renew_the_patience(server: Server, list_files: ListFiles) -> None:
    list_files()
    server.answers = [Answer(cut_after=500_000) for _ in range(5)]  # more than PAUSES
    download(["model"])
    assert TARGET.read_bytes() == CONTENT


def test_an_interrupted_download_goes_on_in_the_next_command(server: Server, list_files: ListFiles) -> None:
    list_files()
    server.answers = [Answer(cut_after=1_000_000), *[Answer(refuse=True)] * 3]
    assert "the connection breaks (RemoteDisconnected), also after 2 further attempts" in refused()
    assert PART.read_bytes() == CONTENT[:1_000_000]
    download(["model"])
    assert TARGET.read_bytes() == CONTENT
    assert server.ranges[-1] == "bytes=1000000-"


def test_a_server_without_ranges_starts_anew(server: Server, list_files: ListFiles) -> None:
    list_files()
    server.answers = [Answer(cut_after=1_000_000), Answer(ranges=False)]
    download(["model"])
    assert TARGET.read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=1000000-"]


@pytest.mark.parametrize("if_range", [True, False])
def test_a_part_of_another_version_is_not_continued(if_range: bool, server: Server, list_files: ListFiles) -> None:
    list_files(sha256=None)
    server.content = OTHER
    server.answers = [Answer(cut_after=1_000_000), *[Answer(status=503)] * 3]
    refused()
    server.content, server.etag = CONTENT, '"two"'
    server.answers = [Answer(if_range=if_range)]
    download(["model"])
    assert TARGET.read_bytes() == CONTENT


def test_a_part_whose_version_no_server_tells_is_not_continued_without_a_published_sum(
    server: Server, list_files: ListFiles
) -> None:
    list_files(sha256=None)
    server.content, server.etag = OTHER, None
    server.answers = [Answer(cut_after=1_000_000)]
    server.content = CONTENT
    download(["model"])
    assert server.ranges == [None, None]


def test_a_part_of_another_address_is_not_continued(server: Server, list_files: ListFiles) -> None:
    list_files()
    server.answers = [Answer(cut_after=1_000_000), *[Answer(status=503)] * 3]
    refused()
    list_files(address=f"{server.address}?elsewhere")
    download(["model"])
    assert server.ranges[-1] is None
    assert TARGET.read_bytes() == CONTENT


@pytest.mark.parametrize("known", [True, False])
def test_a_part_that_only_lacks_its_name_needs_no_second_transfer(
    known: bool, server: Server, list_files: ListFiles
) -> None:
    list_files(**({"bytes": len(CONTENT)} if known else {}))
    server.answers = [Answer(cut_after=1_000_000), *[Answer(status=503)] * 3]
    refused()
    PART.write_bytes(CONTENT)
    download(["model"])
    assert TARGET.read_bytes() == CONTENT
    assert server.ranges[4:] == ([] if known else [f"bytes={len(CONTENT)}-"])


@pytest.mark.parametrize("answer", [Answer(status=500), Answer(status=429), Answer(refuse=True)])
def test_passing_trouble_of_a_server_is_waited_out(answer: Answer, server: Server, list_files: ListFiles) -> None:
    list_files()
    server.answers = [answer, answer]
    download(["model"])
    assert TARGET.read_bytes() == CONTENT


def test_lasting_trouble_is_told_after_all_attempts(server: Server, list_files: ListFiles) -> None:
    list_files()
    server.answers = [Answer(status=500)] * 4
    assert refused() == (
        f"model: {server.address}: the server answers 500 Internal Server Error, also after 2 further attempts; the same "
        "command goes on from what has arrived"
    )
    assert len(server.requests) == 3


@pytest.mark.parametrize(("status", "reason"), [(404, "Not Found"), (401, "Unauthorized")])
def test_an_answer_that_will_not_change_is_told_at_once(
    status: int, reason: str, server: Server, list_files: ListFiles
) -> None:
    list_files()
    server.answers = [Answer(status=status)]
    assert refused() == f"model: {server.address} answers {status} {reason}"
    assert len(server.requests) == 1


def test_redirections_are_followed_with_the_range(server: Server, list_files: ListFiles) -> None:
    list_files()
    there = f"http://127.0.0.1:{server.port}/cache/model.bin"
    server.answers = [Answer(redirect=there), Answer(cut_after=1_000_000), Answer(redirect=there)]
    download(["model"])
    assert TARGET.read_bytes() == CONTENT
    assert server.requests[-1][0] == "/cache/model.bin"
    assert server.ranges[-1] == "bytes=1000000-"


def test_proxies_of_the_environment_are_used(
    server: Server, list_files: ListFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    list_files(address="http://localhost:9/model.bin")  # nobody listens there
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{server.port}")
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("NO_PROXY", "")
    download(["model"])
    assert [path for path, _ in server.requests] == ["http://localhost:9/model.bin"]
    assert TARGET.read_bytes() == CONTENT


# Wrong files


def test_a_wrong_file_is_deleted_and_both_sums_are_told(server: Server, list_files: ListFiles) -> None:
    list_files()
    server.content = OTHER
    assert refused() == (
        f"model: what {server.address} sends is not model.bin: its SHA-256 is {digest(OTHER)}, config/downloads.yaml says "
        f"{digest(CONTENT)}; it was deleted again"
    )
    assert left() == set()


@pytest.mark.parametrize(
    ("size", "stated"),
    [({"bytes": len(CONTENT) + 1}, f"{len(CONTENT) + 1} bytes"), ({"gigabytes": 0.0031}, "about 3.1 MB")],
)
def test_a_wrong_length_is_refused_before_it_arrives(
    size: dict[str, float], stated: str, server: Server, list_files: ListFiles
) -> None:
    list_files(**size)
    assert refused() == (
        f"model: {server.address} has {len(CONTENT)} bytes instead of {stated}: it is another file by now"
    )
    assert left() == set()


def test_a_length_that_agrees_with_a_rounded_size_is_taken(server: Server, list_files: ListFiles) -> None:
    list_files(gigabytes=0.00301)
    download(["model"])
    assert TARGET.read_bytes() == CONTENT


def test_a_web_page_is_not_taken_for_a_file(server: Server, list_files: ListFiles) -> None:
    list_files(sha256=None)
    server.answers = [Answer(headers={"Content-Type": "text/html; charset=utf-8"})]
    assert "answers with a web page instead of the file" in refused()
    assert left() == set()


def test_an_unknown_length_passes_only_with_a_published_sum(server: Server, list_files: ListFiles) -> None:
    endless = Answer(headers={"Content-Length": None})
    list_files(sha256=None)
    server.answers = [endless]
    assert "does not say its length" in refused()
    server.content = b""
    assert "does not say its length" in refused()
    server.content = CONTENT
    list_files(bytes=len(CONTENT))
    server.answers = [Answer(headers={"Content-Length": None}, cut_after=1_000_000), endless]
    download(["model"])
    assert TARGET.read_bytes() == CONTENT


def test_a_damaged_file_that_was_there_is_named_and_left(server: Server, list_files: ListFiles) -> None:
    list_files(bytes=len(CONTENT))
    TARGET.parent.mkdir()
    TARGET.write_bytes(OTHER)
    assert refused() == (
        f"model: weights/model.bin is not the released file: its SHA-256 is {digest(OTHER)}, config/downloads.yaml says "
        f"{digest(CONTENT)}; delete it and run the same command again"
    )
    TARGET.write_bytes(CONTENT[:100])
    assert "100 bytes instead of 3000001" in refused()
    assert TARGET.exists()
    assert server.requests == []


def test_encryption_is_not_given_up_on_the_way() -> None:
    listed = validate(PublicFiles, {"files": {"model": ENTRY}}, "list").files["model"]
    answer = type("Answer", (), {"url": "http://example.org/model.bin"})
    with pytest.raises(UserError, match=r"leads to http://example\.org/model\.bin, which is not encrypted"):
        downloads._refuse_another_file(listed, answer, None)


# Trust on first use


def test_the_sum_of_a_first_copy_is_recorded_and_said(server: Server, list_files: ListFiles, capsys: Any) -> None:
    list_files(sha256=None)
    download(["model"])
    record = Path("weights/model.bin.sha256")
    assert record.read_text() == f"{digest(CONTENT)}  model.bin\n"
    said = capsys.readouterr().out
    assert f"no SHA-256 of it is published: {digest(CONTENT)} of this first copy is trusted, and held to" in said
    download(["model"])
    assert "its SHA-256 is that of the first download (weights/model.bin.sha256)" in capsys.readouterr().out


def test_another_file_than_the_first_copy_is_refused(server: Server, list_files: ListFiles) -> None:
    list_files(sha256=None)
    download(["model"])
    TARGET.write_bytes(OTHER)
    assert f"weights/model.bin.sha256, written at the first download, says {digest(CONTENT)}" in refused()
    TARGET.unlink()
    server.content = OTHER
    assert f"its SHA-256 is {digest(OTHER)}, weights/model.bin.sha256, written at" in refused()
    assert left() == {"model.bin.sha256"}


def test_a_file_put_there_by_hand_is_recorded_too(server: Server, list_files: ListFiles) -> None:
    list_files(sha256=None)
    TARGET.parent.mkdir()
    TARGET.write_bytes(CONTENT)
    download(["model"])
    assert Path("weights/model.bin.sha256").exists()
    assert server.requests == []


# Offline, disk, interruption, two at once


def unused_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def test_offline_what_to_fetch_by_hand_is_printed(server: Server, list_files: ListFiles, capsys: Any) -> None:
    address = f"http://localhost:{unused_port()}/{{}}"
    list_files(
        {
            "first": {"address": address.format("first"), "bytes": 12},
            "second": {"address": address.format("second"), "sha256": None},
            "third": {"address": address.format("third"), "gigabytes": 0.281},
        }
    )
    sentence = refused(("first", "model", "second", "third"))
    assert re.fullmatch(r"no connection to localhost \(.+\); what to fetch by hand is listed above", sentence)
    assert TARGET.exists(), "what can be reached is fetched"
    said = capsys.readouterr().out
    for name in ("first", "second", "third"):
        assert f"{name}\n  from    {address.format(name)}\n  to      {Path('weights').absolute()}/{name}.bin\n" in said
    assert "size    12 bytes\n" in said
    assert "size    about 281 MB\n" in said
    assert "size    not known\n  sha256  not published; that of your copy is recorded\n" in said
    assert f"sha256  {digest(CONTENT)}\n  licence MIT\n" in said


def test_an_unreachable_host_is_tried_once(
    server: Server, list_files: ListFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = f"http://localhost:{unused_port()}/model.bin"
    list_files({"second": {"address": address}}, address=address)
    tried = []
    fetch = downloads._fetch

    def counted(file: PublicFile, part: Path) -> None:
        tried.append(file)
        fetch(file, part)

    monkeypatch.setattr(downloads, "_fetch", counted)
    refused(("model", "second"))
    assert len(tried) == 1


def test_a_full_disk_is_told_before_anything_is_fetched(
    server: Server, list_files: ListFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    list_files({"second": {"gigabytes": 5.64}}, bytes=len(CONTENT))
    usage = shutil.disk_usage(".")
    monkeypatch.setattr(downloads.shutil, "disk_usage", lambda _: usage._replace(free=5_640_000_000))
    assert refused(("model", "second")) == "weights has room for 5.64 GB, and 5.64 GB are still to come"
    assert server.requests == []
    monkeypatch.setattr(downloads.shutil, "disk_usage", lambda _: usage._replace(free=len(CONTENT)))
    download(["model"])


def test_two_downloads_of_a_file_at_once_are_refused(server: Server, list_files: ListFiles) -> None:
    list_files()
    with Lock(Path("weights/.model.bin.lock")):
        assert "is being written by process" in refused()
    assert server.requests == []


def test_an_interrupted_process_leaves_its_part(server: Server, list_files: ListFiles) -> None:
    list_files()
    hold = threading.Event()
    server.answers = [Answer(cut_after=2_500_000, hold=hold)]
    code = "from mirai.downloads import download; download(['model'])"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env=environment,
        stderr=subprocess.DEVNULL,
        # A shell in the background ignores it, and so would Python.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        while not (PART.exists() and PART.stat().st_size) and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        process.wait(30)
    finally:
        process.kill()
        hold.set()
    arrived = PART.read_bytes()
    assert arrived
    assert CONTENT.startswith(arrived)
    download(["model"])
    assert TARGET.read_bytes() == CONTENT
    assert server.ranges[-1] == f"bytes={len(arrived)}-"


# Choosing and listing


def test_an_unknown_name_is_told_with_those_there_are(list_files: ListFiles) -> None:
    list_files({"second": {}})
    assert refused(("modle",)) == "config/downloads.yaml has no 'modle'; it has model, second"


def test_everything_is_fetched_and_one_wrong_file_does_not_stop_the_rest(server: Server, list_files: ListFiles) -> None:
    list_files({"second": {}, "third": {"sha256": digest(OTHER)}, "fourth": {}})
    assert refused((), everything=True).startswith("third: what ")
    assert left() == {"model.bin", "second.bin", "fourth.bin"}


def test_another_folder_is_told_as_the_site_wants_it(server: Server, list_files: ListFiles, capsys: Any) -> None:
    list_files()
    download(["model"], folder=Path("elsewhere"))
    assert Path("elsewhere/model.bin").read_bytes() == CONTENT
    said = capsys.readouterr().out
    printed = yaml.safe_load(said[said.index("weights:\n") :])
    assert printed == {"weights": {"model": str(Path("elsewhere/model.bin").absolute())}}


def test_the_list_says_what_is_there(server: Server, list_files: ListFiles, project: Path, capsys: Any) -> None:
    list_files({"part": {}, "own": {}, "short": {"bytes": 7}, "missing": {"gigabytes": 5.64}}, bytes=len(CONTENT))
    Path("weights").mkdir()
    TARGET.write_bytes(CONTENT)
    Path("weights/part.bin.part").write_bytes(b"1234")
    Path("weights/short.bin").write_bytes(b"123")
    (project / "config/site.yaml").write_text("weights: {own: /data/own.bin}\n")
    print_files()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(maxsplit=1)[1].strip() for line in lines[::2]] == [
        "3 MB  there",
        "size unknown  partial, 4 bytes so far",
        "size unknown  as config/site.yaml says: /data/own.bin",
        "7 bytes  there with a wrong size of 3 bytes",
        "5.64 GB  missing",
    ]
    assert lines[1].strip() == "MIT; a test"
    assert server.requests == []


def test_the_list_of_some_files_is_of_those_and_names_go_without_all(list_files: ListFiles, capsys: Any) -> None:
    list_files({"second": {}, "third": {}})
    assert main(["download", "third", "model", "--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[::2]] == ["third", "model"]
    assert main(["download", "modle", "--list"]) == 2
    assert "config/downloads.yaml has no 'modle'" in capsys.readouterr().err
    for more in ([], ["--list"]):
        assert main(["download", "third", "--all", *more]) == 2
        assert "mirai download takes names or --all, not both: third and --all" in capsys.readouterr().err
    assert not Path("weights").exists()


# The list of files

ENTRY = {
    "file": "model.bin",
    "address": "https://example.org/model.bin",
    "sha256": None,
    "licence": "MIT",
    "needed_by": "a test",
}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"address": "http://example.org/model.bin"}, "must begin with https://"),
        ({"sha256": "6726825d"}, "key 'files.model.sha256' has value '6726825d'"),
        ({"bytes": 1, "gigabytes": 1.0}, "given as `bytes` or, rounded, as `gigabytes`"),
        ({"file": "../model.bin"}, "key 'files.model.file' has value '../model.bin'"),
        ({"adress": "x"}, "unknown key 'files.model.adress'; did you mean 'address'?"),
    ],
)
def test_a_mistake_in_the_list_is_one_sentence(change: dict[str, Any], sentence: str, project: Path) -> None:
    (project / "config").mkdir()
    (project / "config/downloads.yaml").write_text(yaml.safe_dump({"files": {"model": {**ENTRY, **change}}}))
    with pytest.raises(UserError) as caught:
        public_files()
    assert sentence in str(caught.value)


@pytest.mark.parametrize("name", [None, "model"])
def test_a_file_that_goes_by_a_published_name_must_be_the_published_one(
    name: str | None, list_files: ListFiles, tmp_path: Path
) -> None:
    file = tmp_path / ("model.bin" if name is None else "of the site.bin")
    file.write_bytes(CONTENT)
    assert check_released(file, name) == digest(CONTENT), "without a list nothing is known"
    list_files({"unknown": {"sha256": None}})
    assert check_released(file, name) == digest(CONTENT)
    file.write_bytes(OTHER)
    mend = "let weights.model in config/site.yaml name that one, or leave it out and run `mirai download model`"
    if name is None:
        mend = "delete it and run `mirai download model`, or give a file of your own another name"
    with pytest.raises(UserError) as caught:
        check_released(file, name)
    assert str(caught.value) == (
        f"{file} is not the published model.bin: its SHA-256 is {digest(OTHER)}, config/downloads.yaml says "
        f"{digest(CONTENT)}; {mend}"
    )
    for free in ("unknown", "not listed"):
        assert check_released(file, free) == digest(OTHER)


def test_two_files_of_one_name_are_refused(project: Path) -> None:
    with pytest.raises(UserError, match=r"two files would be stored as model\.bin"):
        validate(PublicFiles, {"files": {"one": ENTRY, "two": ENTRY}}, "list")


@pytest.fixture
def committed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def test_the_papers_scale_finds_all_it_needs_in_the_list_and_is_named_there(committed: None) -> None:
    scale, files = load_scale("imagenet256"), public_files()
    assert scale.evaluation.reference is not None
    for name in (scale.tokenizer.weights, scale.evaluation.reference, "inception"):
        assert files[str(name)].needed_by.startswith("scale imagenet256 (")
    named = {name for name, file in files.items() if ", encoder " in file.needed_by}
    assert named == {encoder.timm for encoder in scale.encoders.values()}
    for role, encoder in scale.encoders.items():
        assert re.search(rf", encoder {role}( |$)", files[str(encoder.timm)].needed_by)
        for size_name, size in scale.sizes.items():
            uses = re.search(rf"\(mirai-i at .*\b{size_name}\b", files[str(encoder.timm)].needed_by)
            assert bool(uses) == (size.encoder == role)


def test_names_with_a_piece_of_a_sum_carry_that_of_the_list(committed: None) -> None:
    """torch hub's convention: -6726825d.pth."""
    pieces = {file.file: match[1] for file in public_files().values() if (match := re.search(r"-(\w{8})\.", file.file))}
    assert len(pieces) == 2
    for file in public_files().values():
        assert file.file not in pieces or str(file.sha256).startswith(pieces[file.file])


def test_every_sum_and_address_is_of_one_file(committed: None) -> None:
    files = public_files().values()
    sums = [file.sha256 for file in files if file.sha256]
    assert len(set(sums)) == len(sums)
    assert len({file.address for file in files}) == len(files)
    assert all(file.address.startswith("https://") for file in files)


def test_downloads_are_not_committed() -> None:
    assert f"/{paths.WEIGHTS}/" in (ROOT / ".gitignore").read_text().splitlines()


@pytest.mark.parametrize(
    ("size", "text"),
    [
        *((None, "size unknown"), (7, "7 bytes"), (7289, "7.29 kB"), (287920306, "288 MB")),
        *((12386725354, "12.4 GB"), (2947 * 10**9, "2.95 TB")),
    ],
)
def test_sizes_are_shown_as_file_hosts_do(size: int | None, text: str) -> None:
    assert shown_bytes(size) == text
