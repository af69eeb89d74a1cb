"""What sharing saves: epochs to train by size of model, counted in four ways, and what of them is done."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from dataclasses import dataclass

from mirai.experiments import paths
from mirai.experiments.flops import parameters
from mirai.experiments.grid_files import is_plot
from mirai.experiments.plan import row_metrics
from mirai.experiments.recipe import Model
from mirai.experiments.scale import Scale
from mirai.experiments.stages import StateStage
from mirai.experiments.tree import Tree
from mirai.states import is_published


@dataclass(frozen=True)
class Savings:
    """Epochs by size. A pretrained teacher that is no row's result counts as a row, since it must be trained."""

    rows: int  # trainings, one per row and seed
    runs: int  # distinct ones
    per_row: Counter[str]  # every one alone
    merged: Counter[str]  # equal ones once
    planned: Counter[str]  # trunks shared at the ladder's rungs and at changes of settings: what is trained
    any_prefix: Counter[str]  # trunks shared at whatever epoch they part: the least there is
    to_train: Counter[str]  # of the planned ones, those whose states are not there
    unit: str  # the scale's first size, B
    weights: dict[str, float]  # epochs of B that an epoch of a size is worth, by parameters

    def lines(self) -> list[str]:
        """As a table, sizes as columns."""
        sizes = list(self.per_row)
        counted = (
            ("one run per row", self.per_row),
            ("equal runs merged", self.merged),
            ("trunks shared, as planned", self.planned),
            ("trunks shared at any epoch", self.any_prefix),
            ("still to train", self.to_train),
        )
        lines = [f"{'epochs':<28}" + "".join(f"{size:>12}" for size in (*sizes, f"{self.unit}-epochs"))]
        for name, count in counted:
            whole = round(sum(count[size] * self.weights[size] for size in sizes))
            lines.append(f"{name:<28}" + "".join(f"{count[size]:>12,}" for size in sizes) + f"{whole:>12,}")
        shares = [
            f"{size} {1 - self.planned[size] / self.per_row[size]:.0%} and {1 - self.planned[size] / self.merged[size]:.0%}"
            for size in sizes
        ]
        return [*lines, f"sharing saves, against the first and the second line: {', '.join(shares)}"]


def savings(tree: Tree, scale: Scale) -> Savings:
    """The epochs behind the grids of a tree."""
    results = {key: tree.nodes[key].state for key in tree.results()}
    tables = [grid for grid in tree.grids if grid.figure is None or is_plot(grid.figure.kind)]  # drawings add no rows
    rows = [stage.samples.state for grid in tables for row in grid.available() for stage in row_metrics(row)]
    rows += [node.state for node in tree.nodes.values() if node.teaches and not node.users]
    planned, to_train = Counter[str](), Counter[str]()
    for key, node in tree.nodes.items():
        planned[size_of(node.state.model, scale)] += node.epochs
        if not is_published(paths.manifest("state", key)):
            to_train[size_of(node.state.model, scale)] += node.epochs
    return Savings(
        rows=len(rows),
        runs=len(results),
        per_row=_epochs(rows, scale),
        merged=_epochs(list(results.values()), scale),
        planned=planned,
        any_prefix=_least(list(results.values()), scale),
        to_train=to_train,
        unit=next(iter(scale.sizes)),
        weights=_weights([node.state for node in tree.nodes.values()], scale),
    )


def _weights(states: list[StateStage], scale: Scale) -> dict[str, float]:
    by_size = {size_of(state.model, scale): state for state in states}
    first = next(iter(scale.sizes.values()))
    unit = parameters(states[0].model_copy(update={"model": first.model}))
    return {size: parameters(state) / unit for size, state in by_size.items()}


def size_of(model: Model, scale: Scale) -> str:
    """The role of a model's size at a scale, whatever its token order."""
    for name, size in scale.sizes.items():
        if (size.model.num_layers, size.model.width) == (model.num_layers, model.width):
            return name
    return f"{model.num_layers} layers"  # of a scale that has changed since


def _epochs(states: list[StateStage], scale: Scale) -> Counter[str]:
    count = Counter[str]()
    for state in states:
        count[size_of(state.model, scale)] += state.epoch
    return count


def _least(states: list[StateStage], scale: Scale) -> Counter[str]:
    """Epochs of the tree that shares every common prefix: each state adds what it has in common with none before."""
    count = Counter[str]()
    earlier: dict[str, list[list[tuple[str, int]]]] = defaultdict(list)
    for state in states:
        content = state.content()
        phases = [_phase(entry) for entry in content.pop("timeline")]
        same = earlier[json.dumps(content, sort_keys=True)]
        count[size_of(state.model, scale)] += state.epoch - max((_common(phases, other) for other in same), default=0)
        same.append(phases)
    return count


def _phase(entry: dict[str, object]) -> tuple[str, int]:
    epochs = entry.pop("epochs")
    assert isinstance(epochs, int)
    return json.dumps(entry, sort_keys=True), epochs


def _common(first: list[tuple[str, int]], second: list[tuple[str, int]]) -> int:
    """Epochs for which two timelines are one."""
    common = 0
    for (mine, my_epochs), (other, other_epochs) in zip(first, second, strict=False):
        if mine != other:
            break
        common += min(my_epochs, other_epochs)
        if my_epochs != other_epochs:
            break
    return common
