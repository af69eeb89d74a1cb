"""Metrics that nobody measured, for tests of what is made of metrics."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from mirai.experiments import paths
from mirai.experiments.grid import Grid
from mirai.experiments.grid_files import METRICS
from mirai.experiments.plan import measured, row_metrics
from mirai.experiments.recipe import Run
from mirai.experiments.stages import MetricsStage, metrics_stage
from mirai.states import publish


def document(**values: Any) -> dict[str, Any]:
    """A metrics.json whose metrics are 1 where not given."""
    common = {"num_samples": 2000, "num_reference": 1500, "spread": {"fid": 0.25}, "state_numerics": {"threads": 1}}
    return {**dict.fromkeys(METRICS, 1.0), **common, "coherence": {}, "coherence_of_reference": {}, **values}


def publish_metrics(stage: MetricsStage, **values: Any) -> None:
    publish(paths.manifest("metrics", stage.key), document(**values))


def pretend(grid: Grid, fid: dict[tuple[str, int], float], **more: Any) -> None:
    """Metrics for every run of a grid: FID by (label, seed), the other metrics 1."""
    for row in grid.available():
        for run, stage in zip(row.runs, row_metrics(row), strict=True):
            publish_metrics(stage, fid=fid[row.label, run.training.seed], **more.get(row.label, {}))


def pretend_all(grid: Grid, fid: Callable[[Run], float]) -> None:
    """Metrics for all that a table reads, of its sweep and of its grid of convergence too: FID by run."""
    for stage in measured(grid):
        publish_metrics(stage, fid=0.0)
    for row in grid.available():
        for run in (*row.runs, *(run for runs in row.sweep for run in runs)):
            publish_metrics(metrics_stage(run), fid=fid(run))


def rows_of(grid: Grid) -> list[dict[str, str]]:
    """The grid's CSV."""
    with paths.product(grid.scale, grid.name).open() as file:
        return list(csv.DictReader(file))


def text_of(grid: Grid, suffix: str) -> str:
    """The grid's table as .md, .tex or .html."""
    return paths.product(grid.scale, grid.name, suffix).read_text()


def edited(grid: str, **changes: Any) -> None:
    """Replace keys of a grid file."""
    path = Path(f"experiments/{grid}.yaml")
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **changes}))
