"""Which positions a hidden state looks at, as explicit offset lists for a recipe: (rows down, columns right)."""

from __future__ import annotations

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
    ahead = [(down, right) for down in range(k) for right in range(-k, k) if (down, right) >= (0, 0)]
    return tuple(sorted(ahead, key=distance_order)[:k])


def scan_offsets(k: int) -> tuple[Offset, ...]:
    """The next k positions along the raster scan, the current one first (Eq. 7)."""
    assert k > 0
    return tuple((0, step) for step in range(k))
