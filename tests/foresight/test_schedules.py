"""lambda over a run, and its phases."""

from __future__ import annotations

import math

import pytest

from mirai.experiments.recipe import Cosine, Schedule
from mirai.experiments.schedules import lambda_at, phases


def schedule(kind: str, *values: float, warmup: int = 15) -> Schedule:
    return Schedule(kind=kind, values=values, warmup_epochs=warmup)


def coefficient(schedule: Schedule, epoch: float, epochs: int) -> float:
    """lambda of a whole run; its end belongs to its last phase."""
    timeline = phases(schedule, epochs)
    return lambda_at(next((value for _, end, value in timeline if epoch < end), timeline[-1][2]), epoch)


def cosine(a: float, b: float, epoch: float, total: int) -> float:
    return b + (a - b) * (1 + math.cos(math.pi * epoch / total)) / 2


@pytest.mark.parametrize(
    ("kind", "values", "expected"),
    [  # at epochs        0, 14, 14.99, 15, 26, 27, 39.99, 40, 53, 54, 80 of 80
        ("constant", (2,), [0, 0, 0, 2, 2, 2, 2, 2, 2, 2, 2]),
        ("step", (2, 1), [0, 0, 0, 2, 2, 2, 2, 1, 1, 1, 1]),
        ("thirds", (2, 1, 0.5), [0, 0, 0, 2, 2, 1, 1, 1, 1, 0.5, 0.5]),
        ("cosine", (2, 0), [0, 0, 0, *(cosine(2, 0, e, 80) for e in (15, 26, 27, 39.99, 40, 53, 54, 80))]),
    ],
)
def test_lambda_at_the_ends_of_warm_up_midpoint_thirds_and_run(
    kind: str, values: tuple[float, ...], expected: list[float]
) -> None:
    epochs = [0, 14, 14.99, 15, 26, 27, 39.99, 40, 53, 54, 80]
    got = [coefficient(schedule(kind, *values), epoch, 80) for epoch in epochs]
    assert got == pytest.approx(expected)


def test_a_cosine_runs_from_start_to_end_over_the_total_epochs() -> None:
    without = schedule("cosine", 2, 1, warmup=0)
    assert [coefficient(without, epoch, 300) for epoch in (0, 150, 300)] == pytest.approx([2, 1.5, 1])


def test_switches_lie_at_the_first_whole_epoch_not_before_the_fraction() -> None:
    assert phases(schedule("step", 2, 1, warmup=0), 5) == [(0, 3, 2.0), (3, 5, 1.0)]
    assert phases(schedule("thirds", 3, 2, 1, warmup=0), 8) == [(0, 3, 3.0), (3, 6, 2.0), (6, 8, 1.0)]


def test_the_papers_mirai_e_runs_of_80_and_300_epochs_part_at_epoch_40() -> None:
    step = schedule("step", 2, 1)
    assert phases(step, 80) == [(0, 15, 0.0), (15, 40, 2.0), (40, 80, 1.0)]
    assert phases(step, 300) == [(0, 15, 0.0), (15, 150, 2.0), (150, 300, 1.0)]


def test_the_midpoint_counts_warm_up_and_a_switch_inside_warm_up_is_past() -> None:
    assert phases(schedule("step", 2, 1), 20) == [(0, 15, 0.0), (15, 20, 1.0)]


def test_equal_neighbours_are_one_phase() -> None:
    assert phases(schedule("step", 2, 2, warmup=0), 80) == [(0, 80, 2.0)]
    assert phases(schedule("thirds", 2, 2, 1, warmup=0), 30) == [(0, 20, 2.0), (20, 30, 1.0)]
    assert phases(schedule("constant", 0), 80) == [(0, 80, 0.0)]
    assert phases(schedule("step", 0, 1), 80) == [(0, 40, 0.0), (40, 80, 1.0)]
    assert phases(schedule("cosine", 2, 2), 80) == phases(schedule("constant", 2), 80)


def test_a_cosine_phase_carries_the_total_length() -> None:
    timeline = phases(schedule("cosine", 2, 0), 80)
    assert timeline == [(0, 15, 0.0), (15, 80, Cosine(start=2.0, end=0.0, total_epochs=80))]
    assert timeline != phases(schedule("cosine", 2, 0), 300)


def test_lambda_inside_a_phase_needs_its_coefficient_only() -> None:
    assert lambda_at(0.0, 3.5) == 0.0
    assert lambda_at(2.0, 40.25) == 2.0
    assert lambda_at(Cosine(start=2.0, end=0.0, total_epochs=80), 20.5) == pytest.approx(cosine(2, 0, 20.5, 80))
