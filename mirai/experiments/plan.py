"""The plan: which stages a table needs, found again by key from memory, from frozen recipes, or from the grid files.

Snakemake's input functions and the command line both ask here, so a rule and a command by hand do the same.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mirai.errors import UserError
from mirai.experiments import chains, paths
from mirai.experiments.figures import Convergence, Curve, Neighbourhoods, Samples, TokenMaps
from mirai.experiments.grid import Grid, NoRowAtThisScale, Row, load_grid
from mirai.experiments.grid_files import grid_names, is_plot, paper_grids
from mirai.experiments.outdated import outdated
from mirai.experiments.places import refuse_missing_places
from mirai.experiments.revisions import REVISIONS
from mirai.experiments.scale import grid_file, load_scale, scale_names
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
_to_train: set[str] = set()  # the states among them, without those of which only the optimiser is restored


@functools.cache
def plan_grid(grid_name: str, scale_name: str) -> Grid:
    """A grid at a scale with all its stages made known; UserError for what cannot be planned."""
    grid = load_grid(grid_name, scale_name)
    scale = load_scale(scale_name)
    for name, ranks in load_site().rank_counts().items():
        if scale.training.batch_size % ranks:
            raise UserError(
                f"{paths.SITE}: {name} {ranks} does not divide the global batch of {scale.training.batch_size} at scale "
                f"'{scale_name}'"
            )
    for row in grid.available():
        for stage in (*row_metrics(row), *sweep_metrics(row)):
            register(stage, scale_name)
    return grid


def row_metrics(row: Row) -> list[MetricsStage]:
    """Metrics of a row's runs, in order of seeds."""
    return [metrics_stage(run) for run in row.runs]


def sweep_metrics(row: Row) -> list[MetricsStage]:
    """Metrics of a row's runs at every guidance of the sweep."""
    return [metrics_stage(run) for runs in row.sweep for run in runs]


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
            "revisions": REVISIONS,
        }
        if isinstance(stage, StateStage):
            parent = parent_state(stage, planned.scale)
            content["parent_epoch"] = None if parent is None else parent.epoch
        write_json(path, content)
    return path


def start() -> None:
    """Before the first job of a run, not of a dry run: refuse what this machine cannot do, then freeze recipes.

    What was finished under another revision, and will be made again, is said first.
    """
    planned = [lookup(key) for key in _to_make]
    refuse_missing_places((one.stage for one in planned), load_site())
    for sentence in outdated(_to_make):
        print(f"mirai: {sentence}", file=sys.stderr, flush=True)
    for one in planned:
        freeze(one)


def planned_keys() -> list[str]:
    """Keys of all stages behind all grids at all scales."""
    folders = [f"folder-{name}" for name in load_site().data]
    for scale, grid in itertools.product([*scale_names(), *folders], grid_names()):
        with contextlib.suppress(UserError):  # another grid's mistake is told when that grid is asked for
            plan_grid(grid, scale)
    return list(_planned)


def lookup(key: str) -> Planned:
    """The stage with this key; UserError if no grid and no frozen recipe has it."""
    if key in _planned:
        return _planned[key]
    for kind in STAGES:
        if paths.frozen(kind, key).exists():
            return _thaw(kind, key)
    if key not in planned_keys():
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
    if is_published(paths.manifest(stage.kind, key)):
        return []
    if isinstance(stage, StateStage):
        _to_train.add(key)
    return _needed(key)


def restore_inputs(key: str) -> list[Path]:
    """Files that must exist before a collected state's optimiser can be restored."""
    return [] if is_published(paths.resume(key)) else _needed(key)


def ready(key: str) -> bool:
    """Whether all that a stage is made from is there."""
    return all(is_published(path) for path in _reads(key))


def chain(key: str) -> list[str]:
    """States that the job of a state goes on with: of those that this run makes, never of what lies on the disk."""
    stage = lookup(key).stage
    assert isinstance(stage, StateStage)
    wanted = [(one.stage, one.parent) for one in map(lookup, sorted(_to_train))]
    return chains.after(stage, [(state, parent) for state, parent in wanted if isinstance(state, StateStage)])


def _needed(key: str) -> list[Path]:
    _to_make.add(key)
    return _reads(key)


def _reads(key: str) -> list[Path]:
    planned = lookup(key)
    needed = [paths.manifest(stage.kind, stage.key) for stage in planned.stage.needs()]
    return needed if planned.parent is None else [*needed, trunk(planned.parent)]


