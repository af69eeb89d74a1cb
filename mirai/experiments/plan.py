"""The plan: which stages a table needs, found again by key from memory, from frozen recipes, or from the grid files.

Snakemake's input functions and the command line both ask here, so a rule and a command by hand do the same.
"""

from __future__ import annotations

import functools
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mirai.errors import UserError
from mirai.experiments import paths
from mirai.experiments.grid import Grid, Row, grid_names, load_grid
from mirai.experiments.recipe import Recipe
from mirai.experiments.scale import load_scale, scale_names
from mirai.experiments.site import load_site
from mirai.experiments.stages import STAGES, MetricsStage, Stage, StateStage, metrics_stage, parent_epoch
from mirai.states import is_published, read_json, write_json


@dataclass(frozen=True)
class Planned:
    """A stage with the scale whose numerics it runs under and, for states, the state it grows out of."""

    stage: Stage
    scale: str
    parent: str | None = None


_planned: dict[str, Planned] = {}  # everything met in this process, by key


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
    if frozen.exists():
        epoch = read_json(frozen)["parent_epoch"]
    else:
        epoch = parent_epoch(state, load_scale(scale_name).ladder)
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


def freeze_all() -> None:
    """Freeze every stage met so far: Snakemake calls this when a run, not a dry run, starts."""
    for planned in _planned.values():
        freeze(planned)


def lookup(key: str) -> Planned:
    """The stage with this key; UserError if no grid and no frozen recipe has it."""
    if key in _planned:
        return _planned[key]
    for kind in STAGES:
        if paths.frozen(kind, key).exists():
            return _thaw(kind, key)
    for scale in scale_names():
        if scale != "folder":
            for grid in grid_names():
                try:
                    plan_grid(grid, scale)
                except UserError:  # another grid's mistake is told when that grid is asked for
                    continue
    if key not in _planned:
        raise UserError(f"no grid in {paths.EXPERIMENTS}/ and no recipe in {paths.STORE}/ has a stage with key {key}")
    return _planned[key]


def _thaw(kind: str, key: str) -> Planned:
    path = paths.frozen(kind, key)
    content = read_json(path)
    stage = STAGES[kind].model_validate_json(json.dumps(content["recipe"]))
    if stage.key != key:
        raise UserError(f"{path} was made by another revision of mirai: today this recipe has key {stage.key}")
    return register(stage, content["scale"])


def inputs(key: str) -> list[Path]:
    """Files that must exist before a stage can be made. None once it is published: nothing can change under a key."""
    planned = lookup(key)
    stage = planned.stage
    if is_published(paths.manifest(stage.kind, key)):
        return []
    needed = [paths.manifest(stage_.kind, stage_.key) for stage_ in stage.needs()]
    if planned.parent is not None:
        needed.append(trunk(planned.parent))
    return needed


def trunk(key: str) -> Path:
    """What a child of this state waits for: its training, or, when gc has taken the optimiser, its restoration."""
    weights = paths.manifest("state", key)
    return paths.resume(key) if is_published(weights) else weights


def restore_inputs(key: str) -> list[Path]:
    """Files that must exist before a collected state's optimiser can be restored."""
    if is_published(paths.resume(key)):
        return []
    planned = lookup(key)
    needed = [paths.manifest(stage.kind, stage.key) for stage in planned.stage.needs()]
    if planned.parent is not None:
        needed.append(trunk(planned.parent))
    return needed


def table_inputs(grid_name: str, scale_name: str) -> list[Path]:
    """The metrics behind a table."""
    grid = plan_grid(grid_name, scale_name)
    keys = {stage.key: None for row in grid.available() for stage in row_metrics(row)}
    return [paths.manifest("metrics", key) for key in keys]


def figure_inputs(grid_name: str, scale_name: str, figure: str) -> list[Path]:
    """What a figure is drawn from, first seeds only: samples, or states and the tokenizer."""
    grid = plan_grid(grid_name, scale_name)
    samples = [row_metrics(row)[0].samples for row in grid.available()]
    if figure == "samples":
        return [paths.manifest("samples", stage.key) for stage in samples]
    return [paths.manifest("state", stage.state.key) for stage in samples]


def table_key(grid_name: str, scale_name: str) -> str:
    """Changes whenever the table would: its rows, labels, cited values, runs. A YAML comment changes nothing."""
    grid: Recipe = plan_grid(grid_name, scale_name)
    metrics = [str(path) for path in table_inputs(grid_name, scale_name)]
    content = json.dumps([grid.model_dump(mode="json"), metrics], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]
