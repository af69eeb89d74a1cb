"""The plan: which stages a table needs, found again by key from memory, from frozen recipes, or from the grid files.

Snakemake's input functions and the command line both ask here, so a rule and a command by hand do the same.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mirai.errors import UserError
from mirai.experiments import paths
from mirai.experiments.grid import Grid, Row, grid_names, load_grid
from mirai.experiments.places import refuse_missing_places
from mirai.experiments.scale import load_scale, scale_names
from mirai.experiments.site import load_site
from mirai.experiments.stages import STAGES, MetricsStage, Stage, StateStage, metrics_stage, parent_epoch
from mirai.states import is_published, read_json, write_json, write_text


@dataclass(frozen=True)
class Planned:
    """A stage with the scale whose numerics it runs under and, for states, the state it grows out of."""

    stage: Stage
    scale: str
    parent: str | None = None


_planned: dict[str, Planned] = {}  # everything met in this process, by key
_to_make: set[str] = set()  # keys whose inputs were asked for and which are not published


@functools.cache
def plan_grid(grid_name: str, scale_name: str) -> Grid:
    """A grid at a scale with all its stages made known; UserError for what cannot be planned."""
    grid = load_grid(grid_name, scale_name)
    scale = load_scale(scale_name)
    ranks = load_site().ranks
    if scale.training.batch_size % ranks:
        raise UserError(
            f"{paths.SITE}: ranks {ranks} does not divide the global batch of {scale.training.batch_size} at scale "
            f"'{scale_name}'"
        )
    for row in grid.available():
        for stage in row_metrics(row):
            register(stage, scale_name)
    return grid


def row_metrics(row: Row) -> list[MetricsStage]:
    """Metrics of a row's runs, in order of seeds."""
    return [metrics_stage(run) for run in row.runs]


def register(stage: Stage, scale_name: str) -> Planned:
    """Make a stage and all it needs known by key."""
    known = _planned.get(stage.key)
    if known is not None:
        return known
    parent = None
    if isinstance(stage, StateStage):
        parent_stage = parent_state(stage, scale_name)
        parent = None if parent_stage is None else register(parent_stage, scale_name).stage.key
    for needed in stage.needs():
        register(needed, scale_name)
    planned = Planned(stage, scale_name, parent)
    _planned[stage.key] = planned
    return planned


def parent_state(state: StateStage, scale_name: str) -> StateStage | None:
    """The state that training continues from: as frozen on disk if the state has been begun, else by the ladder."""
    frozen = paths.frozen("state", state.key)
    epoch = read_json(frozen)["parent_epoch"] if frozen.exists() else parent_epoch(state, load_scale(scale_name).ladder)
    return None if epoch is None else state.at(epoch)


def freeze(planned: Planned) -> Path:
    """Write a stage's recipe beside its result-to-be, once; a queued job then needs no grid file any more."""
    stage = planned.stage
    path = paths.frozen(stage.kind, stage.key)
    if not path.exists():
        content: dict[str, Any] = {
            "kind": stage.kind,
            "key": stage.key,
            "scale": planned.scale,
            "recipe": stage.model_dump(mode="json"),
        }
        if isinstance(stage, StateStage):
            parent = parent_state(stage, planned.scale)
            content["parent_epoch"] = None if parent is None else parent.epoch
        write_json(path, content)
    return path


def start() -> None:
    """Before the first job of a run, not of a dry run: refuse what this machine cannot do, then freeze recipes."""
    planned = [lookup(key) for key in _to_make]
    refuse_missing_places((one.stage for one in planned), load_site())
    for one in planned:
        freeze(one)


def lookup(key: str) -> Planned:
    """The stage with this key; UserError if no grid and no frozen recipe has it."""
    if key in _planned:
        return _planned[key]
    for kind in STAGES:
        if paths.frozen(kind, key).exists():
            return _thaw(kind, key)
    folders = [f"folder-{name}" for name in load_site().data]
    for scale, grid in itertools.product([*scale_names(), *folders], grid_names()):
        with contextlib.suppress(UserError):  # another grid's mistake is told when that grid is asked for
            plan_grid(grid, scale)
    if key not in _planned:
        raise UserError(f"no grid in {paths.EXPERIMENTS}/ and no recipe in {paths.STORE}/ has a stage with key {key}")
    return _planned[key]


