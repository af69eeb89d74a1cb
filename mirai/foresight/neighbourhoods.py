"""Offsets turned into the cells whose targets each position is aligned with. Cells are numbered in raster order."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from mirai.experiments.offsets import Offset


def targets_of(
    offsets: tuple[Offset, ...], layout: Literal["1D", "2D"], grid_side: int, positions: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Target cell of every (cell, offset) and whether it exists -> index (N, K) int64, valid (N, K) bool.

    2D offsets never wrap: right of the last column is missing. 1D offsets follow the raster scan into the next row
    and end with the image (Eq. 7, 8; reading 9.4). `positions` (N,) says when the model writes each cell, None: in
    raster order; a neighbour that it writes earlier is past, not foresight, and counts as missing.
    Missing pairs carry the cell itself as index.
    """
    cell = torch.arange(grid_side**2)[:, None]  # (N, 1)
    down, right = torch.tensor(offsets).T  # (K,) each
    if layout == "1D":
        index = cell + right
        valid = index < grid_side**2
    else:
        row, column = cell // grid_side + down, cell % grid_side + right
        index = row * grid_side + column
        valid = (row < grid_side) & (column >= 0) & (column < grid_side)
    index = torch.where(valid, index, cell)
    written = torch.arange(grid_side**2) if positions is None else positions
    valid &= written[index] >= written[cell]
    return torch.where(valid, index, cell), valid
