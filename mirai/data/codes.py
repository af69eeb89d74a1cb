"""The code store: every view of every image as tokens, extracted once and read through a memory map.

A folder with `codes.bin` uint16 (images, views, N), `labels.npy` int64, optionally `squares.bin` uint8
(images, S', S', 3), and the manifest `codes.json`, written last. At full size: codes 6.6 GB, squares 303 GB.
Each image of the set has its own row, so several processes write one file; a skipped one has zeros and label -1.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from mirai.data.crops import Pixels, cut_views, views
from mirai.data.folder import CorruptImage, Fingerprint, listed
from mirai.data.images import ImageSet
from mirai.data.progress import ENCODED, RECORDS, SKIPPED, Note, Notes, deal, read_notes, write_notes
from mirai.errors import UserError
from mirai.experiments.recipe import Data
from mirai.states import atomic_file, check_payload, payload_entry, publish, read_json, sealed

MANIFEST = "codes.json"
CODES, LABELS, SQUARES = "codes.bin", "labels.npy", "squares.bin"
SAVE_SECONDS = 20.0  # between two records of how far a process is
READERS = min(16, os.cpu_count() or 1)  # threads that decode and cut; PIL works outside Python's lock

Indices = npt.NDArray[np.int64]


class _Read(NamedTuple):
    """One source image: what is noted of it, and, unless it is skipped, its square and the views (views, S, S, 3)."""

    note: Note
    pixels: tuple[Pixels, Pixels] | None


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
    rank: int = 0,
    ranks: int = 1,
    together: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext,
) -> None:
    """Encode all views of all images into a code store. After a kill the same call goes on, to the same bytes.

    Several processes share the work when each makes this call with its `rank`; `together` is then a block that all
    leave, or none. How many they are may change between calls. To be called by whoever holds the lock of the folder,
    or for it. UserError for an image that cannot be decoded (unless the data say to skip those) and for a disk that is
    too small; the first rank publishes.
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
    with together():
        if rank == 0:
            _prepare(folder, request, row_bytes)
    with together():  # all read the same records before anyone adds to them
        notes = read_notes(folder, request)
    rounds, todo = deal(notes, batch_images, ranks)
    before, started = np.count_nonzero(notes["state"] == ENCODED), time.monotonic()
    saved = started
    silent = not progress or rank > 0
    bar = tqdm(total=len(images), initial=len(images) - todo, desc="codes", unit="image", disable=silent)
    with bar, contextlib.ExitStack() as stack:
        files = {name: os.open(folder / name, os.O_WRONLY) for name in row_bytes}
        for file in files.values():
            stack.callback(os.close, file)
        mine = [chunks[rank] if rank < len(chunks) else range(0) for chunks in rounds]
        reads = stack.enter_context(contextlib.closing(_read_ahead(images, data, mine)))
        for chunks, chunk in zip(rounds, mine, strict=True):
            with together():
                rows = next(reads)
                if chunk:
                    _write(files, chunk.start, _encoded(rows, encode, request))
                    notes[chunk.start : chunk.stop] = [row.note for row in rows]
                if time.monotonic() - saved >= SAVE_SECONDS or chunks is rounds[-1]:
                    _save(folder, rank, request, notes, files)
                    saved = time.monotonic()
            bar.update(sum(map(len, chunks)))
    if rank == 0:
        notes = read_notes(folder, request)
        crops = int(np.count_nonzero(notes["state"] == ENCODED) - before) * data.views
        seconds = max(time.monotonic() - started, 1e-9)
        by = f" by {ranks} processes" if ranks > 1 else ""
        print(f"codes: {crops} crops in {seconds:.1f} s{by}, {crops / seconds:.0f} a second", file=sys.stderr)
        _publish(folder, request, images, notes, list(row_bytes))


