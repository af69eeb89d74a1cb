from __future__ import annotations

import numpy as np
import pytest

from mirai.evaluation.coherence import coherence, left_right_error, tile_period_error, up_down_error

NAMES = ("mirror-mask", "other", "skyline", "tiles")
RNG = np.random.default_rng(0)


def as_images(values: np.ndarray) -> np.ndarray:
    return (values * 255).round().astype(np.uint8)


def tiles(period: int) -> np.ndarray:
    return np.tile(RNG.random((2, period, period, 3)), (1, 16 // period, 16 // period, 1))


def mirrored() -> np.ndarray:
    left = RNG.random((2, 16, 8, 3))
    return np.concatenate([left, left[:, :, ::-1]], axis=2)


def skyline() -> np.ndarray:
    """Houses and their reflection, each in its own two colours."""
    cover = (RNG.random((2, 8, 16, 1)) > 0.5) * 1.0
    sky, house, water, reflection = np.array([[0.9, 0.8, 0.7], [0.1, 0.5, 0.2], [0.3, 0.4, 0.6], [0.2, 0.9, 0.1]])
    upper = sky + cover * (house - sky)
    return np.concatenate([upper, (water + cover * (reflection - water))[:, ::-1]], axis=1)


@pytest.mark.parametrize("period", [4, 8])
def test_repeated_motifs_have_no_tile_error(period: int) -> None:
    np.testing.assert_allclose(tile_period_error(tiles(period)), 0, atol=1e-12)


def test_mirror_images_have_no_mirror_error() -> None:
    np.testing.assert_allclose(left_right_error(mirrored()), 0, atol=1e-12)
    np.testing.assert_allclose(up_down_error(skyline()), 0, atol=1e-12)


def test_one_changed_motif_costs_its_share() -> None:
    images = tiles(8)[:1]
    images[0, 0, 0] = 1 + images[0, 8, 0]  # one of 64 places differs by 1 downwards; across by what it was and 1 more
    across = np.abs(images[0, 0, 0] - images[0, 0, 8]).mean() / (16 * 8)
    assert tile_period_error(images)[0] == pytest.approx((1 / (16 * 8) + across) / 2)


def test_errors_of_noise_are_those_of_independent_pixels() -> None:
    noise = RNG.random((20, 16, 16, 3))
    assert tile_period_error(noise).mean() == pytest.approx(1 / 3, rel=0.05)  # mean |u - v| of uniform numbers
    assert left_right_error(noise).mean() == pytest.approx(1 / 3, rel=0.05)
    assert up_down_error(noise).mean() == pytest.approx(1 / 4, rel=0.05)  # mean |u - 1/2|: no map explains anything


@pytest.mark.parametrize("half", [slice(None, 8), slice(8, None)])
def test_a_half_without_structure_reflects_nothing(half: slice) -> None:
    images = skyline()
    images[:, half] = 0.5
    assert up_down_error(images).min() > 0.05


def test_a_shifted_reflection_is_an_error() -> None:
    images = skyline()
    images[:, 8:] = np.roll(images[:, 8:], 3, axis=2)
    assert up_down_error(images).min() > 0.05


def test_each_measure_covers_the_images_of_its_class() -> None:
    noise = as_images(RNG.random((1, 16, 16, 3)))
    images = np.concatenate([as_images(x) for x in (tiles(8), mirrored(), skyline())] + [noise])
    labels = np.array([3, 3, 0, 0, 2, 2, 3])
    result = coherence(images, labels, NAMES)
    assert {name: entry["count"] for name, entry in result.items()} == {
        "tile_period_error": 3,
        "left_right_error": 2,
        "up_down_error": 2,
    }
    assert result["left_right_error"]["mean"] == pytest.approx(0, abs=1e-6)
    assert result["up_down_error"]["mean"] == pytest.approx(0, abs=5e-3)  # rounding to uint8
    expected = tile_period_error(noise / 255).item() / 3
    assert result["tile_period_error"]["mean"] == pytest.approx(expected, rel=1e-5)


def test_classes_that_are_not_there_have_no_measure() -> None:
    images = as_images(tiles(4))
    assert coherence(images, np.array([0, 1]), tuple("0123456789")) == {}
    assert set(coherence(images, np.array([3, 3]), NAMES)) == {"tile_period_error"}