def _thaw(kind: str, key: str) -> Planned:
    path = paths.frozen(kind, key)
    content = read_json(path)
    try:
        stage = STAGES[kind].model_validate_json(json.dumps(content["recipe"]))
    except ValidationError:
        raise UserError(f"{path} was made by another version of mirai, which had other recipes") from None
    if stage.key != key:
        raise UserError(f"{path} was made by another revision of mirai: today this recipe has key {stage.key}")
    return register(stage, content["scale"])


def inputs(key: str) -> list[Path]:
    """Files that must exist before a stage can be made. None once it is published: nothing can change under a key."""
    stage = lookup(key).stage
    return [] if is_published(paths.manifest(stage.kind, key)) else _needed(key)


def restore_inputs(key: str) -> list[Path]:
    """Files that must exist before a collected state's optimiser can be restored."""
    return [] if is_published(paths.resume(key)) else _needed(key)


def _needed(key: str) -> list[Path]:
    _to_make.add(key)
    planned = lookup(key)
    needed = [paths.manifest(stage.kind, stage.key) for stage in planned.stage.needs()]
    return needed if planned.parent is None else [*needed, trunk(planned.parent)]


def trunk(key: str) -> Path:
    """What a child of this state waits for: its training, or, when gc has taken the optimiser, its restoration."""
    weights = paths.manifest("state", key)
    return paths.resume(key) if is_published(weights) else weights


def table_inputs(grid_name: str, scale_name: str) -> list[Path]:
    """The metrics behind a table."""
    table = paths.table(scale_name, grid_name)
    return _metrics(plan_grid(grid_name, scale_name)) + _changed(table, table_key(grid_name, scale_name))


def figure_inputs(grid_name: str, scale_name: str, figure: str) -> list[Path]:
    """What a figure is drawn from, first seeds only: samples, or states and the tokenizer."""
    key = figure_key(grid_name, scale_name, figure)
    drawn = _drawn(plan_grid(grid_name, scale_name), figure)
    return drawn + _changed(paths.figure(scale_name, grid_name, figure), key)


def table_key(grid_name: str, scale_name: str) -> str:
    """Changes whenever the table would: its rows, labels, cited values, runs. A YAML comment changes nothing."""
    grid = plan_grid(grid_name, scale_name)
    return _digest([grid.model_dump(mode="json"), [str(path) for path in _metrics(grid)]])


def figure_key(grid_name: str, scale_name: str, figure: str) -> str:
    """Changes whenever the figure would: its labels and what it is drawn from."""
    grid = plan_grid(grid_name, scale_name)
    labels = [[row.label, row.axes] for row in grid.available()]
    return _digest([labels, [str(path) for path in _drawn(grid, figure)]])


def record_key(made: Path, key: str) -> None:
    """Note beside a table or figure which key it was made for."""
    write_text(paths.key_record(made), f"{key}\n")


def _changed(made: Path, key: str) -> list[Path]:
    """The key record of a table or figure made for another key, touched: an input newer than it starts its rule again.

    Snakemake's own record of parameters is lost with its .snakemake folder, and a missing input alone starts nothing.
    """
    record = paths.key_record(made)
    if not made.exists() or (record.exists() and record.read_text().strip() == key):
        return []
    try:
        record.touch()
    except OSError as error:
        raise UserError(f"{made} was made for another plan, and {record} cannot be written: {error.strerror}") from None
    return [record]


def _metrics(grid: Grid) -> list[Path]:
    keys = {stage.key: None for row in grid.available() for stage in row_metrics(row)}
    return [paths.manifest("metrics", key) for key in keys]


def _drawn(grid: Grid, figure: str) -> list[Path]:
    samples = [row_metrics(row)[0].samples for row in grid.available()]
    if figure == "samples":
        return [paths.manifest("samples", stage.key) for stage in samples]
    return [paths.manifest("state", stage.state.key) for stage in samples]


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
