"""Offsets and target cells, against grids drawn by hand."""

from __future__ import annotations

import subprocess
import sys

import pytest

from mirai.experiments.offsets import grid_offsets, scan_offsets
from mirai.foresight.neighbourhoods import targets_of

# Cells of a 4x4 grid:      0  1  2  3
#                           4  5  6  7
#                           8  9 10 11
#                          12 13 14 15
NONE = -1
RIGHT = [1, 2, 3, NONE, 5, 6, 7, NONE, 9, 10, 11, NONE, 13, 14, 15, NONE]
BELOW = [4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, NONE, NONE, NONE, NONE]
BELOW_LEFT = [NONE, 4, 5, 6, NONE, 8, 9, 10, NONE, 12, 13, 14, NONE, NONE, NONE, NONE]
TWO_RIGHT = [2, 3, NONE, NONE, 6, 7, NONE, NONE, 10, 11, NONE, NONE, 14, 15, NONE, NONE]


def drawn(offset: tuple[int, int], layout: str) -> list[int]:
    index, valid = targets_of((offset,), layout, 4)
    return index.where(valid, NONE)[:, 0].tolist()


@pytest.mark.parametrize(
    ("offset", "grid"),
    [((0, 0), list(range(16))), ((0, 1), RIGHT), ((1, 0), BELOW), ((1, -1), BELOW_LEFT), ((0, 2), TWO_RIGHT)],
)
def test_2d_targets_are_the_drawn_ones_and_never_wrap(offset: tuple[int, int], grid: list[int]) -> None:
    assert drawn(offset, "2D") == grid


def test_1d_targets_follow_the_scan_over_row_ends_and_stop_with_the_image() -> None:
    assert drawn((0, 1), "1D") == [*range(1, 16), NONE]
    assert drawn((0, 3), "1D") == [*range(3, 16), NONE, NONE, NONE]


def test_missing_pairs_carry_an_index_inside_the_grid() -> None:
    index, _ = targets_of(grid_offsets(9), "2D", 4)
    assert index.min() >= 0
    assert index.max() < 16


def test_columns_follow_the_order_of_the_offsets() -> None:
    index, valid = targets_of(((0, 0), (0, 1), (1, 0)), "2D", 4)
    assert index.shape == valid.shape == (16, 3)
    assert index[5].tolist() == [5, 6, 9]


def test_three_grid_offsets_have_256_240_240_pairs_on_the_papers_grid() -> None:
    _, valid = targets_of(grid_offsets(3), "2D", 16)
    assert valid.sum(dim=0).tolist() == [256, 240, 240]
    assert valid[255].tolist() == [True, False, False]


def test_grid_offsets_are_nearest_first_and_never_before_the_current_position() -> None:
    assert grid_offsets(1) == ((0, 0),)
    assert grid_offsets(3) == ((0, 0), (0, 1), (1, 0))
    assert grid_offsets(4) == ((0, 0), (0, 1), (1, 0), (1, 1))
    assert grid_offsets(9) == ((0, 0), (0, 1), (1, 0), (1, 1), (1, -1), (0, 2), (2, 0), (1, 2), (2, 1))


def test_more_grid_offsets_extend_fewer() -> None:
    assert grid_offsets(20)[:9] == grid_offsets(9)


def test_scan_offsets_are_the_next_tokens() -> None:
    assert scan_offsets(4) == ((0, 0), (0, 1), (0, 2), (0, 3))


def test_offsets_and_schedules_load_no_torch() -> None:
    code = "import sys, mirai.experiments.offsets, mirai.experiments.schedules; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