def trunk(key: str) -> Path:
    """What a child of this state waits for: its training, or, when gc has taken the optimiser, its restoration."""
    weights = paths.manifest("state", key)
    return paths.resume(key) if is_published(weights) else weights


def table_inputs(grid_name: str, scale_name: str) -> list[Path]:
    """The metrics behind a table."""
    metrics = _manifests(measured(plan_grid(grid_name, scale_name)))
    return metrics + _changed(paths.product(scale_name, grid_name), table_key(grid_name, scale_name))


def figure_inputs(grid_name: str, scale_name: str) -> list[Path]:
    """What a grid's figure is drawn from: a table's metrics; first seeds' samples, or states."""
    made = paths.product(scale_name, grid_name, ".png")
    return _drawn(plan_grid(grid_name, scale_name)) + _changed(made, figure_key(grid_name, scale_name))


def paper_products(scale_name: str) -> list[Path]:
    """One file of each table and figure of the paper that a scale can have; their rules make the others beside them."""
    products = [
        paths.product(scale_name, name, suffix)
        for name in grids_of_paper(scale_name)
        for suffix in suffixes(plan_grid(name, scale_name))
    ]
    everything = paths.everything(scale_name)
    if everything.exists() and not all(path.exists() for path in products):
        return [*products, _restart(everything)]  # Snakemake does not miss an input of what is there
    return products


def grids_of_paper(scale_name: str) -> list[str]:
    """The paper's tables and figures of which a scale can have a row."""
    names = []
    for name in paper_grids():
        with contextlib.suppress(NoRowAtThisScale):
            plan_grid(name, scale_name)
            names.append(name)
    return names


def suffixes(grid: Grid) -> list[str]:
    """Of the rules' first outputs: the table, the figure, or both."""
    if grid.figure is None:
        return [".csv"]
    return [".csv", ".png"] if is_plot(grid.figure.kind) else [".png"]


def made_products(scale_name: str) -> list[Path]:
    """The tables and figures of a scale that are there."""
    files = {path.name: path for path in paths.product(scale_name, "any").parent.glob("*") if path.is_file()}
    return [files[name + suffix] for name in grid_names() for suffix in (".csv", ".png") if name + suffix in files]


def table_key(grid_name: str, scale_name: str) -> str:
    """Changes whenever the table would: its rows, labels, cited values, runs. A YAML comment changes nothing."""
    grid = plan_grid(grid_name, scale_name)
    return _digest([grid.model_dump(mode="json", exclude={"figure"}), [stage.key for stage in measured(grid)]])


def figure_key(grid_name: str, scale_name: str) -> str:
    """Changes whenever the figure would: its title, options, labels and what it is drawn from; a plot's cited values."""
    grid = plan_grid(grid_name, scale_name)
    drawn = [str(path) for path in _drawn(grid)]  # refuses a grid without a figure
    assert grid.figure is not None
    opened = [str(row.runs[0].sampling.weights) for row in grid.available() if grid.figure.kind == "token_maps"]
    cited = [row.paper for row in grid.available()] if is_plot(grid.figure.kind) else []
    labels = [[row.label, row.axes] for row in grid.available()]
    return _digest([grid.title, grid.figure.model_dump(mode="json"), labels, cited, drawn + opened])


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
    return [_restart(made)]


def _restart(made: Path) -> Path:
    """The key record of what was made for another plan, touched."""
    record = paths.key_record(made)
    try:
        record.touch()
    except OSError as error:
        raise UserError(f"{made} was made for another plan, and {record} cannot be written: {error.strerror}") from None
    return record


def measured(grid: Grid) -> list[MetricsStage]:
    """All metrics that a table reads, each once."""
    if grid.convergence is not None:  # the rows of `report: flops` are counted, not measured
        return measured(plan_grid(grid.convergence, grid.scale))
    found = {stage.key: stage for row in grid.rows for stage in (*row_metrics(row), *sweep_metrics(row))}
    return list(found.values())


def _manifests(stages: Iterable[Stage]) -> list[Path]:
    return list({stage.key: paths.manifest(stage.kind, stage.key) for stage in stages}.values())


def _drawn(grid: Grid) -> list[Path]:
    samples = [row_metrics(row)[0].samples for row in grid.available()]
    match grid.figure:
        case None:
            raise UserError(f"{grid_file(grid.name)} has no `figure`, so {grid.name} is a table only")
        case Curve():
            return _manifests(measured(grid))
        case Convergence():
            return _manifests([*measured(grid), *samples])
        case Samples():
            return _manifests(samples)
        case TokenMaps():
            return _manifests(stage.state for stage in samples)
        case Neighbourhoods():
            return []


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
