"""Which images and views make up a training step: a pure function of the step, so nothing has to be saved to resume."""

from __future__ import annotations

from functools import lru_cache
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from mirai.randomness import stream

Indices = npt.NDArray[np.int64]
T = TypeVar("T", bound=np.generic)


@lru_cache(maxsize=2)
def _permutation(seed: int, num_images: int, number: int) -> Indices:
    order = stream(seed, "order", number).permutation(num_images)
    order.setflags(write=False)
    return order


def batch_indices(step: int, *, seed: int, num_images: int, num_views: int, batch_size: int) -> tuple[Indices, Indices]:
    """Image ids (B,) and view ids (B,) of a step, counted from 0.

    Each pass is a permutation of the whole data set without its incomplete last batch; a set smaller than one batch is
    walked through pass after pass. A virtual epoch plays no part here.
    """
    usable = num_images // batch_size * batch_size or num_images
    positions = np.arange(step * batch_size, (step + 1) * batch_size)
    passes = positions // usable
    images = [
        _permutation(seed, num_images, number)[positions[passes == number] % usable]
        for number in range(passes[0], passes[-1] + 1)
    ]
    return np.concatenate(images), stream(seed, "view", step).integers(num_views, size=batch_size)


def rank_slice(rows: npt.NDArray[T], rank: int, ranks: int) -> npt.NDArray[T]:
    """The contiguous rows (B / ranks, ...) of a global batch that one rank works on; together always the same rows."""
    assert len(rows) % ranks == 0, f"a batch of {len(rows)} does not divide by {ranks} ranks"
    share = len(rows) // ranks
    return rows[rank * share : (rank + 1) * share]
