"""The small feature network behind the Frechet distances of small scales, where Inception says nothing.

It is trained by regression on image factors or pixel moments. Classes reach only a head fitted afterwards on the frozen
features, so that these share no targets with a supervised foresight encoder. Letters: B batch, n images, F targets.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from mirai.errors import UserError
from mirai.evaluation.features import Features, extract
from mirai.evaluation.moments import pixel_moments
from mirai.evaluation.sources import check_images
from mirai.experiments.recipe import FeatureNetwork
from mirai.randomness import integer, stream
from mirai.states import load_tensors, publish, read_json, save_tensors

GRID = 4  # side of the spatial map: spatial features are GRID * GRID * spatial_channels
CHANNELS = (32, 48, 64)  # of the trunk, each at half the side of the one before
GROUPS = 8
CLASS_HIDDEN = 128  # of the class head
CLASS_STEPS, CLASS_BATCH, CLASS_RATE = 400, 256, 3e-3  # its training: a second or two
HELD_OUT = 10  # one image in ten is kept for the report


class SmallFeatureNetwork(nn.Module):
    """uint8 images (B, 3, S, S), S a multiple of 8 -> pooled (B, width), spatial (B, 16 * spatial_channels), logits.

    No batch statistics: features of an image do not depend on its batch. Pooled and spatial features are read before
    the heads' ReLU, whose rare outliers would rule a Frechet distance, and standardised to mean 0 and variance 1 over
    the training images, so that a distance's scale says nothing about the training.
    """

    pooled_mean: Tensor
    pooled_scale: Tensor
    spatial_mean: Tensor
    spatial_scale: Tensor

    def __init__(self, width: int, spatial_channels: int, num_targets: int, num_classes: int) -> None:
        super().__init__()
        first, second, last = CHANNELS
        self.trunk = nn.Sequential(
            nn.Conv2d(3 + 2, first, 3, stride=2, padding=1),
            nn.GroupNorm(GROUPS, first),
            nn.ReLU(),
            nn.Conv2d(first, second, 3, stride=2, padding=1),
            nn.GroupNorm(GROUPS, second),
            nn.ReLU(),
            nn.Conv2d(second, last, 3, padding=1),
            nn.GroupNorm(GROUPS, last),
            nn.ReLU(),
            nn.Conv2d(last, last, 3, stride=2, padding=1),
            nn.ReLU(),
        )
        self.to_spatial = nn.Conv2d(last, spatial_channels, 1)
        self.to_pooled = nn.Linear(last * GRID * GRID, width)
        self.targets_from_pooled = nn.Linear(width, num_targets)
        self.targets_from_spatial = nn.Linear(GRID * GRID * spatial_channels, num_targets)
        self.classes = nn.Sequential(nn.Linear(width, CLASS_HIDDEN), nn.ReLU(), nn.Linear(CLASS_HIDDEN, num_classes))
        for name, size in (("pooled", width), ("spatial", GRID * GRID * spatial_channels)):
            self.register_buffer(f"{name}_mean", torch.zeros(size))
            self.register_buffer(f"{name}_scale", torch.ones(size))

    def raw(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Pooled and spatial features (row, column, channel) before standardisation."""
        x = images.float() / 127.5 - 1
        axis = [torch.linspace(-1, 1, side, device=x.device) for side in x.shape[-2:]]
        places = torch.stack(torch.meshgrid(*axis, indexing="ij")).expand(len(x), -1, -1, -1)  # (B, 2, S, S)
        cells = F.adaptive_avg_pool2d(self.trunk(torch.cat([x, places], dim=1)), GRID)  # (B, 64, 4, 4)
        return self.to_pooled(cells.flatten(1)), self.to_spatial(cells).permute(0, 2, 3, 1).flatten(1)

    def predictions(self, pooled: Tensor, spatial: Tensor) -> tuple[Tensor, Tensor]:
        """Targets (B, F) predicted from either raw features."""
        return self.targets_from_pooled(F.relu(pooled)), self.targets_from_spatial(F.relu(spatial))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        pooled, spatial = self.raw(images)
        pooled = (pooled - self.pooled_mean) / self.pooled_scale
        return pooled, (spatial - self.spatial_mean) / self.spatial_scale, self.classes(pooled)


class _Examples(NamedTuple):
    """Images (n, S, S, 3), labels (n,), standardised targets (n, F) and where they are valid (n, F)."""

    images: np.ndarray
    labels: np.ndarray
    targets: np.ndarray
    valid: np.ndarray

    def take(self, rows: np.ndarray) -> _Examples:
        return _Examples(*(array[rows] for array in self))


