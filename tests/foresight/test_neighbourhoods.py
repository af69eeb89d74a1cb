"""Offsets and target cells, against grids drawn by hand."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from mirai.experiments.offsets import distance_order, grid_offsets, scan_offsets
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


def par_positions(side: int, across: int) -> torch.Tensor:
    """Place of every cell in PAR's sequence: local cell by local cell, each in all regions (reference 5)."""
    row, column = torch.arange(side)[:, None], torch.arange(side)
    region = side // across
    local = region * (row % region) + column % region
    return (across**2 * local + across * (row // region) + column // region).flatten()


def test_neighbours_that_par_writes_earlier_are_missing() -> None:
    positions = par_positions(4, 2)
    right = [1, NONE, 3, NONE, 5, NONE, 7, NONE, 9, NONE, 11, NONE, 13, NONE, 15, NONE]
    below = [4, 5, 6, 7, NONE, NONE, NONE, NONE, 12, 13, 14, 15, NONE, NONE, NONE, NONE]
    index, valid = targets_of(((0, 0), (0, 1), (1, 0)), "2D", 4, positions)
    assert index.where(valid, NONE).T.tolist() == [list(range(16)), right, below]
    assert index[1].tolist() == [1, 1, 5]  # a missing pair carries the cell itself


@pytest.mark.parametrize(("across", "seams"), [(2, 16), (4, 48)])
def test_on_the_papers_grid_par_loses_the_seams_between_regions(across: int, seams: int) -> None:
    _, valid = targets_of(grid_offsets(3), "2D", 16, par_positions(16, across))
    assert valid.sum(dim=0).tolist() == [256, 240 - seams, 240 - seams]


def test_neighbours_of_a_group_written_at_once_are_not_past() -> None:
    """Two columns on is the same place in the next region: another member of the same group."""
    _, valid = targets_of(((0, 2), (2, 0)), "2D", 4, par_positions(4, 2))
    assert valid.sum(dim=0).tolist() == [8, 8]


@pytest.mark.parametrize("layout", ["1D", "2D"])
def test_the_raster_scan_is_the_order_that_is_meant_without_one(layout: str) -> None:
    offsets = scan_offsets(6) if layout == "1D" else grid_offsets(9)
    given = targets_of(offsets, layout, 4, torch.arange(16))
    assert all(torch.equal(*pair) for pair in zip(given, targets_of(offsets, layout, 4), strict=True))


def test_grid_offsets_are_nearest_first_and_never_before_the_current_position() -> None:
    assert grid_offsets(1) == ((0, 0),)
    assert grid_offsets(3) == ((0, 0), (0, 1), (1, 0))
    assert grid_offsets(4) == ((0, 0), (0, 1), (1, 0), (1, 1))
    assert grid_offsets(9) == ((0, 0), (0, 1), (1, 0), (1, 1), (1, -1), (0, 2), (2, 0), (1, 2), (2, 1))


def test_more_grid_offsets_extend_fewer() -> None:
    assert grid_offsets(20)[:9] == grid_offsets(9)


def test_no_nearer_position_lies_outside_of_where_grid_offsets_looks() -> None:
    square = sorted(((down, right) for down in range(256) for right in range(-256, 256)), key=distance_order)
    ahead = [offset for offset in square if offset >= (0, 0)]
    assert all(grid_offsets(k) == tuple(ahead[:k]) for k in range(1, 257))
    assert len(grid_offsets(1_000_000 // 16)) == 62_500, "and in no time"


def test_scan_offsets_are_the_next_tokens() -> None:
    assert scan_offsets(4) == ((0, 0), (0, 1), (0, 2), (0, 3))


def test_offsets_and_schedules_load_no_torch() -> None:
    code = "import sys, mirai.experiments.offsets, mirai.experiments.schedules; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
