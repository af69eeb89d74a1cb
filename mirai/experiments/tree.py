"""The tree of states behind grids: what grows out of what, whose result it is, and who looks at it as a teacher."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mirai.experiments.arms import arm_of
from mirai.experiments.figures import Neighbourhoods, Samples, TokenMaps
from mirai.experiments.grid import Grid, Row
from mirai.experiments.plan import lookup, measured, plan_grid, row_metrics
from mirai.experiments.recipe import Cosine
from mirai.experiments.stages import Phase, Stage, StateStage


@dataclass(frozen=True)
class User:
    """A row whose result a state is."""

    grid: str
    row: str


@dataclass(frozen=True)
class Node:
    """A state of the tree. `start` is the epoch at which its own training begins: its parent's last one."""

    state: StateStage
    parent: str | None
    start: int
    users: tuple[User, ...]
    teaches: bool  # a phase of another state looks at its EMA

    @property
    def epochs(self) -> int:
        """What its own training adds to its parent."""
        return self.state.epoch - self.start

    @property
    def phase(self) -> Phase:
        """The settings of its own training: a parent lies no deeper than the last boundary, so they are of one kind."""
        return self.state.timeline[-1]


class Tree:
    """All states behind some grids of one scale, and the other stages. Keys are read once: hashing them takes time."""

    def __init__(self, grids: Iterable[Grid]) -> None:
        self.grids = tuple(map(_trained, grids))
        stages = _closure(self.grids)
        self.others = {key: stage for key, stage in stages.items() if not isinstance(stage, StateStage)}
        states = {key: stage for key, stage in stages.items() if isinstance(stage, StateStage)}
        users = _users(self.grids)
        taught = {teacher.key for state in states.values() for teacher in teachers(state)}
        self.nodes: dict[str, Node] = {}
        for key, state in states.items():  # parents first
            parent = lookup(key).parent
            start = 0 if parent is None else states[parent].epoch
            self.nodes[key] = Node(state, parent, start, tuple(users.get(key, ())), key in taught)
        self.children: dict[str | None, list[str]] = defaultdict(list)
        for key, node in sorted(self.nodes.items(), key=lambda item: (item[1].state.epoch, item[0])):
            self.children[node.parent].append(key)

    def results(self) -> list[str]:
        """States that are the result of a row, or a teacher."""
        return [key for key, node in self.nodes.items() if node.users or node.teaches]


def teachers(state: StateStage) -> list[StateStage]:
    """The finished baselines that a state's phases look at."""
    return [teacher for phase in state.timeline if (teacher := state.teacher_stage(phase)) is not None]


def stages_behind(grid: Grid) -> list[Stage]:
    """Every stage that a grid's table or figure needs, each once, needed ones first."""
    return list(_closure([grid]).values())


def _closure(grids: Iterable[Grid]) -> dict[str, Stage]:
    """Stages by key, needed ones first; teachers and trunks are among them."""
    found: dict[str, Stage] = {}

    def visit(key: str) -> None:
        if key in found:
            return
        planned = lookup(key)
        for needed in planned.stage.needs():
            visit(needed.key)
        if planned.parent is not None:
            visit(planned.parent)
        found[key] = planned.stage

    for grid in grids:
        for stage in _wanted(grid):
            visit(stage.key)
    return found


def _trained(grid: Grid) -> Grid:
    """A grid with the rows that are trained: of a table of `report: flops` those that its epochs are read from."""
    if grid.convergence is None or grid.figure is not None:
        return grid
    return grid.model_copy(update={"rows": plan_grid(grid.convergence, grid.scale).rows})


def _wanted(grid: Grid) -> Sequence[Stage]:
    """What a table or figure is made from."""
    samples = [stage.samples for row in grid.available() for stage in row_metrics(row)]
    match grid.figure:
        case Neighbourhoods():
            return []
        case Samples():
            return samples
        case TokenMaps():
            return [stage.state for stage in samples]
        case _:
            return measured(grid)


def describe(phase: Phase) -> str:
    """A phase in one short phrase."""
    foresight = phase.foresight
    if foresight is None:
        return f"next-token {phase.epochs}"
    source: str = arm_of(foresight)
    source += f" {foresight.encoder.name}" if foresight.encoder is not None else ""
    source += " pretrained" if foresight.teacher is not None else ""
    source += f" layer {foresight.layer}" if foresight.level == "internal" else ""
    match phase.coefficient:
        case Cosine() as cosine:
            value = f"cosine {cosine.start:g}→{cosine.end:g}"
        case constant:
            value = f"{constant:g}"
    return f"{source} K={len(foresight.offsets)} λ={value} {phase.epochs}"


def _users(grids: Iterable[Grid]) -> dict[str, list[User]]:
    users: dict[str, list[User]] = defaultdict(list)
    for grid in grids:
        for row in grid.available():
            for run, metrics in zip(row.runs, row_metrics(row), strict=True):
                seed = f" seed {run.training.seed}" if len(row.runs) > 1 else ""
                users[metrics.samples.state.key].append(User(grid.name, _named(row) + seed))
    return users


def _named(row: Row) -> str:
    return " ".join([row.label, *(f"{name}={value}" for name, value in row.axes.items())])
