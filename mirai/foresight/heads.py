"""Projection heads rho_k: REPA's three-layer SiLU MLP, one per offset (Sec. B, Table 9)."""

from __future__ import annotations

import torch
from torch import nn

from mirai.foresight.layers import xavier_linear


def projection_head(width: int, hidden_width: int, target_width: int, generator: torch.Generator) -> nn.Sequential:
    """One rho: (..., width) -> (..., target_width); Xavier-uniform weights, zero biases, as REPA.

    7,344,896 parameters at 768 -> 2048 -> 2048 -> 768. Heads stay separate modules, not one batched weight: biases of
    one axis are what keeps them out of weight decay (reading 9.20).
    """
    return nn.Sequential(
        xavier_linear(width, hidden_width, generator),
        nn.SiLU(),
        xavier_linear(hidden_width, hidden_width, generator),
        nn.SiLU(),
        xavier_linear(hidden_width, target_width, generator),
    )


def token_head(width: int, codebook_size: int) -> nn.Sequential:
    """One output-level rho: (..., width) -> logits (..., codebook_size), an RMS norm and a linear layer (reading 9.14).

    Starts at zero as LlamaGen's own output head does: the first loss is ln V and gives the trunk no gradient.
    """
    linear = nn.utils.skip_init(nn.Linear, width, codebook_size, bias=False)
    nn.init.zeros_(linear.weight)
    return nn.Sequential(nn.RMSNorm(width, eps=1e-5), linear)