def train_feature_network(
    recipe: FeatureNetwork,
    images: np.ndarray,
    labels: np.ndarray,
    factors: tuple[np.ndarray, np.ndarray] | None,
    num_classes: int,
    *,
    progress: bool = True,
) -> tuple[SmallFeatureNetwork, dict[str, Any]]:
    """Train on images (n, S, S, 3) uint8 with labels (n,) -> network in eval mode, report on a tenth held out.

    `factors` is (values (n, F), valid (n, F) bool), given exactly when the recipe's targets are factors; a hue should
    come as its cosine and sine. Report: R^2 over all valid targets, R^2 per target, class accuracy.
    """
    assert recipe.width is not None
    assert recipe.spatial_channels is not None
    assert (factors is not None) == (recipe.targets == "factors")
    assert len(images) >= HELD_OUT, "nothing to hold out"
    check_images(images.shape, images.dtype, "training images of the feature network")
    if images.shape[1] % 8 or images.shape[2] % 8:
        sides = f"{images.shape[1]}x{images.shape[2]}"
        raise UserError(f"a trained feature network needs images whose sides are multiples of 8, got {sides}")
    values, valid = factors or (pixel_moments(images), np.array(True))
    valid = np.broadcast_to(valid, values.shape)
    order = stream(recipe.seed, "features-split").permutation(len(images))
    held_out, train = np.split(order, [len(order) // HELD_OUT])
    examples = _Examples(images, labels, _standardised(values, valid, train), valid)

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(integer(recipe.seed, "features-initial"))
        network = SmallFeatureNetwork(recipe.width, recipe.spatial_channels, values.shape[1], num_classes)
    _fit(network, recipe, examples.take(train), progress)
    features = extract(network, images[train], progress=False)
    pooled = torch.from_numpy(_standardise_features(network, features))
    _fit_classes(network.classes, pooled, torch.from_numpy(labels[train]).long(), recipe.seed)
    network.eval().requires_grad_(False)
    return network, _report(network, examples.take(held_out))


def _standardised(values: np.ndarray, valid: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Targets (n, F) float32 with mean 0 and variance 1 over the valid training entries; 0 where not valid."""
    kept = np.where(valid, values, np.nan)[train]
    mean, deviation = np.nanmean(kept, axis=0), np.nanstd(kept, axis=0)
    return np.where(valid, (values - mean) / deviation.clip(min=1e-6), 0).astype(np.float32)


def _fit(network: SmallFeatureNetwork, recipe: FeatureNetwork, examples: _Examples, progress: bool) -> None:
    """Adam with a learning rate that falls to 0 along a cosine; batches are a function of the seed and the step."""
    assert recipe.steps is not None
    assert recipe.learning_rate is not None
    optimiser = torch.optim.Adam(network.parameters(), lr=recipe.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, recipe.steps)
    steps = tqdm(range(recipe.steps), desc="feature network", unit="step", disable=not progress)
    for step in steps:
        rows = stream(recipe.seed, "features-batch", step).integers(len(examples.images), size=recipe.batch_size)
        images, _, target, valid = (torch.from_numpy(array) for array in examples.take(rows))
        heads = network.predictions(*network.raw(images.permute(0, 3, 1, 2)))
        loss = torch.stack([((head - target).square() * valid).sum() for head in heads]).sum() / valid.sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if step % 20 == 0:
            steps.set_postfix(loss=f"{loss.item():.3f}", refresh=False)


def _standardise_features(network: SmallFeatureNetwork, features: Features) -> np.ndarray:
    """Set the network's feature means and scales from the training images -> their pooled features as they are now."""
    for name, values in (("pooled", features.pooled), ("spatial", features.spatial)):
        getattr(network, f"{name}_mean").copy_(torch.from_numpy(values.mean(axis=0)))
        getattr(network, f"{name}_scale").copy_(torch.from_numpy(values.std(axis=0).clip(min=1e-3)))
    return (features.pooled - network.pooled_mean.numpy()) / network.pooled_scale.numpy()


def _fit_classes(head: nn.Module, pooled: Tensor, labels: Tensor, seed: int) -> None:
    """Fit the class head on the finished features (n, width); nothing before it changes."""
    optimiser = torch.optim.Adam(head.parameters(), lr=CLASS_RATE)
    for step in range(CLASS_STEPS):
        rows = torch.from_numpy(stream(seed, "features-classes", step).integers(len(pooled), size=CLASS_BATCH))
        optimiser.zero_grad()
        F.cross_entropy(head(pooled[rows]), labels[rows]).backward()
        optimiser.step()


def _report(network: SmallFeatureNetwork, examples: _Examples) -> dict[str, Any]:
    """R^2 of the targets (1 - residual / variance over valid entries) from either head, and class accuracy."""
    with torch.inference_mode():
        images = torch.from_numpy(examples.images).permute(0, 3, 1, 2)
        heads = dict(zip(("pooled", "spatial"), network.predictions(*network.raw(images)), strict=True))
        predicted = network(images)[2].argmax(dim=1).numpy()
    report: dict[str, Any] = {"images": len(predicted), "class_accuracy": float((predicted == examples.labels).mean())}
    variance = (examples.targets**2 * examples.valid).sum(axis=0).clip(min=1e-6)
    for name, head in heads.items():
        residual = ((head.numpy() - examples.targets) ** 2 * examples.valid).sum(axis=0)
        report[f"r2_{name}"] = float(1 - residual.sum() / variance.sum())
        report[f"r2_{name}_per_target"] = [round(float(r2), 4) for r2 in 1 - residual / variance]
    return report


def save_network(
    manifest: Path, network: SmallFeatureNetwork, recipe: FeatureNetwork, report: Mapping[str, Any]
) -> None:
    """Publish weights.safetensors and the manifest (features.json) beside it."""
    weights = save_tensors(manifest.with_name("weights.safetensors"), network.state_dict())
    sizes = {
        "width": network.to_pooled.out_features,
        "spatial_channels": network.to_spatial.out_channels,
        "num_targets": network.targets_from_pooled.out_features,
        "num_classes": network.classes[-1].out_features,
    }
    publish(
        manifest, {"recipe": recipe.model_dump(mode="json"), "sizes": sizes, "report": report}, {"weights": weights}
    )


def load_network(manifest: Path) -> SmallFeatureNetwork:
    """The network behind a manifest, in eval mode; UserError if a file is missing or altered."""
    content = read_json(manifest)
    with torch.random.fork_rng(devices=[]):
        network = SmallFeatureNetwork(**content["sizes"])
    network.load_state_dict(load_tensors(manifest.parent, content["payloads"]["weights"]))
    return network.eval().requires_grad_(False)
