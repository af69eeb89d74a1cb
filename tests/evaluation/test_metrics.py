from __future__ import annotations

import json

import numpy as np
import pytest
from golden_weights import GOLDEN

from mirai.evaluation.metrics import (
    ADM_BLOCK,
    Precision,
    frechet_distance,
    inception_score,
    kernel_distance,
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
    for name, statistics in (("sample", sample), ("ref", reference)):
        np.testing.assert_allclose(statistics.covariance, stored[f"sigma_{name}_f64"], rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(statistics.mean, stored[f"mu_{name}"], rtol=1e-6, atol=1e-6)
    assert frechet_distance(sample, reference) == pytest.approx(EXPECTED["fid"], rel=1e-6)
    assert frechet_distance(reference, sample) == pytest.approx(EXPECTED["fid_reverse"], rel=1e-6)
    assert frechet_distance(reference, reference) == pytest.approx(EXPECTED["fid_same"], abs=1e-6)


def test_frechet_distance_of_singular_covariances_is_that_of_adm() -> None:
    rows = REFERENCE.shape[1] // 2
    distance = frechet_distance(feature_statistics(SAMPLES[:rows]), feature_statistics(REFERENCE[:rows]))
    assert distance == pytest.approx(EXPECTED["fid_rank_deficient_first_half_dim_rows"], rel=1e-6)
    assert distance == pytest.approx(EXPECTED["torch_fidelity_cross_check"]["fid_rank_deficient"], rel=1e-6)


def test_a_distance_to_statistics_in_adms_float32_is_that_of_adm() -> None:
    stored = np.load(ADM / "statistics.npz")
    read = [Statistics(stored[f"mu_{name}"].astype(float), stored[f"sigma_{name}_f64"]) for name in ("sample", "ref")]
    assert frechet_distance(*read) == pytest.approx(EXPECTED["fid"], rel=1e-6)


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


BLOCKS = [(128, 200), (200, 128), (3, 1000), ADM_BLOCK]


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_precision_and_recall_are_those_of_adm_at_any_block_size(dtype: Precision, block: tuple[int, int]) -> None:
    name = {"float32": "float32", "float16": "float16_numpy"}[dtype]
    for suffix in ("", "_batched128x200"):
        assert precision_recall(REFERENCE, SAMPLES, 3, dtype, block) == (
            EXPECTED[f"precision_{name}{suffix}"],
            EXPECTED[f"recall_{name}{suffix}"],
        )


@pytest.mark.parametrize("block", BLOCKS)
def test_manifold_radii_and_members_are_those_of_adm(block: tuple[int, int]) -> None:
    radii = [manifold_radii(features, 3, "float32", block=block) for features in (REFERENCE, SAMPLES)]
    np.testing.assert_allclose(radii[0], MANIFOLD["radii_ref"], atol=1e-3)
    np.testing.assert_allclose(radii[1], MANIFOLD["radii_sample"], atol=1e-3)
    samples_in, references_in = manifold_members(REFERENCE, radii[0], SAMPLES, radii[1], "float32", block=block)
    np.testing.assert_array_equal(samples_in, MANIFOLD["sample_in_ref_manifold"])
    np.testing.assert_array_equal(references_in, MANIFOLD["ref_in_sample_manifold"])


def adm_radii(features: np.ndarray, k: int, rows: int, columns: int) -> np.ndarray:
    """ADM's radii with numpy: each block in float16, or in float32 if float16 gives a number that is not finite."""

    def distances(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        norms = [np.square(x).sum(axis=1, dtype=np.float32).astype(x.dtype) for x in (u, v)]
        products = (u.astype(np.float32) @ v.astype(np.float32).T).astype(u.dtype)
        return np.maximum(norms[0][:, None] - u.dtype.type(2) * products + norms[1], 0)

    def one(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        half = distances(u.astype(np.float16), v.astype(np.float16))
        return half.astype(np.float32) if np.isfinite(half).all() else distances(u, v)

    n = len(features)
    with np.errstate(over="ignore", invalid="ignore"):
        full = np.block(
            [
                [
                    one(features[row : row + rows], features[column : column + columns])
                    for column in range(0, n, columns)
                ]
                for row in range(0, n, rows)
            ]
        )
    return np.sort(full, axis=1)[:, k]


def test_a_block_that_overflows_is_redone_in_float32_and_no_other_as_in_adm() -> None:
    points = np.random.default_rng(0).standard_normal((50, 8)).astype(np.float32)
    points[7] = 120  # its squared norm is above 65504
    blocks, exact, rounded = (adm_radii(points, 3, *block) for block in ((20, 15), (50, 50), (1, 1)))
    assert not np.array_equal(blocks, exact)
    assert not np.array_equal(blocks, rounded)
    np.testing.assert_allclose(manifold_radii(points, 3, "float16", block=(20, 15)), blocks, rtol=1e-5)
    np.testing.assert_allclose(manifold_radii(points, 3, "float16"), exact, rtol=1e-5)


def test_a_block_narrower_than_the_neighbours_still_finds_them() -> None:
    points = np.random.default_rng(0).standard_normal((10, 2)).astype(np.float32)
    narrow, whole = (manifold_radii(points, 3, "float32", block=block) for block in ((4, 2), (10, 10)))
    np.testing.assert_allclose(narrow, whole, rtol=1e-5)  # a product of another shape may be summed in another order


def test_kernel_distance_is_the_unbiased_discrepancy_of_a_cubic_kernel() -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((40, 6)).astype(np.float32) + shift for shift in (0, 1))
    k_aa, k_bb, k_ab = ((u.astype(float) @ v.T.astype(float) / 6 + 1) ** 3 for u, v in ((a, a), (b, b), (a, b)))
    np.fill_diagonal(k_aa, 0)
    np.fill_diagonal(k_bb, 0)
    expected = (k_aa.sum() + k_bb.sum()) / (40 * 39) - 2 * k_ab.mean()
    mean, deviation = kernel_distance(a, b, subsets=3, subset_size=40)  # all of both each time
    assert mean == pytest.approx(expected, rel=1e-4)
    assert deviation == pytest.approx(0, abs=1e-4)
    some = [kernel_distance(a, b, subsets=5, subset_size=20, seed=seed) for seed in (0, 0, 1)]
    assert some[0] == some[1] != some[2]
    assert some[0][1] > 0


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
