"""Images to be measured: an array, an image set, an .npz in ADM's format, an image folder, or codes to be decoded.

They are read batch by batch, and never all in memory: 50,000 images of 256 px are 9.8 GB. Letters: n images.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

import numpy as np

from mirai.data.crops import centre_square
from mirai.data.folder import SUFFIXES, open_rgb
from mirai.data.images import ImageSet, centre_images
from mirai.errors import UserError
from mirai.states import sha256
from mirai.tokenizer.store import decoded_batches
from mirai.tokenizer.vqgan import VQGAN

ARRAY = "arr_0"  # ADM's name for the images
# what reading a truncated or altered .npz raises
DAMAGE = (OSError, ValueError, EOFError, RuntimeError, struct.error, zlib.error, zipfile.BadZipFile)


@dataclass(frozen=True)
class Images:
    """uint8 images of one size, read from the start as often as asked for."""

    what: str  # names them in messages and progress bars
    count: int
    size: tuple[int, int]  # height, width
    read: Callable[[int, int], Iterator[np.ndarray]]  # (count, batch size) -> batches (b, H, W, 3) of the first `count`
    digest: Callable[[], str] | None = None  # SHA-256 of what they are made of, where features may be kept for it

    def __len__(self) -> int:
        return self.count

    def first(self, count: int) -> Images:
        """The first `count` of them; UserError if there are not as many."""
        if count > self.count:
            raise UserError(f"{self.what}: the first {count} images are asked for, there are {self.count}")
        return replace(self, count=count)

    def batches(self, batch_size: int = 64) -> Iterator[np.ndarray]:
        """Batches (b, H, W, 3) uint8, in order; UserError where the images turn out to be damaged."""
        return self.read(self.count, batch_size)

    def array(self) -> np.ndarray:
        """All of them (n, H, W, 3): only for small sets."""
        return np.concatenate(list(self.batches()))


def check_images(shape: tuple[int, ...], dtype: np.dtype, what: str) -> None:
    """UserError unless images of this shape and type are uint8 (n, H, W, 3) with n > 0; `what` names them."""
    if dtype != np.uint8:
        raise UserError(
            f"{what} must be uint8 with values 0..255, got {dtype}: convert floats x in [-1, 1] as samplers do, "
            "by clip(127.5 * x + 128, 0, 255).astype(uint8)"
        )
    if len(shape) != 4 or shape[-1] != 3 or not math.prod(shape):
        raise UserError(f"{what} must have the shape (images, height, width, 3), got {shape}")


def in_memory(images: np.ndarray, what: str = "images") -> Images:
    """Images (n, H, W, 3) uint8 that are in memory; UserError for another type or shape."""
    check_images(images.shape, images.dtype, what)

    def read(count: int, batch_size: int) -> Iterator[np.ndarray]:
        return (images[start : min(start + batch_size, count)] for start in range(0, count, batch_size))

    return Images(what, len(images), images.shape[1:3], read)


def of_set(images: ImageSet, what: str) -> Images:
    """The plain centre crops of an image set."""

    def read(count: int, batch_size: int) -> Iterator[np.ndarray]:
        for start in range(0, count, batch_size):
            yield centre_images(images, range(start, min(start + batch_size, count)))

    return Images(what, len(images), (images.resolution, images.resolution), read)


def of_codes(
    codes: np.ndarray, tokenizer: VQGAN, what: str, *, image_size: int | None = None, digest: str | None = None
) -> Images:
    """Codes (n, N) decoded as they are read, on the tokenizer's device, and resized to `image_size` (None: as decoded).

    `digest` is the SHA-256 of codes and tokenizer; the size is added to it.
    """
    side = image_size or math.isqrt(codes.shape[1]) * tokenizer.downsampling

    def read(count: int, batch_size: int) -> Iterator[np.ndarray]:
        return decoded_batches(tokenizer, codes[:count], batch_size, image_size)

    known = None if digest is None else _digest(digest, str(side))
    return Images(what, len(codes), (side, side), read, None if known is None else lambda: known)


def of_path(path: Path, crop: int | None = None) -> Images:
    """Images of an .npz file (arr_0), or of a folder of image files, cropped to a side; UserError for anything else."""
    if path.is_dir():
        return of_folder(path, crop)
    if path.suffix == ".npz" and path.exists():
        return of_npz(path)
    trouble = "is neither an .npz file nor a folder of images" if path.exists() else "does not exist"
    raise UserError(f"{path} {trouble}")


def of_npz(path: Path) -> Images:
    """Images `arr_0` of an .npz in ADM's format, read as a stream, stored or deflated.

    UserError if the array is not there, not uint8 (n, H, W, 3), or the file is damaged, which for changed bytes the
    zip's checksum tells when the last image is read.
    """
    with _images_member(path) as (_, (count, height, width, _)):
        pass

    def read(count: int, batch_size: int) -> Iterator[np.ndarray]:
        with _images_member(path) as (member, shape):
            for start in range(0, count, batch_size):
                wanted = (min(batch_size, count - start), *shape[1:])
                yield np.frombuffer(member.read(math.prod(wanted)), np.uint8).reshape(wanted)

    return Images(str(path), count, (height, width), read, lambda: sha256(path))


@contextlib.contextmanager
def _images_member(path: Path) -> Iterator[tuple[IO[bytes], tuple[int, ...]]]:
    """The images of an .npz as an open file that stands at the first pixel, and their shape."""
    try:
        with zipfile.ZipFile(path) as file:
            if f"{ARRAY}.npy" not in file.namelist():
                held = ", ".join(name.removesuffix(".npy") for name in file.namelist())
                raise UserError(f"{path} has no array {ARRAY}, where ADM keeps images; it holds {held or 'nothing'}")
            with file.open(f"{ARRAY}.npy") as member:
                header = np.lib.format
                version = header.read_magic(member)
                read_header = header.read_array_header_1_0 if version == (1, 0) else header.read_array_header_2_0
                shape, fortran, dtype = read_header(member)
                check_images(shape, dtype, f"{ARRAY} of {path}")
                if fortran:
                    raise UserError(f"{ARRAY} of {path} lies in Fortran order; save np.ascontiguousarray of it")
                if file.getinfo(member.name).file_size - member.tell() != math.prod(shape):
                    raise ValueError(f"{ARRAY} is not as long as its shape {shape} says")
                yield member, shape
    except DAMAGE as error:
        raise UserError(f"{path} is truncated, damaged or no .npz file ({error}); fetch or write it again") from error


def of_folder(folder: Path, crop: int | None = None) -> Images:
    """The image files of a folder and its sub-folders in the order of their paths, as RGB the way PIL converts them.

    `crop`: the side that ADM's centre crop gives all of them. They are decoded by threads. UserError for a folder without
    images, for a file that is none, or one of another size.
    """
    paths = _image_files(folder)
    height, width = _decoded(paths[0], crop).shape[:2]

    def decoded(path: Path) -> np.ndarray:
        pixels = _decoded(path, crop)
        if pixels.shape[:2] != (height, width):
            raise UserError(
                f"{path} has {pixels.shape[1]}x{pixels.shape[0]} pixels, {paths[0].name} {width}x{height}: "
                "images that are measured together must have one size, which --crop gives them"
            )
        return pixels

    def read(count: int, batch_size: int) -> Iterator[np.ndarray]:
        with ThreadPoolExecutor() as threads:
            for start in range(0, count, batch_size):
                yield np.stack(list(threads.map(decoded, paths[start : min(start + batch_size, count)])))

    def digest() -> str:
        with ThreadPoolExecutor() as threads:
            contents = threads.map(sha256, paths)
            return _digest(
                str(crop),
                *(f"{path.relative_to(folder)} {content}" for path, content in zip(paths, contents, strict=True)),
            )

    return Images(str(folder), len(paths), (height, width), read, digest)


def _image_files(folder: Path) -> list[Path]:
    paths = sorted(
        Path(root, name)
        for root, _, names in os.walk(folder, followlinks=True)
        for name in names
        if name.lower().endswith(SUFFIXES) and not name.startswith(".")
    )
    for path in paths:
        if not os.access(path, os.R_OK):
            raise UserError(f"{path} cannot be read (a broken link, or no permission); mend or remove it")
    if not paths and list(folder.glob("shard-*.npz")):
        raise UserError(f"{folder} holds samples that are not all drawn yet; `mirai sample` goes on with them")
    if not paths:
        raise UserError(f"{folder} holds no image ({', '.join(SUFFIXES)}), and no samples.json of codes")
    return paths


def _decoded(path: Path, crop: int | None) -> np.ndarray:
    """Pixels (H, W, 3) of an image file."""
    image = open_rgb(path)[0]
    return np.asarray(image) if crop is None else centre_square(image, crop)


def _digest(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode("utf-8", "surrogateescape")).hexdigest()
