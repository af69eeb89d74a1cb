"""The code store: every view of every image as tokens, extracted once and read through a memory map.

A folder with `codes.bin` uint16 (images, views, N), `labels.npy` int64, optionally `squares.bin` uint8
(images, S', S', 3), and the manifest `codes.json`, written last. At full size: codes 6.6 GB, squares 303 GB.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from mirai.data.crops import Pixels, Source, cut_views, views
from mirai.data.folder import CorruptImage, Fingerprint
from mirai.data.images import ImageSet
from mirai.errors import UserError
from mirai.experiments.recipe import Data
from mirai.states import atomic_file, check_payload, payload_entry, publish, read_json, sealed, write_json

MANIFEST, RECORD = "codes.json", "progress.json"
CODES, LABELS, SQUARES = "codes.bin", "labels.npy", "squares.bin"
SAVE_SECONDS = 20.0  # between two records of how far an extraction is
READERS = min(16, os.cpu_count() or 1)  # threads that decode and resize; PIL works outside Python's lock

Indices = npt.NDArray[np.int64]


class _Read(NamedTuple):
    """One source image: its square, or None if `unreadable` names a file to be skipped."""

    number: int
    square: Pixels | None
    source: Source | None = None
    unreadable: str = ""


@dataclass
class _Progress:
    """How far the extraction of `request` is: images done; of them enlarged, converted by mode, skipped as (index, file)."""

    request: Mapping[str, Any]
    done: int = 0
    enlarged: int = 0
    converted: dict[str, int] = field(default_factory=dict)
    skipped: list[tuple[int, str]] = field(default_factory=list)

    @property
    def rows(self) -> int:
        """Images in the store so far."""
        return self.done - len(self.skipped)

    def count(self, chunk: list[_Read]) -> None:
        """Take a chunk into account."""
        self.done += len(chunk)
        sources = [read.source for read in chunk if read.source is not None]
        self.enlarged += sum(source.side < self.request["square_side"] for source in sources)
        for source in sources:
            if source.mode != "RGB":
                self.converted[source.mode] = self.converted.get(source.mode, 0) + 1
        self.skipped += [(read.number, read.unreadable) for read in chunk if read.square is None]


def extract_codes(
    folder: Path,
    images: ImageSet,
    data: Data,
    *,
    encode: Callable[[Pixels], npt.NDArray[Any]],  # (n, S, S, 3) -> codes (n, N)
    grid_side: int,
    codebook_size: int,
    tokenizer_key: str,
    store_squares: bool,
    batch_images: int,
    progress: bool = False,
) -> None:
    """Encode all views of all images into a code store. After a kill the same call goes on, to the same bytes.

    To be called through `states.build_once(folder / MANIFEST, ...)`, which keeps a second writer out. UserError for an
    image that cannot be decoded (unless the data say to skip those) and for a disk that is too small.
    """
    source = images.fingerprint()
    request = {
        "data": data.name,
        "source": None if source is None else asdict(source),
        "source_images": len(images),
        "class_names": list(images.class_names),
        "resolution": images.resolution,
        "square_side": images.side,
        "views": data.views,
        "grid_side": grid_side,
        "tokenizer": tokenizer_key,
        "codebook_size": codebook_size,
    }
    row_bytes = {CODES: data.views * grid_side**2 * 2} | ({SQUARES: images.side**2 * 3} if store_squares else {})
    for manifest in (folder / MANIFEST, sealed(folder / MANIFEST)):  # of an earlier extraction, since damaged
        manifest.unlink(missing_ok=True)
    state = _resume(folder, request, row_bytes)
    first, started = state.rows, time.monotonic()
    saved = started
    bar = tqdm(total=len(images), initial=state.done, desc="codes", unit="image", disable=not progress)
    with bar, contextlib.ExitStack() as stack:
        files = {name: stack.enter_context((folder / name).open("ab")) for name in row_bytes}
        for chunk in _read_ahead(images, state.done, batch_images, skip=data.corrupt_images == "skip"):
            squares = [read.square for read in chunk if read.square is not None]
            if squares:
                crops = np.concatenate([views(square, images.resolution, data.views) for square in squares])
                codes = np.asarray(encode(crops))
                assert codes.shape == (len(crops), grid_side**2)
                assert 0 <= codes.min() <= codes.max() < codebook_size
                _append(files, {CODES: codes.astype("<u2"), SQUARES: np.stack(squares)})
            state.count(chunk)
            bar.update(len(chunk))
            if time.monotonic() - saved >= SAVE_SECONDS or state.done == len(images):
                _save(folder, state, files)
                saved = time.monotonic()
    crops_done, seconds = (state.rows - first) * data.views, max(time.monotonic() - started, 1e-9)
    print(f"codes: {crops_done} crops in {seconds:.1f} s, {crops_done / seconds:.0f} a second", file=sys.stderr)
    _publish(folder, state, np.delete(images.labels, [index for index, _ in state.skipped]), list(row_bytes))


def _resume(folder: Path, request: Mapping[str, Any], row_bytes: Mapping[str, int]) -> _Progress:
    """Where an interrupted extraction of the same request stopped, or the start; the files are cut back to that."""
    folder.mkdir(parents=True, exist_ok=True)
    state = _Progress(request)
    with contextlib.suppress(UserError):  # no record, or a damaged one
        found = _Progress(**read_json(folder / RECORD))
        sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
        if found.request == request and all(sizes.get(name, -1) >= found.rows * row_bytes[name] for name in row_bytes):
            state = found
    for name in row_bytes:
        with (folder / name).open("ab") as file:
            file.truncate(state.rows * row_bytes[name])
    needed, free = (request["source_images"] - state.done) * sum(row_bytes.values()), shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(f"{folder}: the codes need {needed / 1e9:.1f} GB more, its disk has {free / 1e9:.1f} GB left")
    return state


def _read(images: ImageSet, index: int, skip: bool) -> _Read:
    try:
        return _Read(index, images.square(index), images.source(index))
    except CorruptImage as error:
        if not skip:
            raise
        return _Read(index, None, unreadable=error.file)


def _read_ahead(images: ImageSet, start: int, batch: int, *, skip: bool) -> Iterator[list[_Read]]:
    """The images from `start` on in chunks; while one chunk is encoded, threads read the next."""
    with ThreadPoolExecutor(READERS) as pool:
        ahead = None
        for first in range(start, len(images), batch):
            indices = range(first, min(first + batch, len(images)))
            chunk = [pool.submit(_read, images, index, skip) for index in indices]
            if ahead is not None:
                yield [future.result() for future in ahead]
            ahead = chunk
        if ahead is not None:
            yield [future.result() for future in ahead]


def _append(files: Mapping[str, BinaryIO], arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    for name, file in files.items():
        try:
            file.write(arrays[name].tobytes())
        except OSError as error:
            raise UserError(f"cannot write {file.name}: {error.strerror}; the same command goes on later") from error


def _save(folder: Path, state: _Progress, files: Mapping[str, BinaryIO]) -> None:
    """Record the progress, after what it speaks of is on the disk."""
    for file in files.values():
        file.flush()
        os.fsync(file.fileno())
    write_json(folder / RECORD, asdict(state))


def _publish(folder: Path, state: _Progress, labels: Indices, payloads: list[str]) -> None:
    if not state.rows:
        raise UserError(f"data set {state.request['data']}: none of its {state.done} images could be decoded")
    with atomic_file(folder / LABELS) as file:
        np.save(file, labels)
    content = {
        **state.request,
        "images": state.rows,
        "enlarged": state.enlarged,
        "converted": state.converted,  # to RGB, by PIL's mode
        "skipped": [file for _, file in state.skipped],
    }
    entries = {Path(name).stem: payload_entry(folder / name) for name in (*payloads, LABELS)}
    # Gone before the manifest appears: should the payloads be damaged later, they are made again and not taken as done.
    (folder / RECORD).unlink(missing_ok=True)
    publish(folder / MANIFEST, content, entries)


@dataclass(frozen=True)
class CodeStore:
    """A finished code store. `array` uint16 (images, views, N) and `squares` are memory maps, `labels` (images,)."""

    folder: Path
    manifest: Mapping[str, Any]
    array: npt.NDArray[np.uint16]
    labels: Indices
    squares: Pixels | None

    @classmethod
    def open(
        cls, folder: Path, *, tokenizer_key: str | None = None, fingerprint: Fingerprint | None = None
    ) -> CodeStore:
        """UserError for a store unfinished or damaged, of another tokenizer, or of a folder that has changed since."""
        manifest = read_json(folder / MANIFEST)
        if tokenizer_key not in (None, manifest["tokenizer"]):
            raise UserError(
                f"the codes in {folder} were made by tokenizer {manifest['tokenizer']}, not by {tokenizer_key}; "
                f"delete {folder} and run the same command again"
            )
        if fingerprint is not None and asdict(fingerprint) != manifest["source"]:
            then = manifest["source"]
            raise UserError(
                f"the folder for data set {manifest['data']} has changed since its codes were made "
                f"({then['files']} files of {then['bytes']} bytes then, "
                f"{fingerprint.files} of {fingerprint.bytes} now); give the new contents a new name"
            )
        entries = manifest["payloads"]
        path = {
            name: check_payload(folder, entry, deep=name != "squares")  # squares are 303 GB at full size
            for name, entry in entries.items()
        }
        rows, side = manifest["images"], manifest["square_side"]
        shape = (rows, manifest["views"], manifest["grid_side"] ** 2)
        squares = np.memmap(path["squares"], np.uint8, "r", shape=(rows, side, side, 3)) if "squares" in path else None
        return cls(
            folder, manifest, np.memmap(path["codes"], "<u2", "r", shape=shape), np.load(path["labels"]), squares
        )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_views(self) -> int:
        """Views of every image."""
        return int(self.manifest["views"])

    @property
    def num_classes(self) -> int:
        """Classes of the data set, also those of which every image was skipped."""
        return len(self.manifest["class_names"])

    def codes(self, images: Indices, views: Indices) -> Indices:
        """Tokens (B, N) of image ids (B,) in view ids (B,)."""
        return self.array[images, views].astype(np.int64)

    def pixels(self, images: Indices, views: Indices) -> Pixels:
        """The pixels (B, S, S, 3) the tokens of `codes` were made from; UserError if the squares were not stored."""
        if self.squares is None:
            raise UserError(
                f"the codes in {self.folder} were stored without pixels; delete that folder and extract them again"
            )
        return cut_views(self.squares[images], views, self.manifest["resolution"], self.num_views)
