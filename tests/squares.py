"""All squares of a small image set."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mirai.data.images import ImageSet


def load_squares(images: ImageSet, indices: Sequence[int] | None = None) -> np.ndarray:
    """Squares (n, S', S', 3); `indices` None: all."""
    return np.stack([images.square(index) for index in (range(len(images)) if indices is None else indices)])
