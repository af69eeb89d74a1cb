"""Eq. 10 for one batch: next-token cross-entropy plus lambda times the foresight loss."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from mirai.foresight.objective import ForesightObjective
from mirai.models.transformer import Transformer


class TrainingLoss(nn.Module):
    """What is differentiated, as one module, so that data-parallel wrapping sees model and heads together."""

    def __init__(self, model: Transformer, objective: ForesightObjective | None, layer: int | None) -> None:
        super().__init__()
        self.model = model
        self.objective = objective
        self.layer = layer

    def forward(
        self, tokens: Tensor, labels: Tensor, targets: Tensor | None, coefficient: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Tokens (B,N), labels (B,) with dropped ones replaced, targets by cell -> loss, detached terms to log."""
        logits, hidden = self.model(tokens, labels, tap=self.layer)  # (B,N,V), (B,N,D)
        next_token = F.cross_entropy(logits.flatten(0, 1), tokens.flatten(), reduction="none").view_as(tokens)
        loss = next_token.mean()  # Eq. 2
        terms = {"next_token": loss.detach()}
        if self.objective is not None:
            assert hidden is not None
            assert targets is not None
            foresight, foresight_terms = self.objective.loss(hidden, targets, next_token)
            loss = loss + coefficient * foresight
            terms |= foresight_terms
        return loss, terms
