"""What a user sees of a grid: the tree of states before a run, and where everything is after it."""

from __future__ import annotations

import csv
from collections import defaultdict

from mirai.experiments import paths
from mirai.experiments.grid import Grid
from mirai.experiments.plan import lookup, plan_grid, row_metrics
from mirai.experiments.recipe import Cosine
from mirai.experiments.stages import Phase, Stage, StateStage
from mirai.states import is_published


def describe(phase: Phase) -> str:
    """A phase in one short phrase."""
    if phase.foresight is None:
        return f"next-token {phase.epochs}"
    foresight = phase.foresight
    if foresight.level == "output":
        source = "output-level"
    else:
        source = "mirai-e" if foresight.encoder is None else f"mirai-i {foresight.encoder.name}"
    match phase.coefficient:
        case Cosine() as cosine:
            value = f"cosine {cosine.start:g}→{cosine.end:g}"
        case constant:
            value = f"{constant:g}"
    return f"{source} layer {foresight.layer} K={len(foresight.offsets)} λ={value} {phase.epochs}"


def print_tree(grid_name: str, scale_name: str) -> None:
    """The states of a grid as a tree, trunks first, with what is on disk already."""
    grid = plan_grid(grid_name, scale_name)
    children: dict[str | None, dict[str, StateStage]] = defaultdict(dict)
    labels: dict[str, list[str]] = defaultdict(list)
    for row in grid.available():
        for run, metrics in zip(row.runs, row_metrics(row), strict=True):
            state = metrics.samples.state
            axes = " ".join(f"{name}={value}" for name, value in row.axes.items())
            labels[state.key].append(f"{row.label} {axes} seed {run.training.seed}".replace("  ", " "))
            while state.key not in children[lookup(state.key).parent]:
                parent = lookup(state.key).parent
                children[parent][state.key] = state
                if parent is None:
                    break
                parent_stage = lookup(parent).stage
                assert isinstance(parent_stage, StateStage)
                state = parent_stage
    print(f"{grid.title}: {len(labels)} runs at scale {scale_name}, results in {paths.table(scale_name, grid_name)}")
    for row in grid.rows:
        if row.unavailable is not None:
            print(f"  not at this scale: {row.label} ({row.unavailable})")
    _print_children(None, children, labels, "")
    epochs = {state.key: state.epoch for states in children.values() for state in states.values()}
    trained = sum(
        epochs[key] - (0 if parent is None else epochs[parent])
        for parent, states in children.items()
        for key in states
        if not is_published(paths.manifest("state", key))
    )
    alone = sum(row.runs[0].epochs * len(row.runs) for row in grid.available())
    print(f"{trained} epochs to train; one run per row would be {alone}")
    print("other stages:")
    for stage in stages_behind(grid):
        if not isinstance(stage, StateStage):
            done = "done" if is_published(paths.manifest(stage.kind, stage.key)) else "to do"
            print(f"  {stage.kind:<10} {stage.key} {done}")


def _print_children(
    parent: str | None, children: dict[str | None, dict[str, StateStage]], labels: dict[str, list[str]], indent: str
) -> None:
    for key, state in sorted(children[parent].items(), key=lambda item: (item[1].epoch, item[0])):
        done = "done" if is_published(paths.manifest("state", key)) else "to do"
        used = f"  <- {'; '.join(labels[key])}" if key in labels else ""
        print(f"{indent}{key} epoch {state.epoch:>3} [{describe(state.timeline[-1])}] {done}{used}")
        _print_children(key, children, labels, indent + "  ")


def print_summary(grid_name: str, scale_name: str) -> None:
    """Where table, pictures and recipes are, what the table says, and how long each kind of stage took."""
    grid = plan_grid(grid_name, scale_name)
    table = paths.table(scale_name, grid_name, ".md")
    if table.exists():
        print(f"\n{table.read_text().rstrip()}\n")
    print(f"table     {paths.table(scale_name, grid_name)} (and .md)")
    for figure in grid.figures:
        print(f"picture   {paths.figure(scale_name, grid_name, figure)} (and .pdf)")
    for row in grid.available():
        for metrics in row_metrics(row):
            print(f"recipe    {paths.frozen('metrics', metrics.key)}  {row.label}")
    print("\nminutes of computing, by stage (stages run side by side):")
    for kind, seconds in _seconds(grid).items():
        print(f"  {kind:<10} {sum(seconds) / 60:5.1f}  in {len(seconds)} job{'s' if len(seconds) > 1 else ''}")


def stages_behind(grid: Grid) -> list[Stage]:
    """Every stage that a grid's table needs, each once, needed ones first."""
    found: dict[str, Stage] = {}

    def visit(stage: Stage) -> None:
        if stage.key in found:
            return
        parent = lookup(stage.key).parent
        for needed in [*stage.needs(), *([] if parent is None else [lookup(parent).stage])]:
            visit(needed)
        found[stage.key] = stage

    for row in grid.available():
        for metrics in row_metrics(row):
            visit(metrics)
    return list(found.values())


def _seconds(grid: Grid) -> dict[str, list[float]]:
    """Seconds of each stage behind a grid, as Snakemake's benchmark files have them, by kind."""
    result: dict[str, list[float]] = defaultdict(list)
    for stage in stages_behind(grid):
        path = paths.benchmark(stage.kind, stage.key)
        if path.exists():
            with path.open() as file:
                result[stage.kind] += [float(line["s"]) for line in csv.DictReader(file, delimiter="\t")]
    return result
