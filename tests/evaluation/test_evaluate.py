from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from mirai.errors import UserError
from mirai.evaluation.evaluate import evaluate, evaluate_features
from mirai.evaluation.features import Features, extract
from mirai.evaluation.metrics import frechet_distance, inception_score, precision_recall
from mirai.evaluation.reference import (
    Reference,
    build_reference,
    load_adm_reference,
    load_reference,
    save_reference,
)
from mirai.evaluation.statistics import Statistics, feature_statistics
from mirai.experiments.recipe import Evaluation, FeatureNetwork
from tests.evaluation.projection import WIDTHS, RandomProjection

D, D_S, _ = WIDTHS
NETWORK = RandomProjection()


def pictures(n: int, seed: int, brightness: int = 256) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, brightness, (n, 4, 4, 3), dtype=np.uint8)


def recipe(**changes: Any) -> Evaluation:
    values: dict[str, Any] = {"num_reference": 300, "is_split_size": 50, "neighbours": 2}
    return Evaluation(features=FeatureNetwork(name="random", kind="inception"), **(values | changes))


REFERENCE = build_reference(NETWORK, pictures(300, 0), progress=False)


def test_evaluation_gives_every_metric_of_the_features_in_sample_order() -> None:
    samples = pictures(120, 1, brightness=200)
    metrics = evaluate(samples, REFERENCE, NETWORK, recipe(), progress=False)
    ours, reference = (extract(NETWORK, images, progress=False) for images in (samples, pictures(300, 0)))
    fid, sfid = (
        frechet_distance(feature_statistics(getattr(ours, name)), feature_statistics(getattr(reference, name)))
        for name in ("pooled", "spatial")
    )
    assert metrics["fid"] == pytest.approx(fid)
    assert metrics["sfid"] == pytest.approx(sfid)
    assert metrics["inception_score"] == pytest.approx(inception_score(ours.logits, 50))
    for suffix, dtype in (("", "float16"), ("_float32", "float32")):
        expected = precision_recall(reference.pooled, ours.pooled, 2, dtype)
        assert (metrics[f"precision{suffix}"], metrics[f"recall{suffix}"]) == expected
    assert (metrics["num_samples"], metrics["num_reference"], metrics["spread"]) == (120, 300, {})
    json.dumps(metrics, allow_nan=False)


def test_samples_like_the_reference_score_better_than_darker_ones() -> None:
    same, darker = (
        evaluate(pictures(300, 1, brightness), REFERENCE, NETWORK, recipe(), progress=False) for brightness in (256, 64)
    )
    assert same["fid"] < darker["fid"] / 5
    assert same["sfid"] < darker["sfid"] / 5
    assert same["precision"] > darker["precision"] + 0.2
    assert same["recall"] > darker["recall"] + 0.2


def test_the_spread_is_a_function_of_the_seed_and_covers_every_metric() -> None:
    samples = pictures(120, 1)
    first, again, other = (
        evaluate(samples, REFERENCE, NETWORK, recipe(halves=3), seed=seed, progress=False) for seed in (0, 0, 1)
    )
    assert first == again
    assert first["fid"] == other["fid"]
    assert first["spread"] != other["spread"]
    assert set(first["spread"]) == set(first) - {"num_samples", "num_reference", "spread"}


def test_the_spread_of_a_mean_is_its_standard_error() -> None:
    rng = np.random.default_rng(0)
    n, share = 400, 0.3
    inside = rng.random(n) < share
    manifold = np.linspace(0, 1, 50, dtype=np.float32)[:, None]
    pooled = np.where(inside, rng.random(n), 100 + 10 * np.arange(n)).astype(np.float32)[:, None]
    features = Features(pooled, pooled, np.zeros((n, 2), np.float32))
    statistics = feature_statistics(manifold)
    reference = Reference(statistics, statistics, manifold)
    spread = evaluate_features(features, reference, recipe(halves=200), progress=False)["spread"]
    assert spread["precision_float32"] == pytest.approx(np.sqrt(share * (1 - share) / n), rel=0.2)


@pytest.mark.parametrize(
    ("images", "changes", "complaint"),
    [
        (pictures(120, 1).astype(np.float32), {}, "sample images must be uint8"),
        (pictures(49, 1), {}, "49 samples do not fill one split of the inception score, `is_split_size` is 50"),
        (pictures(39, 1), {"is_split_size": 10}, "39 images are too few for FID features of width 4: give at least 40"),
    ],
)
def test_unfit_samples_are_refused_before_any_feature(
    images: np.ndarray, changes: dict[str, int], complaint: str
) -> None:
    with pytest.raises(UserError, match=complaint):
        evaluate(images, REFERENCE, nn.Module(), recipe(**changes), progress=False)


