"""Image sets: labelled squares by index, opened from a data recipe for one use (split)."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from mirai.data.crops import Pixels, Source, square_side
from mirai.data.digits import DigitSet
from mirai.data.folder import Fingerprint, FolderSet, list_images, readable
from mirai.data.scenes import SceneSet
from mirai.errors import UserError
from mirai.experiments.recipe import Data
from mirai.randomness import stream

Split = Literal["train", "tokenizer", "encoder", "features", "reference", "validation"]


class ImageSet(Protocol):
    """Labelled images, each a function of its index."""

    def __len__(self) -> int: ...

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """Classes (n,)."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of all classes, also of those absent from a small set."""

    @property
    def side(self) -> int:
        """S', the side of the square."""

    @property
    def resolution(self) -> int:
        """S, the side of a view."""

    def name(self, index: int) -> str:
        """What a user knows the image by."""

    def read(self, index: int) -> tuple[Pixels, Source]:
        """The square (S', S', 3) views are cut from, and what the image was before it was cut."""

    def square(self, index: int) -> Pixels:
        """The square alone."""

    def centre(self, index: int) -> Pixels:
        """The plain centre crop (S, S, 3)."""

    def factors(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]] | None:
        """Values (n, F) and where they exist (n, F), for generated images."""

    def fingerprint(self) -> Fingerprint | None:
        """State of the folder behind the set, if there is one."""


def open_images(
    data: Data, split: Split, *, count: int | None = None, folder: Path | None = None, fewer: bool = False
) -> ImageSet:
    """The images of a data recipe for one use; `count` takes that many of them, `fewer` all where there are not as many.

    Scenes: every split is a stream of its own; only the training stream depends on `data.seed`, so that whatever the
    seed, the same tokenizer, features and reference serve. Digits: 1,500 for training of any kind, 297 for validation.
    Folder: every split is the folder itself (ADM's reference is the training set too), `count` the head of a
    permutation per split; if unreadable files are to be skipped they are left out here, in the training split by
    `extract_codes`, which decodes everything anyway.
    """
    side = square_side(data)
    images: ImageSet
    if data.source == "scenes":
        available = data.num_images if split == "train" else count
        if available is None:
            raise UserError(f"data set {data.name}: `num_images` must say how many training scenes are drawn")
        wanted = available if count is None else count
        images = SceneSet(data.seed if split == "train" else 0, split, min(wanted, available), side, data.resolution)
    elif data.source == "digits":
        images = DigitSet(split == "validation", count, side, data.resolution)
    else:
        images = _open_folder(data, split, count, folder)
    if count is not None and len(images) < count and not fewer:
        raise UserError(f"data set {data.name} has {len(images)} images for split `{split}`, {count} are asked for")
    if data.num_classes not in (None, len(images.class_names)):
        raise UserError(
            f"data set {data.name} has {len(images.class_names)} classes, its `num_classes` says {data.num_classes}"
        )
    return images


def _open_folder(data: Data, split: Split, count: int | None, folder: Path | None) -> FolderSet:
    if folder is None:
        raise UserError(f"data set {data.name} is a folder of images, but config/site.yaml does not say where it lies")
    names, files = list_images(folder)
    order = np.arange(len(files)) if count is None else stream(0, f"folder-{split}").permutation(len(files))
    if data.corrupt_images == "skip" and split != "train":
        return readable(FolderSet(folder, names, files, order, square_side(data), data.resolution), count)
    return FolderSet(folder, names, files, order[:count], square_side(data), data.resolution)


def centre_images(images: ImageSet, indices: Sequence[int] | None = None, *, progress: bool = False) -> Pixels:
    """Plain centre crops (n, S, S, 3) at the resolution, as reference and validation images are. Threads decode files."""
    chosen = range(len(images)) if indices is None else indices
    centres = np.empty((len(chosen), images.resolution, images.resolution, 3), np.uint8)

    def fill(place: int) -> None:
        centres[place] = images.centre(chosen[place])

    with ThreadPoolExecutor(None if isinstance(images, FolderSet) else 1) as threads:  # drawing keeps Python's lock
        done = threads.map(fill, range(len(chosen)))
        deque(tqdm(done, total=len(chosen), desc="images", disable=not progress), maxlen=0)
    return centres
