"""Batches of a tokenizer's training, a function of the step: centre crops, or LlamaGen's random crops and flips."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from PIL import Image

from mirai.data.batches import batch_indices
from mirai.data.crops import Pixels
from mirai.data.folder import FolderSet
from mirai.data.images import ImageSet, centre_images
from mirai.experiments.recipe import TokenizerTraining
from mirai.randomness import stream

IN_MEMORY = 2**30  # bytes of centre crops up to which a whole set is kept
THREADS = 32  # that read pictures, at most: more than cores, since some of them wait for the disk
AHEAD = 2  # batches that are read while one is trained on
SMALLEST_SHARE = 0.8  # of a picture's shorter side that a random crop spans


def batches(images: ImageSet | Pixels, plan: TokenizerTraining, first: int) -> Generator[Pixels]:
    """Batches (B, S, S, 3) of step `first`, counted from 0, to the last one.

    Arrays (n, S, S, 3) and small sets are in memory; of others the next batches are read by threads. Close the iterator
    to stop them. UserError for a file that is no image.
    """
    if not isinstance(images, np.ndarray):
        size = 3 * len(images) * images.resolution**2
        if plan.augment or size > IN_MEMORY:
            yield from _read_ahead(images, plan, first)
            return
        images = centre_images(images)
    assert not plan.augment, "random crops are cut from pictures, not from arrays of centre crops"
    for step in range(first, plan.steps):
        yield images[_rows(plan, len(images), step)]


def random_crop(picture: Image.Image, side: int, rng: np.random.Generator) -> Pixels:
    """ADM's random crop of an RGB image -> (side, side, 3), flipped half of the time.

    The shorter side is scaled (BOX while halving, then BICUBIC) to a whole number of pixels from `side` to
    side / SMALLEST_SHARE, then cut anywhere.
    """
    short = int(rng.integers(side, math.ceil(side / SMALLEST_SHARE), endpoint=True))
    while min(picture.size) >= 2 * short:
        picture = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BOX)
    scale = short / min(picture.size)
    picture = picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.BICUBIC)
    left, top = (int(rng.integers(length - side, endpoint=True)) for length in picture.size)
    cut = np.array(picture)[top : top + side, left : left + side]
    return cut[:, ::-1] if rng.random() < 0.5 else cut


def _rows(plan: TokenizerTraining, count: int, step: int) -> np.ndarray:
    if plan.augment:
        return batch_indices(step, seed=plan.seed, num_images=count, num_views=1, batch_size=plan.batch_size)[0]
    return stream(plan.seed, "tokenizer-batch", step).integers(count, size=plan.batch_size)


def _read_ahead(images: ImageSet, plan: TokenizerTraining, first: int) -> Generator[Pixels]:
    def read(step: int, place: int, row: int) -> Pixels:
        if not plan.augment:
            return images.centre(row)
        return random_crop(_picture(images, row), images.resolution, stream(plan.seed, "tokenizer-crop", step, place))

    waiting: deque[list[Future[Pixels]]] = deque()
    with ThreadPoolExecutor(min(THREADS, 2 * (os.cpu_count() or 1))) as pool:
        try:
            for step in range(first, plan.steps + AHEAD):
                if step < plan.steps:
                    rows = _rows(plan, len(images), step)
                    waiting.append([pool.submit(read, step, place, int(row)) for place, row in enumerate(rows)])
                if step >= first + AHEAD:
                    yield np.stack([picture.result() for picture in waiting.popleft()])
        finally:
            pool.shutdown(cancel_futures=True)


def _picture(images: ImageSet, index: int) -> Image.Image:
    """The whole image in RGB: a folder's file, uncut, or what a generated set draws."""
    if isinstance(images, FolderSet):
        return images.picture(index)[0]
    return Image.fromarray(images.centre(index))
