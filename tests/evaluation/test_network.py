from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mirai.errors import UserError
from mirai.evaluation.features import extract
from mirai.evaluation.moments import pixel_moments
from mirai.evaluation.network import SmallFeatureNetwork, load_network, save_network, train_feature_network
from mirai.experiments.recipe import FeatureNetwork

pytestmark = pytest.mark.full

NUM_CLASSES = 3


def recipe(**changes: Any) -> FeatureNetwork:
    values: dict[str, Any] = {
        "name": "discs",
        "kind": "trained",
        "targets": "factors",
        "width": 16,
        "spatial_channels": 2,
        "steps": 60,
        "batch_size": 32,
        "learning_rate": 3e-3,
        "num_images": 400,
    }
    return FeatureNetwork(**(values | changes))


@cache
def discs(n: int = 400) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Discs in three colours -> images, labels (the colour), place and a rare factor (n, 3), where they are valid."""
    rng = np.random.default_rng(0)
    labels, places = rng.integers(NUM_CLASSES, size=n), rng.uniform(4, 12, (n, 2))
    y, x = np.mgrid[:16, :16]
    inside = np.hypot(y - places[:, :1, None], x - places[:, 1:, None]) < 4
    images = (
        rng.integers(0, 30, (n, 16, 16, 3))
        + 200 * inside[..., None] * np.eye(NUM_CLASSES, dtype=int)[labels][:, None, None]
    )
    values = np.column_stack([places, labels]).astype(np.float32)
    valid = np.ones((n, 3), bool)
    valid[rng.random(n) < 0.9, 2] = False
    return images.astype(np.uint8), labels, values, valid


@cache
def trained(steps: int = 60) -> tuple[SmallFeatureNetwork, dict[str, Any]]:
    images, labels, values, valid = discs()
    return train_feature_network(recipe(steps=steps), images, labels, (values, valid), NUM_CLASSES, progress=False)


def test_training_is_a_function_of_the_recipe_and_leaves_the_global_stream_alone() -> None:
    before = torch.get_rng_state()
    images, labels, values, valid = discs()
    again, report = train_feature_network(
        recipe(steps=10), images, labels, (values, valid), NUM_CLASSES, progress=False
    )
    assert torch.equal(torch.get_rng_state(), before)
    network, first_report = trained(steps=10)
    assert report == first_report
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


def test_a_trained_network_reads_off_the_factors_and_an_untrained_one_does_not() -> None:
    _, report = trained()
    _, untrained = trained(steps=1)
    assert report["r2_pooled"] > 0.8 > 0.2 > untrained["r2_pooled"]
    assert report["r2_spatial"] > 0.4 > 0.2 > untrained["r2_spatial"]
    assert report["class_accuracy"] > 0.9  # of three colours, which an untrained network tells apart as well
    assert len(report["r2_pooled_per_target"]) == 3


def test_labels_shape_nothing_but_the_class_head() -> None:
    images, labels, values, valid = discs()
    shuffled = np.roll(labels, 1)
    network, _ = train_feature_network(recipe(steps=10), images, shuffled, (values, valid), NUM_CLASSES, progress=False)
    for name, tensor in trained(steps=10)[0].state_dict().items():
        assert torch.equal(tensor, network.state_dict()[name]) != name.startswith("classes."), name


def test_values_that_are_not_valid_have_no_effect() -> None:
    images, labels, values, valid = discs()
    other = np.where(valid, values, -5).astype(np.float32)
    network, _ = train_feature_network(recipe(steps=10), images, labels, (other, valid), NUM_CLASSES, progress=False)
    assert torch.equal(network.to_pooled.weight, trained(steps=10)[0].to_pooled.weight)


def test_features_of_an_image_do_not_depend_on_its_batch() -> None:
    images = discs()[0][:50]
    one, many = (extract(trained()[0], images, batch_size=size, progress=False) for size in (1, 50))
    for name in ("pooled", "spatial", "logits"):
        np.testing.assert_allclose(getattr(one, name), getattr(many, name), rtol=1e-4, atol=1e-4)


def test_features_are_float32_standardised_and_of_the_widths_of_the_recipe() -> None:
    features = extract(trained()[0], discs()[0], progress=False)
    assert features.pooled.shape == (400, 16)
    assert features.spatial.shape == (400, 4 * 4 * 2)
    assert features.logits.shape == (400, NUM_CLASSES)
    assert features.pooled.dtype == np.float32
    for values in (features.pooled, features.spatial):  # a tenth was not in the training set
        np.testing.assert_allclose(values.mean(axis=0), 0, atol=0.1)
        np.testing.assert_allclose(values.std(axis=0), 1, atol=0.1)


def test_a_network_trains_on_moments_of_images_without_factors() -> None:
    images, labels, _, _ = discs()
    moments = recipe(targets="moments")
    _, report = train_feature_network(moments, images, labels, None, NUM_CLASSES, progress=False)
    assert report["r2_pooled"] > 0.05  # of an untrained one: below 0
    assert len(report["r2_pooled_per_target"]) == 30


def test_moments_are_standardised_and_centroids_follow_the_picture() -> None:
    images, _, values, _ = discs()
    moments = pixel_moments(images)
    assert moments.shape == (400, 30)
    np.testing.assert_allclose(moments.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(moments.std(axis=0), 1, atol=1e-3)
    correlation = np.corrcoef(np.column_stack([moments[:, 6:8], values[:, :2]]), rowvar=False)
    assert correlation[0, 2] > 0.9 > 0.3 > abs(correlation[0, 3])  # row with row
    assert correlation[1, 3] > 0.9


def test_a_moment_that_never_changes_is_zero() -> None:
    grey = np.repeat(discs()[0][..., :1], 3, axis=-1)
    constant = np.broadcast_to(grey[:1], grey.shape)
    assert np.isfinite(pixel_moments(grey)).all()
    np.testing.assert_array_equal(pixel_moments(constant), 0)


def test_a_saved_network_gives_the_same_features_and_an_altered_file_is_named(tmp_path: Path) -> None:
    network, report = trained()
    save_network(tmp_path / "features.json", network, recipe(), report)
    again = load_network(tmp_path / "features.json")
    before, after = (extract(net, discs()[0][:5], progress=False) for net in (network, again))
    np.testing.assert_array_equal(before.pooled, after.pooled)
    np.testing.assert_array_equal(before.logits, after.logits)

    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"abcd")
    with pytest.raises(UserError, match=r"weights\.safetensors was altered"):
        load_network(tmp_path / "features.json")


def test_images_whose_side_is_no_multiple_of_eight_are_refused() -> None:
    images, labels, values, valid = discs()
    with pytest.raises(UserError, match="multiples of 8, got 12x12"):
        train_feature_network(recipe(), images[:, :12, :12], labels, (values, valid), NUM_CLASSES, progress=False)
