"""Image folders, one sub-folder per class, in torchvision's ImageFolder order and decoded as it does."""

from __future__ import annotations

import hashlib
import io
import os
import struct
import sys
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from mirai.data.crops import Pixels, Source, centre_square
from mirai.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # torchvision's
# what PIL raises on bytes that are no whole image
DECODE_ERRORS = (
    *(OSError, SyntaxError, ValueError, TypeError, EOFError),
    *(struct.error, zlib.error, Image.DecompressionBombError),
)


class NoImage(UserError):
    """A file that can be read, but not decoded."""


class CorruptImage(UserError):
    """Such a file of an image folder; `file` is its path within it."""

    def __init__(self, trouble: NoImage, file: str) -> None:
        super().__init__(f"{trouble}, or set the data's `corrupt_images` to skip")
        self.file = file


def open_rgb(path: Path) -> tuple[Image.Image, Source]:
    """An image in RGB and what its file holds. Like torchvision's loader this takes no notice of EXIF's orientation.

    NoImage for bytes that are no whole image, UserError for a file that cannot be read.
    """
    try:
        data = path.read_bytes()
    except OSError as error:  # a fault of the disk or of permissions, which skipping must not hide
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    try:
        image = Image.open(io.BytesIO(data))
        source = Source(min(image.size), image.mode)
        return image.convert("RGB"), source
    except DECODE_ERRORS as error:
        raise NoImage(f"{path} is no readable image ({error}); replace or remove it") from error


@dataclass(frozen=True)
class Fingerprint:
    """What tells one state of a folder from another without reading the images: count, total size, names and sizes."""

    files: int
    bytes: int
    sha256: str


class ImageFile(NamedTuple):
    """One image of a folder: path within it (with forward slashes), class index, size in bytes."""

    path: str
    label: int
    bytes: int


def _walk(folder: Path) -> Iterator[tuple[Path, int]]:
    """Image files anywhere below a class folder, in torchvision's order, with their sizes."""

    def fail(error: OSError) -> None:
        raise error

    for root, _, names in sorted(os.walk(folder, onerror=fail, followlinks=True)):
        for name in sorted(names):
            if name.lower().endswith(SUFFIXES):
                path = Path(root, name)
                yield path, path.stat().st_size


def list_images(folder: Path) -> tuple[tuple[str, ...], list[ImageFile]]:
    """Class names and images of a folder; UserError for a missing folder, no class sub-folders, a class without images.

    Hidden sub-folders are no classes: they are left behind by other programs.
    """
    if not folder.is_dir():
        raise UserError(f"image folder {folder} does not exist")
    try:
        names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
        found = [list(_walk(folder / name)) for name in names]
    except OSError as error:
        raise UserError(f"image folder {folder} cannot be read: {error.filename}: {error.strerror}") from error
    if not names:
        raise UserError(f"image folder {folder} has no class sub-folders; expected {folder}/<class>/<image>")
    for name, images in zip(names, found, strict=True):
        if not images:
            raise UserError(f"class folder {folder / name} holds no image ({', '.join(SUFFIXES)})")
    return tuple(names), [
        ImageFile(path.relative_to(folder).as_posix(), label, size)
        for label, images in enumerate(found)
        for path, size in images
    ]


def _fingerprint(files: Sequence[ImageFile]) -> Fingerprint:
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.bytes} {file.path}\n".encode("utf-8", "surrogateescape"))
    return Fingerprint(len(files), sum(file.bytes for file in files), digest.hexdigest())


def fingerprint(folder: Path) -> Fingerprint:
    """Fingerprint of an image folder as it is now."""
    return _fingerprint(list_images(folder)[1])


@dataclass(frozen=True)
class FolderSet:
    """Images of a folder: `chosen` are indices into `files`."""

    folder: Path
    class_names: tuple[str, ...]
    files: Sequence[ImageFile]
    chosen: npt.NDArray[np.int64]
    side: int
    resolution: int

    def __len__(self) -> int:
        return len(self.chosen)

    @cached_property
    def labels(self) -> npt.NDArray[np.int64]:
        """Classes (n,)."""
        return np.array([self.files[file].label for file in self.chosen], np.int64)

    def name(self, index: int) -> str:
        """Path of the file within the folder."""
        return self.files[self.chosen[index]].path

    def picture(self, index: int) -> tuple[Image.Image, Source]:
        """The whole image in RGB and what its file holds; CorruptImage if it cannot be decoded."""
        file = self.name(index)
        try:
            return open_rgb(self.folder / file)
        except NoImage as trouble:
            raise CorruptImage(trouble, file) from trouble

    def read(self, index: int) -> tuple[Pixels, Source]:
        """The square (S', S', 3) views are cut from, and the file's size and mode; CorruptImage if it cannot be decoded."""
        image, source = self.picture(index)
        return centre_square(image, self.side), source

    def square(self, index: int) -> Pixels:
        """The square alone."""
        return self.read(index)[0]

    def centre(self, index: int) -> Pixels:
        """ADM's centre crop at the resolution itself (S, S, 3)."""
        return centre_square(self.picture(index)[0], self.resolution)

    def factors(self) -> None:
        """None: real images come without factors."""
        return None

    def fingerprint(self) -> Fingerprint:
        """Fingerprint of the whole folder, whatever part of it was chosen."""
        return _fingerprint(self.files)


def listed(names: Sequence[str], most: int = 5) -> str:
    """Names for a sentence: the first few, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def readable(images: FolderSet, count: int | None) -> FolderSet:
    """The first `count` images that can be decoded (None: all that can); the others are reported on stderr."""
    kept: list[int] = []
    corrupt: list[str] = []
    for index in range(len(images)):
        if len(kept) == count:
            break
        try:
            images.square(index)
            kept.append(index)
        except CorruptImage as error:
            corrupt.append(error.file)
    if corrupt:
        print(f"{images.folder}: {len(corrupt)} unreadable images skipped: {listed(corrupt)}", file=sys.stderr)
    return replace(images, chosen=images.chosen[kept])
