"""The order of training images: a pure function of the step."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mirai.data import batches
from mirai.data.batches import batch_indices, rank_slice

SETTINGS: dict[str, Any] = {"seed": 0, "num_images": 103, "num_views": 10, "batch_size": 8}
STEPS_PER_PASS = 12  # 7 of 103 images are left over


def test_each_pass_covers_every_image_at_most_once_and_drops_only_the_last_partial_batch() -> None:
    left_out = []
    for number in range(5):
        steps = range(number * STEPS_PER_PASS, (number + 1) * STEPS_PER_PASS)
        seen = np.concatenate([batch_indices(step, **SETTINGS)[0] for step in steps])
        assert len(set(seen.tolist())) == 96
        left_out.append(set(range(103)) - set(seen.tolist()))
    assert len(set.union(*left_out)) > 7, "every pass leaves out the same images"


def test_a_set_that_divides_into_batches_is_covered_completely_in_changing_order() -> None:
    settings = SETTINGS | {"num_images": 96}
    passes = [np.concatenate([batch_indices(p * 12 + k, **settings)[0] for k in range(12)]) for p in range(2)]
    assert all(sorted(images) == list(range(96)) for images in passes)
    assert not np.array_equal(passes[0], passes[1])


def test_a_step_is_the_same_after_a_restart() -> None:
    wanted = [batch_indices(step, **SETTINGS) for step in range(30)]
    batches._permutation.cache_clear()
    for step in (29, 3, 17):
        np.testing.assert_array_equal(batch_indices(step, **SETTINGS), wanted[step])


def test_a_set_smaller_than_a_batch_is_walked_through_evenly() -> None:
    settings = SETTINGS | {"num_images": 5}
    seen = np.concatenate([batch_indices(step, **settings)[0] for step in range(5)])
    assert np.bincount(seen).tolist() == [8] * 5
    assert all(sorted(seen[start : start + 5]) == list(range(5)) for start in range(0, 40, 5))


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_any_number_of_ranks_sees_the_same_samples_together(ranks: int) -> None:
    for rows in batch_indices(5, **SETTINGS):
        shares = [rank_slice(rows, rank, ranks) for rank in range(ranks)]
        assert {len(share) for share in shares} == {8 // ranks}
        np.testing.assert_array_equal(np.concatenate(shares), rows)


def test_views_are_uniform_and_drawn_anew_for_each_step_and_seed() -> None:
    views = np.stack([batch_indices(step, **SETTINGS)[1] for step in range(2000)])
    counts = np.bincount(views.ravel(), minlength=10)
    assert counts.min() > 1450  # 1600 expected, standard deviation 38
    assert counts.max() < 1750
    assert len(np.unique(views, axis=0)) > 1990
    assert not np.array_equal(views[0], batch_indices(0, **(SETTINGS | {"seed": 1}))[1])


def test_one_view_is_always_view_zero() -> None:
    assert not batch_indices(3, **(SETTINGS | {"num_views": 1}))[1].any()


def test_seeds_order_the_images_differently() -> None:
    assert not np.array_equal(batch_indices(0, **SETTINGS)[0], batch_indices(0, **(SETTINGS | {"seed": 1}))[0])
