"""Randomness without memory: a draw is a function of seed, purpose and indices, and of nothing drawn before."""

from __future__ import annotations

import itertools

import numpy as np

from mirai.randomness import integer, stream, torch_generator


def test_a_draw_depends_on_nothing_drawn_before() -> None:
    first = stream(0, "view", 3).random(4)
    stream(0, "view", 2).random(100)
    np.random.default_rng(0).random(100)
    assert np.array_equal(stream(0, "view", 3).random(4), first)


def test_seed_purpose_and_every_index_make_another_stream() -> None:
    arguments: list[tuple[int, str, int, int]] = [
        (0, "view", 1, 2),
        (1, "view", 1, 2),
        (0, "order", 1, 2),
        (0, "view", 2, 2),
        (0, "view", 1, 3),
    ]
    for one, other in itertools.combinations(arguments, 2):
        assert not np.array_equal(stream(*one).random(4), stream(*other).random(4)), (one, other)


def test_streams_are_the_same_on_every_machine_and_in_every_release() -> None:
    """Philox is one of the streams that numpy keeps; results made last year must come out again."""
    assert stream(7, "view", 3).integers(1000, size=5).tolist() == [416, 445, 706, 304, 110]
    assert integer(7, "dropout", 3, 0) == 7651165241855024391


def test_an_integer_fits_a_torch_seed() -> None:
    assert all(0 <= integer(seed, "a purpose", step) < 2**63 for seed in range(10) for step in range(100))


def test_a_torch_generator_is_seeded_by_the_same_arguments_and_leaves_the_global_state_alone() -> None:
    import torch

    before = torch.get_rng_state()
    first = torch.rand(3, generator=torch_generator(0, "heads", 1))
    assert torch.equal(torch.rand(3, generator=torch_generator(0, "heads", 1)), first)
    assert not torch.equal(torch.rand(3, generator=torch_generator(0, "heads", 2)), first)
    assert torch.equal(torch.get_rng_state(), before)