def _prepare(folder: Path, request: Mapping[str, Any], row_bytes: Mapping[str, int]) -> None:
    """The payloads at their full length, with what an interrupted extraction of the same request left in them."""
    folder.mkdir(parents=True, exist_ok=True)
    for manifest in (folder / MANIFEST, sealed(folder / MANIFEST)):  # of an earlier extraction, since damaged
        manifest.unlink(missing_ok=True)
    images = request["source_images"]
    done = int(np.count_nonzero(read_notes(folder, request)["state"]))
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    useless = [folder / name for name in (CODES, SQUARES) if name not in row_bytes]
    if not done or any(sizes.get(name, -1) < images * row for name, row in row_bytes.items()):
        done, useless = 0, [*folder.glob(RECORDS), folder / CODES, folder / SQUARES]
    for path in useless:
        path.unlink(missing_ok=True)
    needed, free = (images - done) * sum(row_bytes.values()), shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(f"{folder}: the codes need {needed / 1e9:.1f} GB more, its disk has {free / 1e9:.1f} GB left")
    for name, row in row_bytes.items():
        with (folder / name).open("ab") as file:
            file.truncate(images * row)


def _read(images: ImageSet, index: int, data: Data) -> _Read:
    try:
        square, source = images.read(index)
    except CorruptImage:
        if data.corrupt_images == "refuse":
            raise
        return _Read((SKIPPED, False, ""), None)
    note = (ENCODED, source.side < images.side, source.mode)
    return _Read(note, (square, views(square, images.resolution, data.views)))


def _read_ahead(images: ImageSet, data: Data, chunks: Iterable[range]) -> Generator[list[_Read], None, None]:
    """The images of each chunk; while one chunk is encoded, threads read the next."""
    with ThreadPoolExecutor(READERS) as pool:
        ahead = None
        for chunk in (*chunks, None):
            reading = [pool.submit(_read, images, index, data) for index in chunk or ()]
            if ahead is not None:
                yield [future.result() for future in ahead]
            ahead = reading


def _encoded(
    rows: list[_Read], encode: Callable[[Pixels], npt.NDArray[Any]], request: Mapping[str, Any]
) -> dict[str, npt.NDArray[Any]]:
    """Codes (images, views, N) and squares (images, S', S', 3) of a chunk; zeros where an image is skipped."""
    count, side = len(rows), request["square_side"]
    codes = np.zeros((count, request["views"], request["grid_side"] ** 2), "<u2")
    squares = np.zeros((count, side, side, 3), np.uint8)
    kept = [number for number, row in enumerate(rows) if row.pixels is not None]
    if kept:
        pixels = [row.pixels for row in rows if row.pixels is not None]
        found = np.asarray(encode(np.concatenate([crops for _, crops in pixels])))
        assert found.shape == (len(kept) * codes.shape[1], codes.shape[2])
        assert 0 <= found.min() <= found.max() < request["codebook_size"]
        codes[kept] = found.reshape(len(kept), *codes.shape[1:])
        squares[kept] = [square for square, _ in pixels]
    return {CODES: codes, SQUARES: squares}


