"""Which positions a hidden state looks at, as explicit offset lists for a recipe: (rows down, columns right)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

Offset = tuple[int, int]


def distance_order(offset: Offset) -> tuple[int, bool, int]:
    """Sort key of Eq. 8: nearest first; among equals those not to the left first, then those fewer rows down."""
    down, right = offset
    return (down**2 + right**2, right < 0, down)


def grid_offsets(k: int) -> tuple[Offset, ...]:
    """The k nearest positions on the grid that are not before the current one in raster order (Eq. 8, reading 9.3).

    K=3 is current, right, below (Table 5).
    """
    assert k > 0
    reach = math.isqrt(2 * k) + 2  # the half disc of this radius holds more than k
    ahead = [(down, right) for down in range(reach) for right in range(-reach, reach) if (down, right) >= (0, 0)]
    return tuple(sorted(ahead, key=distance_order)[:k])


def scan_offsets(k: int) -> tuple[Offset, ...]:
    """The next k positions along the raster scan, the current one first (Eq. 7)."""
    assert k > 0
    return tuple((0, step) for step in range(k))


def written_later(offset: Offset, layout: Literal["1D", "2D"], grid_side: int, across: int) -> Iterator[bool]:
    """Of every cell whose target lies in the grid: whether the model writes the target after it, or it is the target.

    PAR cuts the grid into across x across regions and goes on in all of them at once; 1 is the raster scan.
    """
    region, (down, right) = grid_side // across, offset

    def place(row: int, column: int) -> tuple[int, int, int, int]:
        return row % region, column % region, row // region, column // region

    for row in range(grid_side):
        for column in range(grid_side):
            target = (row + down, column + right)
            if layout == "1D":
                target = divmod(row * grid_side + column + right, grid_side)
            if target[0] < grid_side and 0 <= target[1] < grid_side:
                yield place(*target) >= place(row, column)
