"""The foresight term of Eq. 10 as a module that owns its heads; it fits any model with one hidden state per token.

Letters: B batch, N tokens, K offsets, D width of the model, C width of the targets. Hidden states are by raster cell,
whatever order the model writes the cells in: the state at a cell is the one that predicts its token.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mirai.errors import UserError
from mirai.experiments.recipe import Foresight
from mirai.foresight.heads import TransformerHead, projection_head, token_head
from mirai.foresight.losses import cosine, pair_mean, token_cross_entropy, unit
from mirai.foresight.neighbourhoods import targets_of

CURRENT = (0, 0)


class ForesightObjective(nn.Module):
    """Heads and loss of one foresight recipe: Mirai-E and Mirai-I (internal level) or multi-token prediction (output).

    `target_width` is C at the internal level, the codebook size at the output level. All draws come from `generator`,
    nearest offset first. `positions` (N,) is the place of each cell in the model's sequence, None: raster order.
    The module's state is its heads; lambda is the caller's. UserError for an offset that is past wherever it exists.
    """

    index: Tensor
    valid: Tensor

    def __init__(
        self,
        foresight: Foresight,
        width: int,
        target_width: int,
        grid_side: int,
        generator: torch.Generator,
        positions: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.offsets, self.borders = foresight.offsets, foresight.borders
        self.on_tokens = foresight.level == "output"
        past_counts = foresight.seams == "keep"
        index, valid = targets_of(foresight.offsets, foresight.layout, grid_side, None if past_counts else positions)
        for offset, anywhere in zip(foresight.offsets, valid.any(dim=0), strict=True):
            if not anywhere:
                raise UserError(
                    f"offset {offset} is nowhere foresight: the model's token order has written that cell already"
                )
        self.register_buffer("index", index, persistent=False)  # (N, K)
        self.register_buffer("valid", valid, persistent=False)  # (N, K)
        if self.on_tokens:  # the current position is the model's own head's (reading 9.14)
            heads = [token_head(width, target_width) for offset in self.offsets if offset != CURRENT]
        else:
            assert foresight.head is not None
            if foresight.head.kind != "mlp":
                order = torch.arange(grid_side**2) if positions is None else positions
                seen = order if foresight.head.kind == "causal-transformer" else None
                heads = [TransformerHead(width, target_width, generator, seen) for _ in self.offsets]
            else:
                hidden_width = foresight.head.width
                heads = [projection_head(width, hidden_width, target_width, generator) for _ in self.offsets]
        self.heads = nn.ModuleList(heads)

    def loss(
        self, hidden: Tensor, targets: Tensor, next_token: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Hidden (B, N, D) and targets by cell -> the foresight loss of Eq. 4, and detached terms to log.

        Internal level: hidden is the residual stream after the aligned block, targets are features (B, N, C), which
        get no gradient. Output level: hidden is the stream after the last block, targets are the tokens (B, N), and
        `next_token` (B, N) is the cross-entropy of the model's own head, which counts for the current position.
        Terms: the loss, and per offset the mean cosine or cross-entropy of its valid pairs.
        """
        if self.on_tokens:
            values = self._cross_entropies(hidden, targets, next_token)
            loss, name = pair_mean(values, self.valid, self.borders), "cross-entropy"
        else:
            values = self._cosines(hidden, targets)
            loss, name = -pair_mean(values, self.valid, self.borders), "cosine"
        by_offset = torch.where(self.valid, values.detach(), 0).sum(dim=(0, 1)) / (len(values) * self.valid.sum(dim=0))
        terms = {f"{name}{offset}": mean for offset, mean in zip(self.offsets, by_offset, strict=True)}
        return loss, {"foresight": loss.detach()} | terms

    def _cosines(self, hidden: Tensor, features: Tensor) -> Tensor:
        """-> (B, N, K)."""
        target = unit(features)
        pairs = zip(self.heads, self.index.T, strict=True)
        return torch.stack([cosine(head(hidden), target[:, cells]) for head, cells in pairs], dim=-1)

    def _cross_entropies(self, hidden: Tensor, tokens: Tensor, next_token: Tensor | None) -> Tensor:
        """-> (B, N, K)."""
        heads, values = iter(self.heads), []
        for offset, cells in zip(self.offsets, self.index.T, strict=True):
            if offset == CURRENT:
                assert next_token is not None, "the current position needs the model's own cross-entropy"
                values.append(next_token)
            else:
                values.append(token_cross_entropy(next(heads), hidden, tokens[:, cells]))
        return torch.stack(values, dim=-1)
