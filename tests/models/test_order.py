"""The order of tokens against PAR's formula and masks, and against sequences drawn by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from golden_weights import GOLDEN

from mirai.models.order import NO_CELL, TokenOrder

ORDERS = [(4, 1), (5, 1), (4, 4), (16, 4), (24, 4), (8, 16), (24, 16)]


def golden(file: str, name: str) -> torch.Tensor:
    with np.load(GOLDEN / "par" / file) as arrays:
        return torch.from_numpy(arrays[name])


@pytest.mark.parametrize(("side", "size"), ORDERS)
def test_the_place_of_a_cell_follows_the_formula_and_its_inverse(side: int, size: int) -> None:
    order, across = TokenOrder(side, size), math.isqrt(size)
    of_region = side // across
    places = [
        size * (of_region * (row % of_region) + column % of_region) + across * (row // of_region) + column // of_region
        for row in range(side)
        for column in range(side)
    ]
    assert order.positions().tolist() == places
    assert order.positions()[order.cells()].tolist() == list(range(side**2))


def test_order_and_inverse_equal_the_reference() -> None:
    order = TokenOrder(4, 4)
    assert torch.equal(order.cells(), golden("teacher_forced.npz", "sequence_to_raster"))
    assert torch.equal(order.positions(), golden("teacher_forced.npz", "raster_to_sequence"))


def test_regions_go_on_in_step() -> None:
    assert TokenOrder(8, 4).cells()[:12].tolist() == [0, 4, 32, 36, 1, 5, 33, 37, 2, 6, 34, 38]


def test_groups_of_one_are_the_raster_scan() -> None:
    order = TokenOrder(4)
    assert order.is_raster
    assert order.cells().tolist() == order.positions().tolist() == list(range(16))
    assert order.slot_cells().tolist() == [NO_CELL, *range(16)]
    assert order.groups == [range(token, token + 1) for token in range(16)]
    assert order.mask() is None


@pytest.mark.parametrize(("side", "size"), ORDERS)
def test_every_token_is_written_once_first_one_by_one_then_a_group_at_a_time(side: int, size: int) -> None:
    groups = TokenOrder(side, size).groups
    assert [token for group in groups for token in group] == list(range(side**2))
    assert [len(group) for group in groups] == [1] * size + [size] * (side**2 // size - 1)


@pytest.mark.parametrize(("side", "size", "steps"), [(16, 4, 67), (24, 4, 147), (24, 16, 51), (16, 1, 256)])
def test_the_papers_grids_take_as_many_steps_as_par_says(side: int, size: int, steps: int) -> None:
    assert len(TokenOrder(side, size).groups) == steps


def test_slots_hold_the_class_the_first_tokens_the_specials_and_then_the_tokens_of_the_group_before() -> None:
    first, later = [0, 2, 8, 10], [1, 3, 9, 11, 4, 6, 12, 14, 5, 7, 13, 15]
    assert TokenOrder(4, 4).slot_cells().tolist() == [NO_CELL, *first, NO_CELL, NO_CELL, NO_CELL, *later]
    label, tokens, special = (torch.tensor([names]) for names in ([0], [1, 2, 3, 4, 5, 6], [-1, -2, -3]))
    assert TokenOrder(4, 4).arrange(label, tokens, special).tolist() == [[0, 1, 2, 3, 4, -1, -2, -3, 5, 6]]


def test_the_mask_equals_the_references_of_training_and_of_generation() -> None:
    mask = TokenOrder(4, 4).mask()
    assert mask is not None
    assert mask.shape == (20, 20)
    assert torch.equal(mask[:19, :19], golden("teacher_forced.npz", "training_mask"))
    assert torch.equal(mask, golden("generate.npz", "generation_mask")[:20, :20])


@pytest.mark.parametrize(("side", "size"), [(5, 4), (6, 16), (4, 16), (8, 3)])
def test_regions_that_are_unequal_single_tokens_or_no_square_are_refused(side: int, size: int) -> None:
    with pytest.raises(AssertionError, match="regions"):
        TokenOrder(side, size)
