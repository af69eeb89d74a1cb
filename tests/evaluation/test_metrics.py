from __future__ import annotations

import json

import numpy as np
import pytest
from golden_weights import GOLDEN

from mirai.evaluation.metrics import (
    Precision,
    frechet_distance,
    inception_score,
    manifold_members,
    manifold_radii,
    precision_recall,
)
from mirai.evaluation.statistics import Statistics, feature_statistics

ADM = GOLDEN / "adm_metrics"
EXPECTED = json.loads((ADM / "expected.json").read_text())
INPUTS = dict(np.load(ADM / "inputs.npz"))
MANIFOLD = dict(np.load(ADM / "manifold.npz"))
REFERENCE, SAMPLES = INPUTS["ref"], INPUTS["sample"]


def test_statistics_and_frechet_distance_are_those_of_adm() -> None:
    stored = np.load(ADM / "statistics.npz")
    sample, reference = feature_statistics(SAMPLES), feature_statistics(REFERENCE)
    np.testing.assert_allclose(sample.covariance, stored["sigma_sample_f64"], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(reference.mean, stored["mu_ref"], rtol=1e-6, atol=1e-6)
    assert frechet_distance(sample, reference) == pytest.approx(EXPECTED["fid"], rel=1e-6)
    assert frechet_distance(reference, sample) == pytest.approx(EXPECTED["fid_reverse"], rel=1e-6)
    assert frechet_distance(reference, reference) == pytest.approx(EXPECTED["fid_same"], abs=1e-6)


def test_frechet_distance_of_singular_covariances_is_that_of_adm() -> None:
    rows = REFERENCE.shape[1] // 2
    distance = frechet_distance(feature_statistics(SAMPLES[:rows]), feature_statistics(REFERENCE[:rows]))
    assert distance == pytest.approx(EXPECTED["fid_rank_deficient_first_half_dim_rows"], rel=1e-6)


def test_frechet_distance_of_shifted_and_scaled_gaussians_has_its_closed_form() -> None:
    rng = np.random.default_rng(0)
    root = rng.standard_normal((6, 6))
    covariance, shift = root @ root.T, rng.standard_normal(6)
    a, b = Statistics(np.zeros(6), covariance), Statistics(shift, 9 * covariance)
    closed_form = shift @ shift + (3 - 1) ** 2 * np.trace(covariance)
    assert frechet_distance(a, b) == pytest.approx(closed_form, rel=1e-10)


def test_frechet_distance_matches_diagonal_gaussians_in_different_order() -> None:
    variances = np.array([1.0, 4.0, 9.0]), np.array([16.0, 1.0, 0.0])
    a, b = (Statistics(np.zeros(3), np.diag(values)) for values in variances)
    closed_form = ((np.sqrt(variances[0]) - np.sqrt(variances[1])) ** 2).sum()
    assert frechet_distance(a, b) == pytest.approx(closed_form, rel=1e-10)


@pytest.mark.parametrize("split_size", [5000, 100])
def test_inception_score_is_that_of_adm(split_size: int) -> None:
    expected = EXPECTED[f"inception_score_split{split_size}"]
    assert inception_score(INPUTS["logits"], split_size) == pytest.approx(expected, abs=1e-5)


def test_inception_score_splits_follow_the_order_of_the_samples() -> None:
    logits = 50 * np.eye(4)[np.arange(400) % 4]  # certain, all four classes in every split
    assert inception_score(logits, 100) == pytest.approx(4, abs=1e-6)
    by_class = logits[np.argsort(np.arange(400) % 4, kind="stable")]  # one class in each split of 100
    assert inception_score(by_class, 100) == pytest.approx(1, abs=1e-6)
    assert inception_score(by_class, 400) == pytest.approx(4, abs=1e-6)


def test_a_partial_last_split_counts_as_a_split() -> None:
    logits = 50 * np.eye(2)[[0, 1, 0, 1, 0]]
    assert inception_score(logits, 4) == pytest.approx((2 + 1) / 2, abs=1e-6)


@pytest.mark.parametrize("block_rows", [128, 200, 1024])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_precision_and_recall_are_those_of_adm_at_any_block_size(dtype: Precision, block_rows: int) -> None:
    name = {"float32": "float32", "float16": "float16_numpy"}[dtype]
    assert precision_recall(REFERENCE, SAMPLES, 3, dtype, block_rows) == (
        EXPECTED[f"precision_{name}"],
        EXPECTED[f"recall_{name}"],
    )


def test_manifold_radii_and_members_are_those_of_adm() -> None:
    radii = [manifold_radii(features, 3, "float32", block_rows=128) for features in (REFERENCE, SAMPLES)]
    np.testing.assert_allclose(radii[0], MANIFOLD["radii_ref"], atol=1e-3)
    np.testing.assert_allclose(radii[1], MANIFOLD["radii_sample"], atol=1e-3)
    samples_in, references_in = manifold_members(REFERENCE, radii[0], SAMPLES, radii[1], "float32", block_rows=200)
    np.testing.assert_array_equal(samples_in, MANIFOLD["sample_in_ref_manifold"])
    np.testing.assert_array_equal(references_in, MANIFOLD["ref_in_sample_manifold"])


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_radii_are_squared_distances_that_skip_the_point_itself(dtype: Precision) -> None:
    points = np.array([[0, 0], [1, 0], [3, 0], [6, 0]], np.float32)
    assert manifold_radii(points, 1, dtype).tolist() == [1, 1, 4, 9]
    assert manifold_radii(points, 2, dtype).tolist() == [9, 4, 9, 25]


def test_a_duplicate_is_a_neighbour_at_distance_zero() -> None:
    points = np.array([[0, 0], [0, 0], [2, 0]], np.float32)
    assert manifold_radii(points, 1, "float32").tolist() == [0, 0, 4]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_precision_asks_for_samples_near_references_and_recall_the_other_way_round(dtype: Precision) -> None:
    reference = np.array([[0, 0], [1, 0], [2, 0], [3, 0]], np.float32)  # radius 1 each
    samples = np.array([[0, 1], [0, 1.5], [1, 0.5], [90, 0], [91, 0]], np.float32)  # radii .5, .5, sqrt(1.25), 1, 1
    # Within 1 of a reference: (0, 1), just on the border, and (1, .5). The ball of (1, .5) holds (1, 0) and, just on
    # its border, (0, 0) and (2, 0); no ball holds (3, 0).
    assert precision_recall(reference, samples, 1, dtype) == (2 / 5, 3 / 4)


def test_a_set_covers_itself() -> None:
    points = np.random.default_rng(0).standard_normal((50, 4)).astype(np.float32)
    assert precision_recall(points, points, 3, "float32") == (1.0, 1.0)


def test_float16_distances_are_coarser_and_fall_back_to_float32_where_they_overflow() -> None:
    points = np.random.default_rng(0).standard_normal((40, 8)).astype(np.float32)
    exact, rounded = (manifold_radii(points, 3, dtype) for dtype in ("float32", "float16"))
    assert not np.array_equal(exact, rounded)
    np.testing.assert_array_equal(rounded, rounded.astype(np.float16))  # every radius is a float16 number
    far = 200 * points  # squared norms above 65504
    np.testing.assert_array_equal(manifold_radii(far, 3, "float16"), manifold_radii(far, 3, "float32"))
