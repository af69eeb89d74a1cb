"""The metrics of ADM's evaluation suite as pure functions of features and their statistics.

Letters: n vectors, d features. "Squared distance" is |u|^2 - 2 u.v + |v|^2, never below 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mirai.evaluation.statistics import Statistics

Precision = Literal["float16", "float32"]
BLOCK_ROWS = 1024


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


def manifold_radii(features: np.ndarray, k: int, dtype: Precision, block_rows: int = BLOCK_ROWS) -> np.ndarray:
    """Squared distance (n,) of each vector of features (n, d) to its k-th neighbour, float32.

    ADM takes entry k of the sorted row, where entry 0 is the vector itself: a duplicate counts as a neighbour.
    """
    assert len(features) > k, "k neighbours besides the vector itself"
    blocks = _distance_blocks(features, features, dtype, block_rows)
    nearest = [block.topk(k + 1, dim=1, largest=False).values for _, block in blocks]  # far faster than kthvalue
    return torch.cat(nearest)[:, k].numpy()


def manifold_members(
    reference: np.ndarray,
    reference_radii: np.ndarray,
    samples: np.ndarray,
    sample_radii: np.ndarray,
    dtype: Precision,
    block_rows: int = BLOCK_ROWS,
) -> tuple[np.ndarray, np.ndarray]:
    """Which samples lie in some reference ball (n_samples,), which references in some sample ball (n_reference,)."""
    inside_reference = torch.zeros(len(samples), dtype=torch.bool)
    inside_samples = []
    radii = torch.from_numpy(reference_radii)
    for start, block in _distance_blocks(reference, samples, dtype, block_rows):  # (rows of reference, n_samples)
        inside_reference |= (block <= radii[start : start + len(block), None]).any(dim=0)
        inside_samples.append((block <= torch.from_numpy(sample_radii)).any(dim=1))
    return inside_reference.numpy(), torch.cat(inside_samples).numpy()


def precision_recall(
    reference: np.ndarray, samples: np.ndarray, k: int = 3, dtype: Precision = "float32", block_rows: int = BLOCK_ROWS
) -> tuple[float, float]:
    """Share of samples on the reference manifold, share of reference on the sample manifold (Kynkaanniemi et al., ADM).

    ADM computes distances in float16; "float16" gives its numbers (see `_squared_distances`), "float32" the exact ones.
    """
    radii = [manifold_radii(features, k, dtype, block_rows) for features in (reference, samples)]
    members = manifold_members(reference, radii[0], samples, radii[1], dtype, block_rows)
    return float(members[0].mean()), float(members[1].mean())


def _distance_blocks(u: np.ndarray, v: np.ndarray, dtype: Precision, rows: int) -> Iterator[tuple[int, Tensor]]:
    """(first row, squared distances (rows, len(v)) in float32) over blocks of u: never the full matrix."""
    columns = torch.from_numpy(np.ascontiguousarray(v, dtype=np.float32))
    for start in range(0, len(u), rows):
        block = torch.from_numpy(np.ascontiguousarray(u[start : start + rows], dtype=np.float32))
        yield start, _squared_distances(block, columns, dtype)


def _squared_distances(u: Tensor, v: Tensor, dtype: Precision) -> Tensor:
    """Squared distances (len(u), len(v)).

    "float16" follows ADM's TensorFlow block: inputs, norms, products and every intermediate result are rounded to
    float16, sums run in float32, and a block with a non-finite entry (|u|^2 above 65504) is redone in float32.
    """
    if dtype == "float16":
        distances = _expanded(u.half(), v.half()).float()
        if torch.isfinite(distances).all():
            return distances
    return _expanded(u, v)


def _expanded(u: Tensor, v: Tensor) -> Tensor:
    dtype = u.dtype
    products = (u.float() @ v.float().T).to(dtype)
    norm_u, norm_v = (x.square().sum(dim=1, dtype=torch.float32).to(dtype) for x in (u, v))
    return products.mul_(-2).add_(norm_u[:, None]).add_(norm_v).clamp_(min=0)
