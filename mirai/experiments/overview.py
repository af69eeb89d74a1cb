"""What a user sees of grids: the tree of states and its cost before a run, and where everything is after it."""

from __future__ import annotations

import contextlib
import csv
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from mirai.errors import UserError
from mirai.experiments import paths
from mirai.experiments.estimate import estimate, refuse_unknown
from mirai.experiments.grid import Grid
from mirai.experiments.grid_files import extensions, grid_names
from mirai.experiments.outdated import outdated
from mirai.experiments.plan import grids_of_paper, plan_grid, row_metrics
from mirai.experiments.savings import savings
from mirai.experiments.scale import load_scale
from mirai.experiments.stages import Stage
from mirai.experiments.tree import Node, Tree, describe, stages_behind
from mirai.states import is_published

SHOWN_USERS = 3  # of a state in the tree of several grids

Standing = Callable[[Stage], str]  # where a stage stands, in a few words


def on_disk(stage: Stage) -> str:
    """Whether a stage is done."""
    return "done" if is_published(paths.manifest(stage.kind, stage.key)) else "to do"


def targets(target: str, scale_name: str) -> tuple[list[str], str]:
    """Grids and scale of a grid's name (at `scale_name`), of a path like results/demo/table2.csv, or of results/demo/all."""
    if target == "all":
        return _paper(scale_name), scale_name
    if "/" not in target:
        return [target], scale_name
    path = Path(target)
    if path.name in ("all", "index.html") and (scale := paths.grid_of(path.with_name("all.csv"))) is not None:
        return _paper(scale[1]), scale[1]
    found = paths.grid_of(path)
    if found is None:
        raise UserError(
            f"{target} is no target: give a grid's name, results/[SCALE/]GRID{{{','.join(paths.SUFFIXES)}}} or "
            "results/[SCALE/]all"
        )
    return [found[0]], found[1]


def _paper(scale_name: str) -> list[str]:
    names = grids_of_paper(scale_name)
    if not names:
        raise UserError(f"none of the paper's tables and figures is in {paths.EXPERIMENTS}/")
    return names


def print_plan(names: list[str], scale_name: str, gpu: str | None) -> Tree:
    """The tree of some grids, what it shares with itself and with other grids, and what is left of it costs."""
    refuse_unknown(gpu)
    also_in = _also_in(names, scale_name)
    tree, scale = Tree(plan_grid(name, scale_name) for name in names), load_scale(scale_name)
    lines = [*tree_lines(tree, also_in=also_in), "", *outdated([*tree.nodes, *tree.others])]
    if tree.nodes:
        saved = savings(tree, scale)
        lines.append(f"{saved.rows} rows (times seeds) are {saved.runs} distinct trainings in {len(tree.nodes)} states")
        lines += saved.lines()
    print("\n".join(lines + estimate(tree, scale, gpu)))
    return tree


def tree_lines(tree: Tree, standing: Standing = on_disk, also_in: Mapping[str, list[str]] | None = None) -> list[str]:
    """States as a tree, trunks first, with where each stands; then the other stages. `also_in`: other grids by key."""
    grids, scale = tree.grids, tree.grids[0].scale
    runs = sum(bool(node.users) for node in tree.nodes.values())
    title = grids[0].title if len(grids) == 1 else f"{len(grids)} tables and figures"
    where = paths.product(scale, grids[0].name) if len(grids) == 1 else paths.product(scale, "all").parent
    lines = [f"{title}: {runs} runs at scale {scale}, results in {where}"]
    for grid in grids:
        for row in grid.rows:
            if row.unavailable is not None:
                lines.append(f"  not at this scale: {_of_grid(grids, grid.name)}{row.label} ({row.unavailable})")

    def branch(key: str, indent: str) -> None:
        node = tree.nodes[key]
        used = _used(node, grids, (also_in or {}).get(key, []))
        text = f"epoch {node.state.epoch:>3} [{describe(node.phase)}] {standing(node.state)}"
        lines.append(f"{indent}{key} {text}{f'  <- {used}' if used else ''}")
        for child in tree.children[key]:
            branch(child, indent + "  ")

    for key in tree.children[None]:
        branch(key, "")
    left = [node for node in tree.nodes.values() if not is_published(paths.manifest("state", node.state.key))]
    lines += [f"{sum(node.epochs for node in left)} epochs to train", "other stages:"]
    return lines + [f"  {stage.kind:<10} {key} {standing(stage)}" for key, stage in tree.others.items()]


def _used(node: Node, grids: Iterable[Grid], also_in: list[str]) -> str:
    """What a state is for: rows, other grids, students."""
    names = [f"{_of_grid(grids, user.grid)}{user.row}" for user in node.users]
    if len(names) > SHOWN_USERS and len({user.grid for user in node.users}) > 1:
        names = [*names[:SHOWN_USERS], f"and {len(names) - SHOWN_USERS} more rows"]
    if also_in:
        names.append(f"also in {', '.join(also_in)}")
    if node.teaches:
        names.append("teacher of pretrained-EMA runs")
    return "; ".join(names)


def _of_grid(grids: Iterable[Grid], name: str) -> str:
    return f"{name}: " if len(list(grids)) > 1 else ""


def _also_in(names: list[str], scale_name: str) -> dict[str, list[str]]:
    """For each state that is a row's result, the grids beside these of which it is one too."""
    for name in names:
        plan_grid(name, scale_name)  # what is wrong with it is told before any other is read
    found: dict[str, list[str]] = defaultdict(list)
    for name in grid_names() if len(names) == 1 else []:
        with contextlib.suppress(UserError):  # another grid's mistake is told when that grid is asked for
            if name not in names:
                rows = plan_grid(name, scale_name).available()
                for key in dict.fromkeys(stage.samples.state.key for row in rows for stage in row_metrics(row)):
                    found[key].append(name)
    return found


def print_summary(grid_name: str, scale_name: str) -> None:
    """Where table, pictures and recipes are, what the table says, and how long each kind of stage took."""
    grid = plan_grid(grid_name, scale_name)
    table = paths.product(scale_name, grid_name, ".md")
    if table.exists():
        print(f"\n{table.read_text().rstrip()}\n")
    print(f"table     {paths.product(scale_name, grid_name)} (and .md, .tex, .html)")
    for name in (grid_name, *extensions(grid_name)):
        with contextlib.suppress(UserError):  # another grid's mistake is told when that grid is asked for
            if plan_grid(name, scale_name).figure is not None:
                print(f"figure    {paths.product(scale_name, name, '.png')} (and .pdf)")
    for row in grid.available():
        for metrics in row_metrics(row):
            print(f"recipe    {paths.frozen('metrics', metrics.key)}  {row.label}")
    print("\nminutes of computing, by stage (stages run side by side):")
    for kind, seconds in _seconds(grid).items():
        print(f"  {kind:<10} {sum(seconds) / 60:5.1f}  in {len(seconds)} job{'s' if len(seconds) > 1 else ''}")


def _seconds(grid: Grid) -> dict[str, list[float]]:
    """Seconds of each stage behind a grid, as Snakemake's benchmark files have them, by kind."""
    result: dict[str, list[float]] = defaultdict(list)
    for stage in stages_behind(grid):
        path = paths.benchmark(stage.kind, stage.key)
        if path.exists():
            with path.open() as file:
                result[stage.kind] += [float(line["s"]) for line in csv.DictReader(file, delimiter="\t")]
    return result
