"""Gaussian statistics of feature vectors, in float64. Letters: n vectors, d features."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from mirai.errors import UserError

VECTORS_PER_DIMENSION = 10  # below ten vectors per feature, a covariance is mostly the noise of its own estimate


@dataclass(frozen=True)
class Statistics:
    """Mean (d,) and covariance (d, d) with divisor n - 1; `count` is n, None where a file does not say it."""

    mean: np.ndarray
    covariance: np.ndarray
    count: int | None = None

    @property
    def width(self) -> int:
        """d."""
        return len(self.mean)

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        """The statistics as entries `name`_mean, `name`_covariance and `name`_count (0: unknown) of an npz file."""
        count = np.int64(self.count or 0)
        return {f"{name}_mean": self.mean, f"{name}_covariance": self.covariance, f"{name}_count": np.asarray(count)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], name: str) -> Statistics:
        """Inverse of `arrays`."""
        return cls(arrays[f"{name}_mean"], arrays[f"{name}_covariance"], int(arrays[f"{name}_count"]) or None)


def feature_statistics(features: np.ndarray, chunk: int = 4096) -> Statistics:
    """Statistics of features (n, d), n >= 2: np.mean and np.cov in float64, in two passes over chunks of rows."""
    n, width = features.shape
    assert n > 1, "a covariance needs two vectors"
    mean = features.mean(axis=0, dtype=np.float64)
    covariance = np.zeros((width, width))
    for start in range(0, n, chunk):
        centred = features[start : start + chunk] - mean  # float64
        covariance += centred.T @ centred
    return Statistics(mean, covariance / (n - 1), n)


def require_enough(count: int, width: int, what: str) -> None:
    """UserError unless `count` images suffice for a covariance of `width` features (N >= 10 d)."""
    needed = VECTORS_PER_DIMENSION * width
    if count < needed:
        raise UserError(
            f"{count} images are too few for {what} of width {width}: give at least {needed}, "
            f"{VECTORS_PER_DIMENSION} per feature, or choose a narrower feature network"
        )
