from __future__ import annotations

import numpy as np
import pytest

from mirai.errors import UserError
from mirai.evaluation.statistics import Statistics, feature_statistics, require_enough


def offset_features(n: int = 1000, d: int = 5) -> np.ndarray:
    """Features whose mean is large against their spread: sums of squares in float32 would lose the covariance."""
    rng = np.random.default_rng(0)
    return (1000 + rng.standard_normal((n, d)) @ rng.standard_normal((d, d))).astype(np.float32)


@pytest.mark.parametrize("chunk", [7, 1000, 4096])
def test_chunked_statistics_equal_numpy_in_float64(chunk: int) -> None:
    features = offset_features()
    statistics = feature_statistics(features, chunk=chunk)
    np.testing.assert_allclose(statistics.mean, features.astype(np.float64).mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(statistics.covariance, np.cov(features.astype(np.float64), rowvar=False), rtol=1e-9)
    assert statistics.covariance.dtype == np.float64
    assert statistics.count == 1000


def test_ten_images_per_feature_are_enough_and_one_less_is_not() -> None:
    require_enough(640, 64, "FID features")
    with pytest.raises(UserError, match=r"639 images are too few for FID features of width 64: give at least 640"):
        require_enough(639, 64, "FID features")


@pytest.mark.parametrize("count", [None, 12])
def test_statistics_survive_the_round_trip_through_arrays(count: int | None) -> None:
    statistics = Statistics(np.arange(3.0), np.eye(3), count)
    again = Statistics.from_arrays(statistics.arrays("pooled"), "pooled")
    np.testing.assert_array_equal(again.mean, statistics.mean)
    np.testing.assert_array_equal(again.covariance, statistics.covariance)
    assert again.count == count
