"""The epochs that a method needs are known between two measured points, no closer."""

from __future__ import annotations

import pytest

from mirai.analysis.convergence import Goal, Interval, epochs_to_reach, first_reached, goal, speed_up
from mirai.experiments.plan import plan_grid
from mirai.experiments.recipe import Run
from tests.analysis.pretend import edited, pretend_all

CURVE = {40: 9.0, 80: 6.0, 300: 5.0}


@pytest.mark.parametrize(
    ("value", "interval", "printed"),
    [
        (5.5, Interval(80, 300), "80–300"),
        (6.0, Interval(40, 80), "40–80"),
        (9.5, Interval(None, 40), "≤ 40"),
        (4.9, Interval(300, None), "not within 300"),
    ],
)
def test_the_interval_ends_at_the_first_point_that_is_as_good(value: float, interval: Interval, printed: str) -> None:
    assert first_reached(CURVE, value, lower=True) == interval
    assert str(interval) == printed


def test_a_score_is_reached_from_below() -> None:
    assert first_reached({40: 100.0, 80: 150.0}, 120.0, lower=False) == Interval(40, 80)


def test_what_is_lost_again_later_was_reached_all_the_same() -> None:
    assert first_reached({40: 9.0, 80: 4.0, 300: 7.0}, 5.0, lower=True) == Interval(40, 80)


def falling(run: Run) -> float:
    """FID by epochs: the baseline ends at 6 after 400 epochs; Mirai-I has 6.5 after 40, Mirai-E 7 after 300."""
    epochs = run.at_epoch or run.epochs
    if run.foresight is None:
        return 10 - epochs / 100
    return 6.5 - epochs / 100 if run.foresight.encoder else 10 - epochs / 100


@pytest.mark.parametrize("curve", ["separate", "trajectory"])
@pytest.mark.usefixtures("project")
def test_every_method_is_held_against_the_end_of_the_baselines_longest_run(curve: str) -> None:
    edited("figure1", figure={"kind": "convergence", "classes": [0], "curve": curve})
    grid = plan_grid("figure1", "digits")
    pretend_all(grid, falling)
    assert goal(grid) == Goal("LlamaGen-B", 400, 6.0)
    assert epochs_to_reach(grid) == {"+ Mirai-I": Interval(40, 80), "+ Mirai-E": Interval(300, None)}


def test_speed_up_is_an_interval_too_and_shrinks_with_the_cost_of_an_epoch() -> None:
    end = Goal("LlamaGen-B", 400, 6.0)
    assert speed_up(Interval(40, 80), end) == (5.0, 10.0)
    assert speed_up(Interval(None, 40), end, cost=1.0662) == (pytest.approx(9.379, abs=1e-3), None)
    assert speed_up(Interval(300, None), end, cost=2.0) == (None, pytest.approx(2 / 3))
