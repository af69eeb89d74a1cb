"""After how many epochs a method is as good as its baseline ever gets: an interval between measured points."""

from __future__ import annotations

from dataclasses import dataclass

from mirai.analysis.records import LOWER_IS_BETTER, metrics_of, summary
from mirai.experiments.figures import Convergence, Curve
from mirai.experiments.grid import Grid

Points = dict[int, float]  # metric, mean over seeds, by epochs; ascending


@dataclass(frozen=True)
class Interval:
    """Not yet after `after` epochs (None: not measured that early), but after `upto` ones (None: never measured)."""

    after: int | None
    upto: int | None

    def __str__(self) -> str:
        if self.upto is None:
            return f"not within {self.after}"
        return f"≤ {self.upto}" if self.after is None else f"{self.after}–{self.upto}"


@dataclass(frozen=True)
class Goal:
    """Where the longest run of the baseline ended."""

    label: str
    epochs: int
    value: float


def points(grid: Grid) -> dict[str, Points]:
    """The figure's metric (FID) against epochs, for each label."""
    return {
        label: {epochs: summary(metrics_of(row.runs), metric_of(grid)).mean for epochs, row in line.items()}
        for label, line in grid.by_epochs().items()
    }


def metric_of(grid: Grid) -> str:
    """What converges."""
    return grid.figure.metric if isinstance(grid.figure, Curve | Convergence) else "fid"


def goal(grid: Grid) -> Goal:
    """What every method is to reach; grids without a baseline, or with several, are refused when they are read."""
    plain = [row for row in grid.available() if row.runs[0].foresight is None]
    longest = max(plain, key=lambda row: row.epochs)
    value = summary(metrics_of(longest.runs), metric_of(grid)).mean
    return Goal(longest.label, longest.epochs, value)


def epochs_to_reach(grid: Grid) -> dict[str, Interval]:
    """For each label but the baseline's: when it is first at least as good as the baseline's longest run in the end."""
    end, lower = goal(grid), metric_of(grid) in LOWER_IS_BETTER
    return {
        label: first_reached(curve, end.value, lower=lower)
        for label, curve in points(grid).items()
        if label != end.label
    }


def first_reached(curve: Points, value: float, *, lower: bool) -> Interval:
    """Between which epochs of a curve a value is first reached; `lower`: from above."""
    after = None
    for epochs, measured in curve.items():
        if (measured <= value) if lower else (measured >= value):
            return Interval(after, epochs)
        after = epochs
    return Interval(after, None)


def speed_up(interval: Interval, end: Goal, cost: float = 1.0) -> tuple[float | None, float | None]:
    """Baseline's epochs over those needed, each `cost` times as dear -> lower bound (reached) and upper bound (excluded)."""
    low, high = (None if epochs is None else end.epochs / (epochs * cost) for epochs in (interval.upto, interval.after))
    return low, high
