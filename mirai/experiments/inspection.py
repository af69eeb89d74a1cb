"""Single stages to look at: found by the beginning of a key, told field by field, compared with each other."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from typing import Any

from mirai.errors import UserError
from mirai.experiments import paths
from mirai.experiments.grid_files import METRICS, grid_names
from mirai.experiments.plan import Planned, lookup, plan_grid, planned_keys, row_metrics
from mirai.experiments.points import Point, run_of
from mirai.experiments.recipe import Recipe
from mirai.experiments.scale import load_scale
from mirai.experiments.stages import STAGES, MetricsStage, StateStage, state_stage
from mirai.experiments.tree import describe
from mirai.states import is_published, read_json

ABSENT = "-"  # in place of a value


def find(prefix: str) -> Planned:
    """The stage whose key begins like this, in the store or else planned; UserError for none and for several."""
    paths.refuse_elsewhere()
    stored = {recipe.parent.name for kind in STAGES for recipe in paths.STORE.glob(f"{kind}/*/recipe.json")}
    keys = {key for key in stored if key.startswith(prefix)}
    keys = keys or {key for key in planned_keys() if key.startswith(prefix)}
    if not keys:
        raise UserError(
            f"no key begins with '{prefix}', neither in {paths.STORE}/ nor behind any grid; `mirai plan` prints keys"
        )
    if len(keys) > 1:
        raise UserError(f"{len(keys)} keys begin with '{prefix}': {', '.join(sorted(keys)[:4])}; give more of it")
    return lookup(keys.pop())


def fields(recipe: Recipe) -> dict[str, str]:
    """Every value of a recipe by dotted key; lists of recipes by number, of plain values whole."""
    result: dict[str, str] = {}

    def visit(name: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                visit(f"{name}.{key}" if name else key, inner)
        elif isinstance(value, list) and any(isinstance(one, dict) for one in value):
            for number, inner in enumerate(value):
                visit(f"{name}[{number}]", inner)
        else:
            result[name] = json.dumps(value, ensure_ascii=False)

    visit("", recipe.model_dump(mode="json"))
    return result


def differences(first: Recipe, second: Recipe) -> list[tuple[str, str, str]]:
    """Keys whose values differ, with both; ABSENT where one has no such key."""
    mine, other = fields(first), fields(second)
    rows = [(key, mine.get(key, ABSENT), other.get(key, ABSENT)) for key in dict.fromkeys([*mine, *other])]
    return [row for row in rows if row[1] != row[2]]


def diff(first: str, second: str) -> list[str]:
    """What tells two stages of one kind apart, as lines. UserError for stages of two kinds."""
    one, other = find(first).stage, find(second).stage
    if one.kind != other.kind:
        raise UserError(f"{one.key} is a {one.kind} stage and {other.key} a {other.kind} one; compare two of one kind")
    rows = differences(one, other)
    if not rows:
        return ["no field differs" + ("" if one.key != other.key else ": it is one stage")]
    return table([("", one.key, other.key), *rows])


def show(prefix: str) -> list[str]:
    """All that there is to say of a stage, as lines."""
    planned = find(prefix)
    stage = planned.stage
    done = is_published(paths.manifest(stage.kind, stage.key))
    lines = [f"{stage.kind} {stage.key}, scale {planned.scale}, {'done' if done else 'not made'}"]
    recipe = paths.frozen(stage.kind, stage.key)
    lines += _section(f"recipe ({recipe if recipe.exists() else 'not begun'})", table(list(fields(stage).items())))
    if isinstance(stage, StateStage):
        size = next(iter(load_scale(planned.scale).sizes))
        rows = differences(_default(stage, planned.scale, size), stage)
        told = table([("", f"baseline {size}", "this state"), *rows]) if rows else ["in nothing"]
        lines += _section(f"difference from scale {planned.scale}", told)
        lines += _section("timeline", _timeline(stage))
        lines += _section("ancestors", _ancestors(planned))
    lines += _section("checksums", _checksums(planned))
    lines += _section("metrics", _metrics(stage.key) if isinstance(stage, StateStage) else [])
    return lines + _section("rows", _rows(stage.key, planned.scale))


def table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Rows with columns aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _section(title: str, lines: list[str]) -> list[str]:
    return ["", title, *(f"  {line}" for line in lines)] if lines else []


def _default(stage: StateStage, scale_name: str, size: str) -> StateStage:
    """The scale's baseline of a size, of the same length and seed."""
    point = Point(arm="baseline", size=size, epochs=stage.epoch)
    return state_stage(run_of(point, load_scale(scale_name), stage.training.seed, "mirai show"))


def _timeline(stage: StateStage) -> list[str]:
    lines, start = [], 0
    for phase in stage.timeline:
        lines.append(f"epochs {start + 1}-{start + phase.epochs}: {describe(phase)}")
        if (teacher := stage.teacher_stage(phase)) is not None:
            lines.append(f"  teacher: the EMA of {teacher.key} after {teacher.epoch} epochs")
        start += phase.epochs
    return lines


def _ancestors(planned: Planned) -> list[str]:
    lines: list[str] = []
    while planned.parent is not None:
        planned = lookup(planned.parent)
        assert isinstance(planned.stage, StateStage)
        done = is_published(paths.manifest("state", planned.stage.key))
        lines.append(f"{planned.stage.key} epoch {planned.stage.epoch}, {'done' if done else 'not made'}")
    return lines


def _checksums(planned: Planned) -> list[str]:
    path = paths.manifest(planned.stage.kind, planned.stage.key)
    payloads = read_json(path).get("payloads", {}) if path.exists() else {}
    return table([(one["file"], f"{one['bytes']:,} bytes", f"sha256 {one['sha256']}") for one in payloads.values()])


def _metrics(state: str) -> list[str]:
    """Of the samples of a state, those that are in the store."""
    rows = []
    for path in sorted(paths.kind("metrics").glob(f"*/{paths.MANIFESTS['metrics']}")):
        with contextlib.suppress(UserError):  # of another version of mirai
            stage = lookup(path.parent.name).stage
            if isinstance(stage, MetricsStage) and stage.samples.state.key == state and is_published(path):
                values, sampling = read_json(path), stage.samples.sampling
                how = f"guidance {sampling.guidance:g}, {sampling.weights} weights, {values['num_samples']} samples"
                rows.append((stage.key, how, *(f"{name} {values[name]:.4g}" for name in METRICS)))
    return table(rows)


def _rows(key: str, scale: str) -> list[str]:
    """Rows of all grids at the scale whose metrics, samples or state this stage is."""
    lines = []
    for name in grid_names():
        with contextlib.suppress(UserError):
            for row in plan_grid(name, scale).available():
                for metrics in row_metrics(row):
                    if key in (metrics.key, metrics.samples.key, metrics.samples.state.key):
                        axes = "".join(f" {axis}={value}" for axis, value in row.axes.items())
                        lines.append(f"{name}: {row.label}{axes}, seed {metrics.samples.state.training.seed}")
    return lines
