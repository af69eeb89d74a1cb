"""Projection heads rho_k, one per offset: REPA's three-layer SiLU MLP, or a transformer block (Sec. B, Table 9)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mirai.foresight.layers import xavier_linear
from mirai.foresight.vit import Block

ATTENTION_HEADS = 4  # of the transformer head


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


class TransformerHead(nn.Sequential):
    """One rho that mixes the N cells of an image: (B, N, width) -> (B, N, target_width); Xavier-uniform weights.

    7,678,464 parameters at 768 -> 768. With `positions` (N,), the place of each cell in the model's sequence, a cell sees
    none that is written later, whose states have seen the tokens it is to foresee; without, all (reading 9.25).
    """

    mask: Tensor | None

    def __init__(
        self, width: int, target_width: int, generator: torch.Generator, positions: Tensor | None = None
    ) -> None:
        super().__init__(Block(width, ATTENTION_HEADS, generator), xavier_linear(width, target_width, generator))
        mask = None if positions is None else torch.where(positions[None, :] <= positions[:, None], 0.0, -torch.inf)
        self.register_buffer("mask", mask, persistent=False)  # (N, N), added to the attention's logits

    def forward(self, hidden: Tensor) -> Tensor:
        """Hidden states by cell."""
        block, linear = self
        projected: Tensor = linear(block(hidden, self.mask))
        return projected


def token_head(width: int, codebook_size: int) -> nn.Sequential:
    """One output-level rho: (..., width) -> logits (..., codebook_size), an RMS norm and a linear layer (reading 9.14).

    Starts at zero as LlamaGen's own output head does: the first loss is ln V and gives the trunk no gradient.
    """
    linear = nn.utils.skip_init(nn.Linear, width, codebook_size, bias=False)
    nn.init.zeros_(linear.weight)
    return nn.Sequential(nn.RMSNorm(width, eps=1e-5), linear)
