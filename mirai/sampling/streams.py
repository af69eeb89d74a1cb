"""The random numbers behind each sample: a function of (seed, index of the sample) and of nothing else."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import numpy as np

from mirai.randomness import stream

LABEL_BLOCK = 1024  # uniform labels are drawn in blocks of this many indices, for speed


def uniforms(seed: int, indices: Iterable[int], num_tokens: int) -> np.ndarray:
    """Sample indices (n of them) -> float64 numbers in [0,1), (n,N): one for each token."""
    rows = [stream(seed, "sample-tokens", index).random(num_tokens) for index in indices]
    return np.stack(rows) if rows else np.empty((0, num_tokens))


def labels(seed: int, indices: Iterable[int], num_classes: int, kind: Literal["uniform", "balanced"]) -> np.ndarray:
    """Sample indices -> class labels (n,), int64.

    `uniform`: independent draws, as LlamaGen's. `balanced`: every run of num_classes indices is a permutation of the
    classes; shuffled because the Inception score splits samples in file order.
    """
    indices = np.fromiter(indices, dtype=np.int64)
    block_size = num_classes if kind == "balanced" else LABEL_BLOCK
    blocks, inverse = np.unique(indices // block_size, return_inverse=True)
    if kind == "balanced":
        drawn = [stream(seed, "balanced-labels", int(block)).permutation(num_classes) for block in blocks]
    else:
        drawn = [stream(seed, "uniform-labels", int(block)).integers(num_classes, size=LABEL_BLOCK) for block in blocks]
    return np.stack(drawn)[inverse, indices % block_size]
