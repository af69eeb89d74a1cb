"""Mirai-E's foresight encoder: hidden states of the model's own EMA (Sec. 2.3). The EMA is updated by training."""

from __future__ import annotations

from typing import Literal, Protocol

import torch
from torch import Tensor, nn


class Decoder(Protocol):
    """What the teacher needs of a model."""

    def hidden_states(self, tokens: Tensor, labels: Tensor, layer: int) -> Tensor:
        """Residual stream after block `layer` (1-based, no norm, later blocks not run) over [class, tokens].

        tokens (B, T), labels (B,) -> (B, 1 + T, D).
        """
        ...


class EMATeacher:
    """Targets of every cell from one raw layer of an EMA model.

    Not an nn.Module: nothing that owns a teacher trains it, moves it or saves it. The model is put in eval mode, so it
    sees true labels and no dropout (reading 9.7); the caller's autocast applies.
    """

    def __init__(self, model: nn.Module, layer: int, slot_shift: Literal[0, 1]) -> None:
        self.model = model.eval()
        self.layer = layer
        self.slot_shift = slot_shift

    @torch.no_grad()
    def __call__(self, tokens: Tensor, labels: Tensor) -> Tensor:
        """Tokens (B, N) in raster order and labels (B,) -> targets (B, N, D) by cell.

        Slot shift 1: the target of cell j has consumed token j (slot j + 1, so the last token is fed too). 0: it has
        consumed the tokens before j only (slot j), which is what the student sees (reading 9.2).
        """
        assert not self.model.training, "the EMA teacher was switched to training mode"
        model: Decoder = self.model  # type: ignore[assignment]  # the protocol is not visible through nn.Module
        fed = tokens if self.slot_shift else tokens[:, :-1]
        return model.hidden_states(fed, labels, self.layer)[:, self.slot_shift :]