def test_a_reference_of_too_few_images_is_refused() -> None:
    with pytest.raises(UserError, match="39 images are too few for reference statistics of width 4"):
        build_reference(NETWORK, pictures(39, 0), progress=False)


def test_a_saved_reference_is_read_back_bit_for_bit_and_an_altered_file_is_named(tmp_path: Path) -> None:
    manifest = tmp_path / "reference.json"
    save_reference(manifest, REFERENCE, {"name": "pictures"})
    again = load_reference(manifest)
    np.testing.assert_array_equal(again.manifold, REFERENCE.manifold)
    np.testing.assert_array_equal(again.pooled.covariance, REFERENCE.pooled.covariance)
    np.testing.assert_array_equal(again.spatial.mean, REFERENCE.spatial.mean)
    assert again.pooled.count == 300
    assert json.loads(manifest.read_text())["name"] == "pictures"

    payload = tmp_path / "reference.npz"
    first = payload.read_bytes()
    save_reference(manifest, REFERENCE, {"name": "pictures"})
    assert payload.read_bytes() == first
    payload.write_bytes(first[:-1])
    with pytest.raises(UserError, match=r"reference\.npz is truncated"):
        load_reference(manifest)


def adm_arrays() -> dict[str, np.ndarray]:
    """What an ADM reference file holds, with statistics that are not those of its images."""
    return {
        "arr_0": pictures(300, 0),
        "mu": np.arange(D, dtype=np.float32),
        "sigma": 2 * np.eye(D),
        "mu_s": np.ones(D_S, np.float32),
        "sigma_s": 3 * np.eye(D_S),
    }


def test_an_adm_file_gives_its_own_statistics_and_features_of_its_images(tmp_path: Path) -> None:
    np.savez(tmp_path / "adm.npz", **adm_arrays())
    reference = load_adm_reference(tmp_path / "adm.npz", NETWORK, 300, progress=False)
    np.testing.assert_array_equal(reference.pooled.mean, np.arange(D))
    np.testing.assert_array_equal(reference.spatial.covariance, 3 * np.eye(D_S))
    np.testing.assert_array_equal(reference.manifold, REFERENCE.manifold)
    for statistics in (reference.pooled, reference.spatial):
        assert statistics.mean.dtype == statistics.covariance.dtype == np.float64


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("mu_s", None, r"adm\.npz lacks mu_s"),
        ("sigma", np.eye(D + 1), r"sigma \(d, d\), got \(4,\) and \(5, 5\)"),
        ("mu_s", np.ones(D_S + 1), r"mu_s must have the shape|sigma_s \(d, d\)"),
        ("mu_s", -np.ones(D_S), "mu_s has negative entries"),
        ("arr_0", pictures(299, 0), "holds 299 images, the recipe's `num_reference` is 300"),
        ("arr_0", pictures(300, 0) / 255, "arr_0 of .* must be uint8"),
    ],
)
def test_an_unfit_adm_file_is_refused(tmp_path: Path, name: str, value: np.ndarray | None, complaint: str) -> None:
    arrays = adm_arrays()
    del arrays[name]
    np.savez(tmp_path / "adm.npz", **arrays, **({} if value is None else {name: value}))
    with pytest.raises(UserError, match=complaint):
        load_adm_reference(tmp_path / "adm.npz", NETWORK, 300, progress=False)


def test_an_adm_file_of_other_features_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "adm.npz", **(adm_arrays() | {"mu": np.zeros(7), "sigma": np.eye(7)}))
    with pytest.raises(UserError, match="mu has width 7, the feature network gives 4"):
        load_adm_reference(tmp_path / "adm.npz", NETWORK, 300, progress=False)


def test_a_missing_or_damaged_adm_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"adm\.npz is missing"):
        load_adm_reference(tmp_path / "adm.npz", NETWORK, 300, progress=False)
    np.savez(tmp_path / "adm.npz", **adm_arrays())
    whole = (tmp_path / "adm.npz").read_bytes()
    (tmp_path / "adm.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"adm\.npz is damaged"):
        load_adm_reference(tmp_path / "adm.npz", NETWORK, 300, progress=False)


def test_unknown_counts_do_not_hinder_an_evaluation() -> None:
    unknown = Reference(
        Statistics(REFERENCE.pooled.mean, REFERENCE.pooled.covariance),
        Statistics(REFERENCE.spatial.mean, REFERENCE.spatial.covariance),
        REFERENCE.manifold,
    )
    samples = pictures(60, 1)
    assert evaluate(samples, unknown, NETWORK, recipe(), progress=False) == evaluate(
        samples, REFERENCE, NETWORK, recipe(), progress=False
    )
