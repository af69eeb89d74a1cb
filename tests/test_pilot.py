"""The pilot scale: what it promises beside what every scale keeps (tests/experiments/test_scales.py)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from mirai.data.scenes import SceneSet
from mirai.experiments.grid import load_grid
from mirai.experiments.recipe import EncoderTraining
from mirai.experiments.scale import Scale, load_scale
from mirai.experiments.stages import metrics_stage, state_stage
from mirai.foresight.encoder_training import train_encoder
from mirai.foresight.vit import SmallViT

pytestmark = pytest.mark.full

SIDE, PATCH = 32, 4
TRAINED, FITTED, SCORED = 1000, 1000, 800  # images of the encoder and of the probe
RIDGE = 1e-2


@pytest.fixture
def pilot(project: Path) -> Scale:
    return load_scale("pilot")


def test_arms_are_paired_by_five_seeds_that_share_tokenizer_encoder_and_reference(
    write_grid: Callable[..., str],
) -> None:
    rows = load_grid(write_grid({"arm": "baseline"}, {"arm": "mirai-i"}, {"arm": "mirai-e"}), "pilot").rows
    assert [[run.training.seed for run in row.runs] for row in rows] == [[0, 1, 2, 3, 4]] * 3
    runs = [run for row in rows for run in row.runs]
    assert len({state_stage(run).key for run in runs}) == 15
    assert len({state_stage(run).codes_stage().key for run in runs}) == 1
    assert len({metrics_stage(run).reference_stage().key for run in runs}) == 1
    encoders = {stage.key for run in runs for stage in state_stage(run).needs() if stage.kind == "encoder"}
    assert len(encoders) == 1


def test_nothing_of_the_pilot_has_to_be_downloaded(pilot: Scale) -> None:
    assert pilot.data.source == "scenes"
    assert pilot.tokenizer.weights is None
    assert not any(encoder.timm for encoder in pilot.encoders.values())
    assert pilot.evaluation.features.kind == "trained"
    assert pilot.evaluation.reference is None


def test_the_default_encoder_shares_no_targets_with_the_feature_network(pilot: Scale) -> None:
    encoder = pilot.encoders[pilot.sizes["B"].encoder]
    assert encoder.training is not None
    assert (encoder.training.objective, pilot.evaluation.features.targets) == ("supervised", "factors")


def test_the_pilot_is_larger_than_the_demo(pilot: Scale) -> None:
    demo = load_scale("demo")
    assert pilot.sampling.num_samples > demo.sampling.num_samples
    assert pilot.tokenizer.codebook_size > demo.tokenizer.codebook_size
    assert pilot.data.num_images is not None
    assert demo.data.num_images is not None
    assert pilot.data.num_images > demo.data.num_images


def pictures(scenes: SceneSet) -> np.ndarray:
    return np.stack([scenes.centre(index) for index in range(len(scenes))])


def factor_r2(vit: SmallViT, scenes: SceneSet) -> float:
    """Mean R^2 of the scene factors, each a ridge regression on the mean of the encoder's patch features."""
    with torch.no_grad():
        pixels = torch.from_numpy(pictures(scenes)).permute(0, 3, 1, 2)
        features = torch.cat([vit(part).mean(1) for part in pixels.split(250)]).double()
    features = (features - features[:FITTED].mean(0)) / features[:FITTED].std(0)
    scores = []
    for target, exists in zip(*(torch.from_numpy(array).T for array in scenes.factors()), strict=True):
        rows, target = exists.nonzero()[:, 0], target.double()
        fitted, scored = rows[rows < FITTED], rows[rows >= FITTED]
        x, y = features[fitted], target[fitted] - target[fitted].mean()
        weights = torch.linalg.solve(x.T @ x + RIDGE * len(x) * torch.eye(x.shape[1], dtype=x.dtype), x.T @ y)
        wanted = target[scored] - target[fitted].mean()
        scores.append(1 - (features[scored] @ weights - wanted).square().sum() / wanted.square().sum())
    return float(torch.stack(scores).mean())


def test_an_encoder_trained_on_scenes_says_more_of_their_factors_than_random_weights() -> None:
    """Random weights are a strong baseline, the stronger the wider: a target worth aligning to must beat them."""
    shown = SceneSet(0, "encoder", TRAINED, SIDE, SIDE)
    probed = SceneSet(0, "validation", FITTED + SCORED, SIDE, SIDE)
    found = {}
    for objective in ("supervised", "none"):
        training = EncoderTraining(
            objective=objective,
            width=48,
            num_layers=2,
            num_heads=2,
            steps=120,
            batch_size=32,
            learning_rate=3e-3,
            num_images=TRAINED,
        )
        vit, _ = train_encoder(training, pictures(shown), shown.labels, patch=PATCH, num_classes=10, progress=False)
        found[objective] = factor_r2(vit, probed)
    assert found["supervised"] > found["none"] + 0.03, found
