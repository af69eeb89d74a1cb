"""Offsets turned into the cells whose targets each position is aligned with. Cells are numbered in raster order."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from mirai.experiments.offsets import Offset


def targets_of(offsets: tuple[Offset, ...], layout: Literal["1D", "2D"], grid_side: int) -> tuple[Tensor, Tensor]:
    """Target cell of every (cell, offset) and whether it exists -> index (N, K) int64, valid (N, K) bool.

    2D offsets never wrap: right of the last column is missing. 1D offsets follow the raster scan into the next row
    and end with the image (Eq. 7, 8; reading 9.4). Missing pairs carry the cell itself as index.
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
    return torch.where(valid, index, cell), valid
