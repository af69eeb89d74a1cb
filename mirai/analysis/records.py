"""The numbers behind a table: a row's metrics over its seeds, its own baseline among the rows, the best of its sweep."""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass
from typing import Any

from mirai.experiments import paths
from mirai.experiments.grid import Grid, Row
from mirai.experiments.points import Point
from mirai.experiments.recipe import Run
from mirai.experiments.stages import metrics_stage
from mirai.states import read_json

Document = dict[str, Any]  # a metrics.json

LOWER_IS_BETTER = ("fid", "sfid")  # of METRICS


@dataclass(frozen=True)
class Measured:
    """One metric of a row: mean and standard deviation over seeds, and over random halves of one state's samples."""

    mean: float
    over_seeds: float | None
    over_halves: float | None


@dataclass(frozen=True)
class Best:
    """The lowest mean FID of a sweep of guidance scales, and whether a scale outside the sweep might be lower still."""

    guidance: float
    fid: float
    at_the_end: bool


def metrics_of(runs: tuple[Run, ...]) -> list[Document]:
    """The metrics.json of each run; UserError where one is missing."""
    return [read_json(paths.manifest("metrics", metrics_stage(run).key)) for run in runs]


def summary(documents: list[Document], metric: str) -> Measured:
    """Mean over seeds with both spreads; the one over halves is the mean of the seeds' own."""
    values = [document[metric] for document in documents]
    spreads = [document["spread"][metric] for document in documents if metric in document["spread"]]
    return Measured(
        mean=statistics.fmean(values),
        over_seeds=statistics.stdev(values) if len(values) > 1 else None,
        over_halves=statistics.fmean(spreads) if spreads else None,
    )


def with_baselines(grid: Grid) -> list[tuple[Row, Row | None]]:
    """Each row with the row that is its own baseline: itself for a baseline, None where the grid has none.

    A row that the scale cannot have is found its baseline by its settings, for what the paper says of the two.
    """
    by_states = {_states(row.runs): row for row in reversed(grid.available())}
    by_settings: dict[Point | None, Row] = {
        row.point: row for row in reversed(grid.rows) if row.point is not None and row.point.arm == "baseline"
    }
    return [
        (row, by_states.get(_states(row.baselines)) if row.runs else by_settings.get(row.point and row.point.plain()))
        for row in grid.rows
    ]


def _states(runs: tuple[Run, ...]) -> tuple[str, ...]:
    """What is measured, by key: stations of runs that have different lengths and share their states are equal."""
    return tuple(metrics_stage(run).key for run in runs)


def numerics_of(documents: list[Document]) -> set[str]:
    """The different numerics of all trainings behind some metrics; documents of old have the last training's alone."""
    found = [document["state_numerics"] for document in documents]
    segments = [one if isinstance(one, list) else [one] for one in found]
    return {json.dumps(one, sort_keys=True) for of_state in segments for one in of_state}


def percent(value: float, baseline: float | None) -> float | None:
    """Relative change."""
    return None if not baseline else 100 * (value - baseline) / baseline


def best_of_sweep(row: Row) -> Best | None:
    """The best guidance of a row's sweep, None without one."""
    if not row.sweep:
        return None
    means = {runs[0].sampling.guidance: summary(metrics_of(runs), "fid").mean for runs in row.sweep}
    best = min(means, key=means.__getitem__)
    return Best(best, means[best], at_the_end=best in (min(means), max(means)))
