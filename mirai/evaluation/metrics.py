"""The metrics of ADM's evaluation suite as pure functions of features and their statistics.

Letters: n vectors, d features. "Squared distance" is |u|^2 - 2 u.v + |v|^2, never below 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from mirai.evaluation.statistics import Statistics
from mirai.numerics import full_float32

Precision = Literal["float16", "float32"]
ADM_BLOCK = (10_000, 10_000)  # rows, columns of distances that ADM looks at together; 0.5 GB


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """|mean_a - mean_b|^2 + tr A + tr B - 2 tr (A B)^(1/2), in float64.

    The last trace is that of the symmetric (A^(1/2) B A^(1/2))^(1/2), which has the same eigenvalues: no complex root,
    no ridge, and singular covariances are fine. Symmetric in its arguments; may be below 0 by rounding.
    """
    assert a.width == b.width, "statistics of different features"
    difference = a.mean - b.mean
    values, vectors = np.linalg.eigh(a.covariance)
    root = vectors * np.sqrt(values.clip(min=0))  # root @ root.T = A
    product = np.linalg.eigvalsh(root.T @ b.covariance @ root)
    trace = np.trace(a.covariance) + np.trace(b.covariance) - 2 * np.sqrt(product.clip(min=0)).sum()
    return float(difference @ difference + trace)


def inception_score(logits: np.ndarray, split_size: int) -> float:
    """Mean over splits of exp(mean KL(p(y|x) || p(y))), of logits (n, classes).

    Splits are consecutive and not shuffled, the last one may be partial (ADM).
    """
    scores = []
    for start in range(0, len(logits), split_size):
        split = logits[start : start + split_size].astype(np.float64)
        split -= split.max(axis=1, keepdims=True)
        log_p = split - np.log(np.exp(split).sum(axis=1, keepdims=True))
        p = np.exp(log_p)
        log_marginal = np.log(p.mean(axis=0).clip(min=np.finfo(np.float64).tiny))
        scores.append(np.exp((p * (log_p - log_marginal)).sum(axis=1).mean()))
    return float(np.mean(scores))


def manifold_radii(
    features: np.ndarray,
    k: int,
    dtype: Precision,
    *,
    block: tuple[int, int] = ADM_BLOCK,
    device: torch.device | str = "cpu",
    progress: bool = False,
) -> np.ndarray:
    """Squared distance (n,) of each vector of features (n, d) to its k-th neighbour, float32.

    ADM takes entry k of the sorted row, where entry 0 is the vector itself: a duplicate counts as a neighbour.
    """
    assert len(features) > k, "k neighbours besides the vector itself"
    nearest = torch.full((len(features), k + 1), torch.inf, device=device)
    blocks = _distance_blocks(features, features, dtype, block, device, "radii" if progress else None)
    for rows, _, distances in blocks:
        found = distances.topk(min(k + 1, distances.shape[1]), dim=1, largest=False).values  # far faster than kthvalue
        nearest[rows] = torch.cat([nearest[rows], found], dim=1).topk(k + 1, dim=1, largest=False).values
    return nearest[:, k].cpu().numpy()


def manifold_members(
    reference: np.ndarray,
    reference_radii: np.ndarray,
    samples: np.ndarray,
    sample_radii: np.ndarray,
    dtype: Precision,
    *,
    block: tuple[int, int] = ADM_BLOCK,
    device: torch.device | str = "cpu",
    progress: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Which samples lie in some reference ball (n_samples,), which references in some sample ball (n_reference,)."""
    of_reference, of_samples = (torch.from_numpy(radii).to(device) for radii in (reference_radii, sample_radii))
    inside_reference = torch.zeros(len(samples), dtype=torch.bool, device=device)
    inside_samples = torch.zeros(len(reference), dtype=torch.bool, device=device)
    blocks = _distance_blocks(reference, samples, dtype, block, device, "manifolds" if progress else None)
    for rows, columns, distances in blocks:  # rows of the reference, columns of the samples
        inside_reference[columns] |= (distances <= of_reference[rows, None]).any(dim=0)
        inside_samples[rows] |= (distances <= of_samples[columns]).any(dim=1)
    return inside_reference.cpu().numpy(), inside_samples.cpu().numpy()


def precision_recall(
    reference: np.ndarray,
    samples: np.ndarray,
    k: int = 3,
    dtype: Precision = "float32",
    block: tuple[int, int] = ADM_BLOCK,
) -> tuple[float, float]:
    """Share of samples on the reference manifold, share of reference on the sample manifold (Kynkaanniemi et al., ADM).

    ADM computes distances in float16; "float16" gives its numbers (see `_squared_distances`), "float32" the exact ones.
    """
    radii = [manifold_radii(features, k, dtype, block=block) for features in (reference, samples)]
    members = manifold_members(reference, radii[0], samples, radii[1], dtype, block=block)
    return float(members[0].mean()), float(members[1].mean())


def kernel_distance(
    a: np.ndarray, b: np.ndarray, *, subsets: int = 100, subset_size: int = 1000, seed: int = 2020
) -> tuple[float, float]:
    """KID of two sets of features: mean and standard deviation over random subsets, by torch-fidelity's own function.

    The squared maximum mean discrepancy, unbiased, for the kernel (u.v / d + 1)^3; subsets and seed are its defaults.
    """
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric

    assert min(len(a), len(b)) >= subset_size, "a subset is drawn without replacement"
    result = kid_features_to_metric(
        torch.from_numpy(a),
        torch.from_numpy(b),
        kid_subsets=subsets,
        kid_subset_size=subset_size,
        rng_seed=seed,
        verbose=False,
    )
    return result[KEY_METRIC_KID_MEAN], result[KEY_METRIC_KID_STD]


def _distance_blocks(
    u: np.ndarray,
    v: np.ndarray,
    dtype: Precision,
    block: tuple[int, int],
    device: torch.device | str,
    shown: str | None,
) -> Iterator[tuple[slice, slice, Tensor]]:
    """Blocks of the squared distances of all u to all v, row by row: (rows, columns, float32 distances).

    Never the full matrix, which for 50,000 vectors would be 10 GB. `shown` names the progress bar.
    """
    places = [
        (slice(row, row + block[0]), slice(column, column + block[1]))
        for row in range(0, len(u), block[0])
        for column in range(0, len(v), block[1])
    ]
    for rows, columns in tqdm(places, desc=f"{shown} {dtype}", unit="block", disable=shown is None or len(places) == 1):
        with full_float32():
            distances = _squared_distances(_on(device, u[rows]), _on(device, v[columns]), dtype)
        yield rows, columns, distances


def _on(device: torch.device | str, features: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(features, dtype=np.float32)).to(device)


def _squared_distances(u: Tensor, v: Tensor, dtype: Precision) -> Tensor:
    """Squared distances (len(u), len(v)).

    "float16" follows ADM's TensorFlow block: inputs, norms, products and every intermediate result are rounded to
    float16, sums run in float32, and a block with a non-finite entry (|u|^2 above 65504) is redone in float32.
    """
    if dtype == "float16":
        distances = _expanded(u.half(), v.half()).float()
        if torch.isfinite(distances.max()):  # a NaN is its maximum
            return distances
    return _expanded(u, v)


def _expanded(u: Tensor, v: Tensor) -> Tensor:
    dtype = u.dtype
    products = (u.float() @ v.float().T).to(dtype)
    norm_u, norm_v = (x.square().sum(dim=1, dtype=torch.float32).to(dtype) for x in (u, v))
    return products.mul_(-2).add_(norm_u[:, None]).add_(norm_v).clamp_(min=0)
