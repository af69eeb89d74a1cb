"""`mirai download`: fetches the files of config/downloads.yaml, goes on where it was cut, and holds them to their SHA-256.

A file gets its name only once it was checked. Where no SHA-256 is published, that of the first copy is written beside it
and every later copy is held to it (trust on first use), and the command says so.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterable, Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, build_opener

from tqdm import tqdm

from mirai.errors import UserError
from mirai.experiments import paths
from mirai.experiments.public_files import PublicFile, public_files, shown_bytes
from mirai.experiments.site import load_site
from mirai.states import Lock, read_json, sha256, write_json, write_text

PAUSES = (1, 2, 4, 8, 16)  # seconds before each further attempt; arriving bytes renew them
TIMEOUT = 30  # seconds without an answer
CHUNK = 1 << 20  # bytes
PASSING = (408, 429)  # statuses below 500 that may be gone after a pause


class _Cut(Exception):
    """What may go better at the next attempt."""


class _Unreachable(_Cut):
    """No connection came about: this machine may be offline."""


def download(names: Iterable[str], *, everything: bool = False, folder: Path = paths.WEIGHTS) -> None:
    """Fetch and check files by name, or all; what is there already is checked only.

    UserError after the last one if any is wrong or out of reach; then also prints what to fetch by hand.
    """
    chosen = _chosen(public_files(), names, everything)
    _require_space(chosen.values(), folder)
    troubles: list[str] = []
    offline: dict[str, str] = {}  # host -> reason
    out_of_reach: dict[str, PublicFile] = {}
    for name, file in chosen.items():
        try:
            if file.host in offline and not (folder / file.file).exists():
                raise _Unreachable(offline[file.host])
            print(f"{name}: {_obtain(file, folder)}", flush=True)
        except _Unreachable as reason:
            offline[file.host] = str(reason)
            out_of_reach[name] = file
        except UserError as mistake:
            troubles.append(f"{name}: {mistake}")
    if out_of_reach:
        _print_by_hand(out_of_reach, folder)
        reasons = ", ".join(f"{host} ({reason})" for host, reason in offline.items())
        troubles.append(f"no connection to {reasons}; what to fetch by hand is listed above")
    if troubles:
        raise UserError("; ".join(troubles))
    if folder != paths.WEIGHTS:
        places = "".join(f"\n  {name}: {(folder / file.file).absolute()}" for name, file in chosen.items())
        print(f"for {paths.SITE}:\nweights:{places}")


def print_files(names: Iterable[str] = (), *, folder: Path = paths.WEIGHTS) -> None:
    """List files by name (none: all): size, whether they are there, licence, what needs them. Contents are not looked at."""
    given, wanted = load_site().weights, list(names)
    files = _chosen(public_files(), wanted, not wanted)
    width = max(map(len, files))
    for name, file in files.items():
        status = f"as {paths.SITE} says: {given[name]}" if name in given else _status(file, folder)
        print(f"{name:{width}}  {shown_bytes(file.size):>12}  {status}\n{'':{width}}  {file.licence}; {file.needed_by}")


def _status(file: PublicFile, folder: Path) -> str:
    target, part = folder / file.file, _part(folder / file.file)
    if target.exists():
        size = target.stat().st_size
        return "there" if file.fits(size) else f"there with a wrong size of {size} bytes"
    return f"partial, {shown_bytes(part.stat().st_size)} so far" if part.exists() else "missing"


def _chosen(files: Mapping[str, PublicFile], names: Iterable[str], everything: bool) -> dict[str, PublicFile]:
    wanted = list(files) if everything else list(dict.fromkeys(names))
    for name in wanted:
        if name not in files:
            raise UserError(f"{paths.DOWNLOADS} has no '{name}'; it has {', '.join(files)}")
    return {name: files[name] for name in wanted}


def _require_space(files: Iterable[PublicFile], folder: Path) -> None:
    """UserError if what is still to come does not fit; files of unknown size are not counted."""
    need = 0
    for file in files:
        target = folder / file.file
        if not target.exists() and file.size is not None:
            need += file.size - (_part(target).stat().st_size if _part(target).exists() else 0)
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(there).free
    if need > free:
        raise UserError(f"{folder} has room for {shown_bytes(free)}, and {shown_bytes(need)} are still to come")


def _obtain(file: PublicFile, folder: Path) -> str:
    """Have the checked file in the folder -> what was done, as a sentence."""
    target = folder / file.file
    with Lock(folder / f".{file.file}.lock"):
        if target.exists():
            return f"{target} is there, {_check(file, target, target)}"
        part = _part(target)
        _fetch(file, part)
        try:
            outcome = _check(file, part, target)
        except UserError:
            _forget(part)
            raise
        os.replace(part, target)
        _forget(part)
        return f"fetched to {target}, {outcome} (licence: {file.licence})"


def _check(file: PublicFile, content: Path, target: Path) -> str:
    """Compare size and SHA-256 with the published or recorded ones; without either, record them -> what that says.

    UserError for another content: a download is deleted then, a file that was there before is left to its owner.
    """
    record = target.with_name(f"{target.name}.sha256")  # as sha256sum writes and reads it
    size = content.stat().st_size
    if content == target:
        wrong, mend = f"{target} is not the released file", "delete it and run the same command again"
    else:
        wrong, mend = f"what {file.address} sends is not {target.name}", "it was deleted again"
    if not file.fits(size):
        raise UserError(f"{wrong}: {size} bytes instead of {file.stated_size}; {mend}")
    recorded = record.read_text().split()[0] if file.sha256 is None and record.exists() else None
    expected = file.sha256 or recorded
    got = sha256(content)
    if expected is None:
        write_text(record, f"{got}  {target.name}\n")
        return (
            f"no SHA-256 of it is published: {got} of this first copy is trusted, and held to from now on by {record}"
        )
    if got != expected:
        origin = f"{record}, written at the first download," if recorded else str(paths.DOWNLOADS)
        raise UserError(f"{wrong}: its SHA-256 is {got}, {origin} says {expected}; {mend}")
    return f"its SHA-256 is that of the first download ({record})" if recorded else "its SHA-256 is the published one"


def _fetch(file: PublicFile, part: Path) -> None:
    """Complete the partial file, over as many connections as it takes."""
    pauses = iter(PAUSES)
    reached = False
    while True:
        before = _size(part)
        try:
            return _transfer(file, part)
        except _Cut as cut:
            if isinstance(cut, _Unreachable) and not reached:
                raise
            reached = True
            if _size(part) > before:
                pauses = iter(PAUSES)
            pause = next(pauses, None)
            if pause is None:
                raise UserError(
                    f"{file.address}: {cut}, also after {len(PAUSES)} further attempts; "
                    "the same command goes on from what has arrived"
                ) from None
            time.sleep(pause)


def _transfer(file: PublicFile, part: Path) -> None:
    """One connection: what is missing of the partial file, or all of it if the server has another version by now."""
    have, version = _resumable(file, part)
    if have and have == file.bytes:
        return
    headers = {"User-Agent": "mirai", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if version is not None:
            headers["If-Range"] = version  # another version comes from its beginning, with status 200
    try:
        response = build_opener().open(Request(file.address, headers=headers), timeout=TIMEOUT)  # proxies: environment
    except HTTPError as error:
        if error.code == 416 and _range(error)[1] == have:
            return
        if error.code == 416:
            _forget(part)
        if error.code >= 500 or error.code in (416, *PASSING):
            raise _Cut(f"the server answers {error.code} {error.reason}") from None
        raise UserError(f"{file.address} answers {error.code} {error.reason}") from None
    except URLError as error:
        raise _Unreachable(str(error.reason)) from None
    except (OSError, HTTPException) as error:
        raise _Cut(f"the connection breaks ({type(error).__name__})") from None
    with response:
        begin, total = _range(response) if response.status == 206 else (0, _length(response))
        if begin not in (0, have) or (begin and version and _version(response) not in (None, version)):
            _forget(part)
            raise _Cut("the server answers with another part than asked for")
        _refuse_another_file(file, response, total)
        if begin == 0:
            part.unlink(missing_ok=True)
            write_json(_note(part), {"address": file.address, "version": _version(response)})
        _copy(response, part, begin, total or file.bytes)


def _copy(response: Any, part: Path, begin: int, total: int | None) -> None:
    """Append the body to the partial file."""
    with (
        part.open("ab") as out,
        tqdm(total=total, initial=begin, desc=part.stem, unit="B", unit_scale=True) as progress,
    ):
        while chunk := _read(response):
            out.write(chunk)
            progress.update(len(chunk))
        out.flush()
        os.fsync(out.fileno())
    if total is not None and _size(part) < total:  # the end of a connection is no error to http.client
        raise _Cut(f"the connection is cut after {_size(part)} of {total} bytes")


def _read(response: Any) -> bytes:
    try:
        chunk: bytes = response.read(CHUNK)
        return chunk
    except (OSError, HTTPException) as error:
        raise _Cut(f"the connection breaks ({type(error).__name__})") from None


def _refuse_another_file(file: PublicFile, response: Any, total: int | None) -> None:
    """UserError for what cannot be the file, before gigabytes of it arrive."""
    if response.url.split(":")[0] != file.address.split(":")[0]:
        raise UserError(f"{file.address} leads to {response.url}, which is not encrypted")
    if response.headers.get_content_type() == "text/html":
        raise UserError(f"{file.address} answers with a web page instead of the file; is there a login or a proxy?")
    if not total and file.sha256 is None:
        raise UserError(f"{file.address} does not say its length, so that a part of it could pass for the file")
    if total is not None and not file.fits(total):
        raise UserError(f"{file.address} has {total} bytes instead of {file.stated_size}: it is another file by now")


def _resumable(file: PublicFile, part: Path) -> tuple[int, str | None]:
    """Bytes that can be kept of a partial file, and the version they belong to.

    Without a version only a published SHA-256 would tell a mixture of two versions.
    """
    note = read_json(_note(part)) if part.exists() and _note(part).exists() else {}
    version = note.get("version")
    size = _size(part)
    kept = note.get("address") == file.address and (version or file.sha256) and size <= (file.bytes or size)
    return (size, version) if kept else (0, None)


def _version(response: Any) -> str | None:
    """What If-Range takes: a strong ETag, else a date."""
    etag = response.headers.get("ETag")
    strong = etag if etag and not etag.startswith("W/") else None
    found: str | None = strong or response.headers.get("Last-Modified")
    return found


def _range(response: Any) -> tuple[int, int | None]:
    """First byte and total of a Content-Range: `bytes 5-9/10`, or `bytes */10` of a 416."""
    match = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", response.headers.get("Content-Range", ""))
    if match is None:
        return -1, None
    return int(match[1] or 0), None if match[2] == "*" else int(match[2])


def _length(response: Any) -> int | None:
    length = response.headers.get("Content-Length")
    return None if length is None else int(length)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _part(target: Path) -> Path:
    return target.with_name(f"{target.name}.part")


def _note(part: Path) -> Path:
    """Which version of which address a partial file is of."""
    return part.with_name(f"{part.name}.json")


def _forget(part: Path) -> None:
    part.unlink(missing_ok=True)
    _note(part).unlink(missing_ok=True)


def _print_by_hand(files: Mapping[str, PublicFile], folder: Path) -> None:
    print("To fetch by hand; then run the same command again, which checks them:")
    for name, file in files.items():
        print(
            f"{name}\n  from    {file.address}\n  to      {(folder / file.file).absolute()}\n  size    {file.stated_size}\n"
            f"  sha256  {file.sha256 or 'not published; that of your copy is recorded'}\n  licence {file.licence}"
        )
