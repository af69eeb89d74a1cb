"""The five metrics of one sample set against one reference, with their spread over random halves of the samples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

import numpy as np
from torch import nn
from tqdm import tqdm

from mirai.errors import UserError
from mirai.evaluation.features import Features, check_images, extract
from mirai.evaluation.metrics import Precision, frechet_distance, inception_score, manifold_members, manifold_radii
from mirai.evaluation.reference import Reference
from mirai.evaluation.statistics import feature_statistics, require_enough
from mirai.experiments.recipe import Evaluation
from mirai.randomness import stream


def evaluate(
    images: np.ndarray,
    reference: Reference,
    network: nn.Module,
    recipe: Evaluation,
    *,
    seed: int = 0,
    progress: bool = True,
) -> dict[str, Any]:
    """Metrics of sample images (n, H, W, 3) uint8, in the order they were drawn -> what `evaluate_features` gives.

    UserError, before any feature is computed, for images that are not uint8 or too few for the statistics.
    """
    check_images(images, "sample images")
    check_number(len(images), reference, recipe)
    features = extract(network, images, progress=progress, what="samples")
    return evaluate_features(features, reference, recipe, seed=seed, progress=progress)


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
    features: Features, reference: Reference, recipe: Evaluation, *, seed: int = 0, progress: bool = True
) -> dict[str, Any]:
    """Metrics of the features of n samples.

    Keys: fid, sfid, inception_score, precision and recall as ADM computes them (float16 distances), both again as
    `*_float32`, num_samples, num_reference, and `spread`: the same metrics' standard deviations (see `_spread`).
    """
    check_number(len(features), reference, recipe)
    radii = {dtype: manifold_radii(reference.manifold, recipe.neighbours, dtype) for dtype in get_args(Precision)}
    metrics = _metrics(features, reference, radii, recipe)
    counts = {"num_samples": len(features), "num_reference": len(reference.manifold)}
    return {**metrics, **counts, "spread": _spread(features, reference, radii, recipe, seed, progress)}


def _metrics(
    features: Features, reference: Reference, reference_radii: Mapping[Precision, np.ndarray], recipe: Evaluation
) -> dict[str, float]:
    metrics = {
        "fid": frechet_distance(feature_statistics(features.pooled), reference.pooled),
        "sfid": frechet_distance(feature_statistics(features.spatial), reference.spatial),
        "inception_score": inception_score(features.logits, recipe.is_split_size),
    }
    for dtype, radii in reference_radii.items():
        sample_radii = manifold_radii(features.pooled, recipe.neighbours, dtype)
        samples_in, references_in = manifold_members(reference.manifold, radii, features.pooled, sample_radii, dtype)
        suffix = "" if dtype == "float16" else f"_{dtype}"
        metrics[f"precision{suffix}"] = float(samples_in.mean())
        metrics[f"recall{suffix}"] = float(references_in.mean())
    return metrics


def _spread(
    features: Features,
    reference: Reference,
    reference_radii: Mapping[Precision, np.ndarray],
    recipe: Evaluation,
    seed: int,
    progress: bool,
) -> dict[str, float]:
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
        draws.append(_metrics(features.take(chosen), reference, reference_radii, recipe))
    return {name: float(np.std([metrics[name] for metrics in draws], ddof=1)) for name in draws[0]}
