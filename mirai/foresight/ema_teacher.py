"""Mirai-E's foresight encoder: hidden states of the model's own EMA (Sec. 2.3). The EMA is updated by training."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn


class Decoder(Protocol):
    """What the teacher needs of a model."""

    def hidden_states(self, tokens: Tensor, labels: Tensor, layer: int, consumed: bool) -> Tensor:
        """Residual stream after block `layer` (1-based, no norm, later blocks not run): tokens (B, N) -> (B, N, D).

        By cell: the state that has consumed the cell's token, or the one that predicts it.
        """
        ...


class EMATeacher:
    """Targets of every cell from one raw layer of an EMA model.

    Not an nn.Module: nothing that owns a teacher trains it, moves it or saves it. The model is put in eval mode, so it
    sees true labels and no dropout (reading 9.7); the caller's autocast applies.
    """

    def __init__(self, model: nn.Module, layer: int, consumed: bool) -> None:
        self.model = model.eval()
        self.layer = layer
        self.consumed = consumed

    @torch.no_grad()
    def __call__(self, tokens: Tensor, labels: Tensor) -> Tensor:
        """Tokens (B, N) and labels (B,) -> targets (B, N, D), both by cell.

        `consumed`: the target of a cell has seen its token (and all tokens are fed). Otherwise it has seen what was
        written before the cell only, which is what the student sees (reading 9.2).
        """
        assert not self.model.training, "the EMA teacher was switched to training mode"
        model: Decoder = self.model  # type: ignore[assignment]  # the protocol is not visible through nn.Module
        return model.hidden_states(tokens, labels, self.layer, self.consumed)
