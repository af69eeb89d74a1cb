"""The order in which a model writes an image: LlamaGen's raster scan, or the groups of PAR (parallelised AR).

Outside the model a token is known by its raster cell; the model alone has a sequence, and slots that hold and predict
its tokens. Letters: N tokens, P tokens of a group, T slots.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

NO_CELL = -1  # in place of a raster cell: a slot that holds no token


@dataclass(frozen=True)
class TokenOrder:
    """PAR cuts the grid into P equal square regions. Their first tokens are written one by one; after that all regions
    go on in step, each in raster order, P tokens at once. P = 1 is the raster scan.

    Slot s predicts token s of the sequence. It holds: 0 the class; 1..P the tokens 0..P-1; P+1..2P-1 the special
    embeddings; s >= 2P the token s-P, which is the same region's latest.
    """

    grid_side: int
    group_size: int = 1  # P

    def __post_init__(self) -> None:
        across = math.isqrt(self.group_size)
        assert across**2 == self.group_size, "the regions form a square"
        assert self.grid_side % across == 0, "the regions are equal"
        assert self.is_raster or self.grid_side > across, "regions of one token are no groups"

    @property
    def is_raster(self) -> bool:
        """Whether sequence and raster scan are the same, and no special embedding is there."""
        return self.group_size == 1

    @property
    def num_tokens(self) -> int:
        """N, and the number of slots that predict."""
        return self.grid_side**2

    @property
    def groups(self) -> list[range]:
        """The tokens that are written at once, in order; these are also the slots that predict them."""
        size = self.group_size
        starts = range(size, self.num_tokens, size)
        return [range(first, first + 1) for first in range(size)] + [range(first, first + size) for first in starts]

    def cells(self) -> Tensor:
        """Raster cell of every token of the sequence (N,)."""
        across = math.isqrt(self.group_size)
        side = self.grid_side // across
        grid = torch.arange(self.num_tokens).view(across, side, across, side)  # region row, row; region column, column
        return grid.permute(1, 3, 0, 2).flatten()

    def positions(self) -> Tensor:
        """Place in the sequence of every raster cell (N,)."""
        return self.cells().argsort()

    def arrange(self, label: Tensor, tokens: Tensor, special: Tensor | None) -> Tensor:
        """What successive slots hold: label (B,1,..), tokens (B,M,..) in sequence order, special (B,P-1,..) -> (B,P+M,..)."""
        if special is None:
            return torch.cat([label, tokens], dim=1)
        size = self.group_size
        return torch.cat([label, tokens[:, :size], special, tokens[:, size:]], dim=1)

    def slot_cells(self) -> Tensor:
        """Raster cell of the token that each slot holds, NO_CELL for class and special slots, (N+P,)."""
        nothing = torch.full((1, self.group_size), NO_CELL)
        return self.arrange(nothing[:, :1], self.cells()[None], nothing[:, 1:])[0]

    def mask(self) -> Tensor | None:
        """Which slot (row) may attend to which (column), (N+P,N+P): those of earlier groups and its own.

        None where that is plainly causal. The last P slots predict nothing; they hold the last group's tokens.
        """
        if self.is_raster:
            return None
        groups = [*self.groups, range(self.num_tokens, self.num_tokens + self.group_size)]
        group = torch.tensor([number for number, slots in enumerate(groups) for _ in slots])
        return group[:, None] >= group
