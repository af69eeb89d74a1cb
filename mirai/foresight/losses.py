"""The foresight losses of one (position, offset) pair, and their mean (Eq. 4).

A pair's loss is the negative cosine at the internal level (Eq. 11), the cross-entropy at the output level (Eq. 5).
Targets are compared head by head, so that no tensor of (B, N, K, C) exists.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

EPS = 1e-6  # lower bound of a vector's norm in the cosine, reading 9.5
ROWS_PER_CHUNK = 2048  # of logits alive at once: 134 MB in float32 at 16,384 codes

Borders = Literal["valid", "all"]


def unit(features: Tensor) -> Tensor:
    """Target features scaled to length 1 in float32, without gradient: (..., C) -> (..., C)."""
    return F.normalize(features.detach().float(), dim=-1, eps=EPS)


def cosine(projected: Tensor, unit_target: Tensor) -> Tensor:
    """Cosine of projections with targets from `unit`, in float32: (..., C) x (..., C) -> (...)."""
    projected = projected.float()
    return (projected * unit_target).sum(-1) / projected.norm(dim=-1).clamp_min(EPS)


def pair_mean(values: Tensor, valid: Tensor, borders: Borders) -> Tensor:
    """Mean of values (B, N, K) over images and the pairs in `valid` (N, K): the sums of Eq. 4 and 11, reading 9.4.

    "valid" divides an image's sum by its number of valid pairs, "all" by N*K as the equations are written. Either way
    lambda multiplies a mean over n and k, so K does not scale it (reading 9.5).
    """
    pairs = valid.sum() if borders == "valid" else valid.numel()
    return torch.where(valid, values, 0).sum() / (len(values) * pairs)


def token_cross_entropy(head: nn.Module, hidden: Tensor, tokens: Tensor) -> Tensor:
    """Cross-entropy of `head`'s logits at hidden (B, N, D) with tokens (B, N) -> (B, N) float32.

    In chunks recomputed in the backward pass: the logits of B*N rows are never alive together.
    """

    def of_rows(rows: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(head(rows).float(), targets, reduction="none")

    chunks = zip(hidden.flatten(0, 1).split(ROWS_PER_CHUNK), tokens.flatten().split(ROWS_PER_CHUNK), strict=True)
    losses = [checkpoint(of_rows, *chunk, use_reentrant=False, preserve_rng_state=False) for chunk in chunks]
    return torch.cat(losses).view(tokens.shape)