def _write(files: Mapping[str, int], first: int, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Put the rows of a chunk into their places, at once: others write beside them."""
    for name, file in files.items():
        rest, place = arrays[name].data.cast("B"), first * arrays[name][0].nbytes
        try:
            while rest:
                written = os.pwrite(file, rest, place)
                rest, place = rest[written:], place + written
        except OSError as error:
            raise UserError(f"cannot write {name}: {error.strerror}; the same command goes on later") from error


def _save(folder: Path, rank: int, request: Mapping[str, Any], notes: Notes, files: Mapping[str, int]) -> None:
    """Record what is done, after it is on the disk."""
    for file in files.values():
        os.fsync(file)
    write_notes(folder, rank, request, notes)


def _publish(folder: Path, request: Mapping[str, Any], images: ImageSet, notes: Notes, payloads: list[str]) -> None:
    lost = np.count_nonzero(notes["state"] == 0)
    if lost:  # processes that saw different image folders
        raise UserError(f"{folder}: {lost} images are still without codes; run the same command again")
    skipped = notes["state"] == SKIPPED
    if skipped.all():
        raise UserError(f"data set {request['data']}: none of its {len(notes)} images could be decoded")
    with atomic_file(folder / LABELS) as file:
        np.save(file, np.where(skipped, -1, images.labels))
    modes, counts = np.unique(notes["mode"][~skipped], return_counts=True)
    found = {mode.decode(): int(count) for mode, count in zip(modes, counts, strict=True)}
    content = {
        **request,
        "images": int(np.count_nonzero(~skipped)),
        "enlarged": int(np.count_nonzero(notes["enlarged"])),
        "converted": {mode: count for mode, count in found.items() if mode != "RGB"},  # by PIL's mode
        "skipped": [images.name(index) for index in np.flatnonzero(skipped).tolist()],
    }
    _tell(content, [images.name(index) for index in np.flatnonzero(notes["enlarged"]).tolist()])
    entries = {Path(name).stem: payload_entry(folder / name) for name in (*payloads, LABELS)}
    # Gone before the manifest appears: should the payloads be damaged later, they are made again and not taken as done.
    for record in folder.glob(RECORDS):
        record.unlink(missing_ok=True)
    publish(folder / MANIFEST, content, entries)


def _tell(content: Mapping[str, Any], enlarged: list[str]) -> None:
    """What a user should know of images that are not as expected."""
    skipped, converted = content["skipped"], content["converted"]
    if skipped:
        print(f"codes: {len(skipped)} unreadable images skipped: {listed(skipped)}", file=sys.stderr)
    if enlarged and content["source"] is not None:
        print(
            f"codes: {len(enlarged)} images are smaller than the crop of {content['square_side']} pixels and were "
            f"enlarged to it: {listed(enlarged)}",
            file=sys.stderr,
        )
    if converted:
        modes = ", ".join(f"{count} {mode}" for mode, count in sorted(converted.items()))
        print(f"codes: images converted to RGB: {modes}", file=sys.stderr)


@dataclass(frozen=True)
class CodeStore:
    """A finished code store. `labels` (images,) of the images that could be read, whose ids count from 0.

    `array` uint16 (rows, views, N) and `squares` are memory maps; `rows` are the images' rows there, None if they are
    all rows (nothing was skipped, or an older version left no rows for what was).
    """

    folder: Path
    manifest: Mapping[str, Any]
    array: npt.NDArray[np.uint16]
    labels: Indices
    squares: Pixels | None
    rows: Indices | None

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
        labels, side = np.load(path["labels"]), manifest["square_side"]
        rows = np.flatnonzero(labels >= 0)
        shape = (len(labels), manifest["views"], manifest["grid_side"] ** 2)
        array = np.memmap(path["codes"], "<u2", "r", shape=shape)
        squares = None
        if "squares" in path:
            squares = np.memmap(path["squares"], np.uint8, "r", shape=(len(labels), side, side, 3))
        return cls(folder, manifest, array, labels[rows], squares, None if len(rows) == len(labels) else rows)

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

    def _rows_of(self, images: Indices) -> Indices:
        return images if self.rows is None else self.rows[images]

    def codes(self, images: Indices, views: Indices) -> Indices:
        """Tokens (B, N) of image ids (B,) in view ids (B,)."""
        return self.array[self._rows_of(images), views].astype(np.int64)

    def pixels(self, images: Indices, views: Indices) -> Pixels:
        """The pixels (B, S, S, 3) the tokens of `codes` were made from; UserError if the squares were not stored."""
        if self.squares is None:
            raise UserError(
                f"the codes in {self.folder} were stored without pixels; delete that folder and extract them again"
            )
        return cut_views(self.squares[self._rows_of(images)], views, self.manifest["resolution"], self.num_views)
