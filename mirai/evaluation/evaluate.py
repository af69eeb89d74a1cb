"""The five metrics of one sample set against one reference, with their spread over random halves of the samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from mirai.errors import UserError
from mirai.evaluation.features import Features, device_of, extract
from mirai.evaluation.metrics import Precision, frechet_distance, inception_score, manifold_members, manifold_radii
from mirai.evaluation.reference import Reference
from mirai.evaluation.sources import Images, in_memory
from mirai.evaluation.statistics import feature_statistics, require_enough
from mirai.experiments.recipe import Evaluation
from mirai.randomness import stream


def evaluate(
    images: Images | np.ndarray,
    reference: Reference,
    network: nn.Module,
    recipe: Evaluation,
    *,
    seed: int = 0,
    progress: bool = True,
) -> dict[str, Any]:
    """Metrics of sample images, in the order they were drawn -> what `evaluate_features` gives.

    UserError, before any feature is computed, for images that are not uint8 (n, H, W, 3) or too few for the statistics.
    """
    images = in_memory(images, "sample images") if isinstance(images, np.ndarray) else images
    check_number(len(images), reference, recipe)
    features = extract(network, images, progress=progress)
    return evaluate_features(features, reference, recipe, seed=seed, device=device_of(network), progress=progress)


def check_number(num_samples: int, reference: Reference, recipe: Evaluation) -> None:
    """UserError unless `num_samples` suffice for every metric of the recipe."""
    if num_samples < recipe.is_split_size:
        raise UserError(
            f"{num_samples} samples do not fill one split of the inception score, "
            f"`is_split_size` is {recipe.is_split_size}: draw more samples or make the split smaller"
        )
    require_enough(num_samples, reference.pooled.width, "FID features")
    require_enough(num_samples, reference.spatial.width, "sFID features")


def evaluate_features(
    features: Features,
    reference: Reference,
    recipe: Evaluation,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> dict[str, Any]:
    """Metrics of the features of n samples.

    Keys: what `five_metrics` gives, num_samples, num_reference, and `spread`: the same metrics' standard deviations (see
    `_spread`).
    """
    check_number(len(features), reference, recipe)
    target = Target.of(reference, recipe.neighbours, device=device, progress=progress)
    metrics = five_metrics(features, target, recipe.is_split_size, progress=progress)
    counts = {"num_samples": len(features), "num_reference": len(reference.manifold)}
    return {**metrics, **counts, "spread": _spread(features, target, recipe, seed, progress)}


@dataclass(frozen=True)
class Target:
    """A reference with the radii of its manifold: what several sample sets are measured against."""

    reference: Reference
    neighbours: int
    radii: Mapping[Precision, np.ndarray]  # (n,) each
    device: torch.device | str  # of the distances between samples and reference

    @classmethod
    def of(
        cls, reference: Reference, neighbours: int = 3, *, device: torch.device | str = "cpu", progress: bool = False
    ) -> Target:
        """Compute the radii."""
        radii = {
            dtype: manifold_radii(reference.manifold, neighbours, dtype, device=device, progress=progress)
            for dtype in get_args(Precision)
        }
        return cls(reference, neighbours, radii, device)


def five_metrics(features: Features, target: Target, is_split_size: int, *, progress: bool = False) -> dict[str, float]:
    """fid, sfid, inception_score, precision and recall as ADM computes them, in float16, and both as `*_float32`."""
    reference = target.reference
    metrics = {
        "fid": frechet_distance(feature_statistics(features.pooled), reference.pooled),
        "sfid": frechet_distance(feature_statistics(features.spatial), reference.spatial),
        "inception_score": inception_score(features.logits, is_split_size),
    }
    for dtype, radii in target.radii.items():
        device = target.device
        own_radii = manifold_radii(features.pooled, target.neighbours, dtype, device=device, progress=progress)
        samples_in, references_in = manifold_members(
            reference.manifold, radii, features.pooled, own_radii, dtype, device=device, progress=progress
        )
        suffix = "" if dtype == "float16" else f"_{dtype}"
        metrics[f"precision{suffix}"] = float(samples_in.mean())
        metrics[f"recall{suffix}"] = float(references_in.mean())
    return metrics


def _spread(features: Features, target: Target, recipe: Evaluation, seed: int, progress: bool) -> dict[str, float]:
    """Standard deviation of each metric over `halves` random halves of the samples; empty below two draws.

    A half drawn without replacement varies around the full set as the full set varies around the truth, since
    (1 - 1/2) / (n/2) = 1/n: for a mean this is its standard error, no factor needed. No sample comes twice, which
    would bias a Frechet distance and shrink the manifold. A Frechet distance close to that of two sets of real images
    is quadratic in the noise, and its spread is overstated there (twice). The training's seed is not covered.
    """
    if recipe.halves < 2:
        return {}
    half = len(features) // 2
    draws = []
    for draw in tqdm(range(recipe.halves), desc="spread", unit="half", disable=not progress):
        chosen = np.sort(stream(seed, "evaluation-half", draw).permutation(len(features))[:half])
        draws.append(five_metrics(features.take(chosen), target, recipe.is_split_size))
    return {name: float(np.std([metrics[name] for metrics in draws], ddof=1)) for name in draws[0]}
