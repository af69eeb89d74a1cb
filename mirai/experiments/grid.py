"""Grids: one YAML file per table, figure or own ablation, whose rows become runs at any scale."""

from __future__ import annotations

import itertools
import re
from typing import Annotated, Any, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, ValidationError, model_validator

from mirai.errors import UserError
from mirai.experiments import paths
from mirai.experiments.arms import Arm, arm_foresight
from mirai.experiments.canonical import canonical_run
from mirai.experiments.offsets import grid_offsets, scan_offsets
from mirai.experiments.recipe import Encoder, Foresight, Recipe, Run, Schedule
from mirai.experiments.scale import Scale, Size, grid_file, load_scale, scale_names
from mirai.experiments.yaml_input import read_yaml, validate

NAME = r"[A-Za-z0-9][A-Za-z0-9_-]*"  # the Snakefile's constraint on {grid}
RESERVED = ("all", "costs", "index", "store", "logs")  # names that results/ itself uses
METRICS = ("fid", "sfid", "inception_score", "precision", "recall")


class Point(Recipe):
    """One setting of the ablation axes. An axis left out keeps the arm's and the scale's value."""

    arm: Arm | None = None
    size: str | None = None
    epochs: PositiveInt | None = None
    learning_rate: PositiveFloat | None = None
    align_layer: PositiveInt | None = None  # in twelfths of the depth, so that 8 is 8 of 12, 16 of 24, 24 of 36
    teacher_layer: PositiveInt | None = None  # likewise; Table 2's "8 -> 6" is align_layer 8, teacher_layer 6
    layout: Literal["1D", "2D"] | None = None
    num_tokens: PositiveInt | None = None  # K
    offsets: tuple[tuple[int, int], ...] | None = None  # explicit positions instead of K nearest ones
    schedule: Schedule | None = None
    warmup_epochs: int | None = Field(default=None, ge=0)
    encoder: str | None = None  # a role of the scale
    block_size: PositiveInt | None = None  # block-causal attention of the encoder (Fig. 3)
    ema_slot_shift: Literal[0, 1] | None = None
    borders: Literal["valid", "all"] | None = None
    guidance: float | None = Field(default=None, ge=1.0)
    weights: Literal["raw", "ema"] | None = None

    def updated(self, other: Point) -> Point:
        """This point with the axes that `other` sets."""
        return self.model_copy(update={name: getattr(other, name) for name in other.model_fields_set})


class RowFile(Point):
    """A row as written in YAML: a label, axes, axes to cross, and what the paper reports."""

    label: str
    vary: dict[str, Annotated[list[Any], Field(min_length=1)]] = {}
    paper: dict[Literal["fid", "sfid", "inception_score", "precision", "recall"], float] = {}


class GridFile(Recipe):
    """A file of experiments/."""

    title: str
    source: str | None = None  # the paper's table or figure
    columns: list[str] = []  # axes printed beside the label
    defaults: Point = Point()
    seeds: tuple[NonNegativeInt, ...] = Field(default=(0,), min_length=1)
    figures: tuple[Literal["samples", "token_maps"], ...] = ()
    rows: list[RowFile] = Field(min_length=1)

    @model_validator(mode="after")
    def _distinct_seeds(self) -> Self:
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"`seeds` names one run twice: {self.seeds}")
        return self


class Row(Recipe):
    """A row of the table: its runs, one per seed, or why there are none at this scale."""

    label: str
    axes: dict[str, str | int | float]  # what the axis columns print
    paper: dict[str, float]
    runs: tuple[Run, ...] = ()
    baselines: tuple[Run, ...] = ()  # same settings without foresight, seed by seed: what changes are relative to
    unavailable: str | None = None


class Grid(Recipe):
    """A grid at one scale."""

    name: str
    scale: str
    title: str
    source: str | None
    columns: list[str]
    seeds: tuple[int, ...]
    figures: tuple[str, ...]
    rows: tuple[Row, ...]

    def available(self) -> list[Row]:
        return [row for row in self.rows if row.unavailable is None]


def grid_names() -> list[str]:
    """Names of the grid files."""
    return sorted(path.stem for path in paths.EXPERIMENTS.glob("*.yaml"))


def load_grid(name: str, scale_name: str) -> Grid:
    """A grid file's rows at a scale; UserError for reserved names, unknown keys, and settings that make no sense."""
    taken = (*RESERVED, *(scale for scale in scale_names() if scale != "demo"))
    if name in taken:
        raise UserError(
            f"{grid_file(name)}: '{name}' cannot name a grid, results/{name} has another meaning; taken: {', '.join(taken)}"
        )
    path = grid_file(name)
    if not re.fullmatch(NAME, name):
        raise UserError(
            f"{path}: a grid's name has letters, digits, '_' and '-' only, and starts with a letter or digit"
        )
    if not path.exists():
        raise UserError(f"there is no grid '{name}': {path} does not exist; grids are {', '.join(grid_names())}")
    file = validate(GridFile, read_yaml(path), str(path))
    for column in file.columns:
        if column not in Point.model_fields:
            raise UserError(
                f"{path}: columns names '{column}', which is no axis; axes are {', '.join(Point.model_fields)}"
            )
    scale = load_scale(scale_name)
    rows = [
        _row(row, point, file, scale, f"{path}: row '{row.label}'")
        for row in file.rows
        for point in _crossed(row, f"{path}: row '{row.label}'")
    ]
    missing = [row for row in rows if row.unavailable is not None]
    if len(missing) == len(rows):
        raise UserError(f"{path} has no row that scale '{scale_name}' can run: {missing[0].unavailable}")
    return Grid(
        name=name,
        scale=scale_name,
        title=file.title,
        source=file.source,
        columns=file.columns,
        seeds=file.seeds,
        figures=file.figures,
        rows=tuple(rows),
    )


def _crossed(row: RowFile, where: str) -> list[Point]:
    """The row's points: its own axes, times every combination of the axes it varies."""
    names = set(Point.model_fields)
    for axis in row.vary:
        if axis in row.model_fields_set & names:
            raise UserError(f"{where}: {axis} stands in the row and in vary; give it once")
    own = Point.model_construct(**{name: getattr(row, name) for name in row.model_fields_set & names})
    points = []
    for values in itertools.product(*row.vary.values()):
        crossed = validate(Point, dict(zip(row.vary, values, strict=True)), f"{where}: vary")
        points.append(own.updated(crossed))
    return points


def _row(row: RowFile, own: Point, file: GridFile, scale: Scale, where: str) -> Row:
    point = Point(arm="baseline", size="B", epochs=80).updated(file.defaults).updated(own)
    for axis in ("arm", "size", "epochs"):
        if getattr(point, axis) is None:
            raise UserError(f"{where}: {axis} is null, and every run has one; remove it or give a value")
    axes = {name: _shown(getattr(point, name)) for name in file.columns if getattr(point, name) is not None}
    paper = {str(metric): value for metric, value in row.paper.items()}
    unavailable = _unavailable(point, scale, where)
    if unavailable is not None:
        return Row(label=row.label, axes=axes, paper=paper, unavailable=unavailable)
    runs = tuple(_run(point, scale, seed, where) for seed in file.seeds)
    baselines = tuple(canonical_run(run.model_copy(update={"foresight": None})) for run in runs)
    encoder = runs[0].foresight.encoder.name if runs[0].foresight and runs[0].foresight.encoder else None
    if encoder is not None and "encoder" in file.columns:
        axes["encoder"] = encoder  # the concrete name: a stand-in is never called DINOv2
    return Row(label=row.label, axes=axes, paper=paper, runs=runs, baselines=baselines)


def _shown(value: Any) -> str | int | float:
    """An axis value as a table prints it."""
    if isinstance(value, Schedule):
        return f"{value.kind} " + " → ".join(f"{number:g}" for number in value.values)
    if isinstance(value, tuple):
        return " ".join(f"({down},{right})" for down, right in value)
    shown: str | int | float = value
    return shown


def _unavailable(point: Point, scale: Scale, where: str) -> str | None:
    """Why this scale cannot have the point; UserError where no scale could."""
    for axis, role, mine in (("size", point.size, scale.sizes), ("encoder", point.encoder, scale.encoders)):
        if role is None or role in mine or (axis, role) == ("encoder", "default"):
            continue
        everywhere = _roles(axis)
        if role not in everywhere:
            raise UserError(f"{where}: {axis} '{role}' is known at no scale; known are {', '.join(sorted(everywhere))}")
        return f"{axis} {role} does not exist at this scale"
    return None


def _roles(axis: str) -> set[str]:
    """All sizes or encoder roles of all scales."""
    section = {"size": "sizes", "encoder": "encoders"}[axis]
    files = [read_yaml(paths.SCALES / f"{name}.yaml") for name in scale_names()]
    return {role for file in files for role in file.get(section, {})}


def _run(point: Point, scale: Scale, seed: int, where: str) -> Run:
    """The canonical run of a point, validated as a whole."""
    assert point.arm is not None
    assert point.size is not None
    assert point.epochs is not None
    size = scale.sizes[point.size]
    training: dict[str, Any] = {"seed": seed, "lr_schedule": size.lr_schedule}
    if point.learning_rate is not None:
        training["learning_rate"] = point.learning_rate
    sampling: dict[str, Any] = {"guidance": size.guidance if point.guidance is None else point.guidance}
    if point.weights is not None:
        sampling["weights"] = point.weights
    try:
        run = Run(
            data=scale.data,
            tokenizer=scale.tokenizer,
            model=size.model,
            foresight=_foresight(point, scale, size, where),
            training=scale.training.model_copy(update=training),
            epochs=point.epochs,
            sampling=scale.sampling.model_copy(update=sampling),
            evaluation=scale.evaluation,
        )
    except ValidationError as error:
        raise UserError(f"{where}: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from None
    return canonical_run(run)


def _foresight(point: Point, scale: Scale, size: Size, where: str) -> Foresight | None:
    assert point.arm is not None
    base = arm_foresight(point.arm, encoder=_encoder(point, scale, size), head=scale.head)
    depth = size.model.num_layers
    _refuse_axes_without_effect(point, where)
    if base is None:
        return None
    assert base.schedule is not None
    update: dict[str, Any] = {}
    if base.layer is not None:
        update["layer"] = _block(point.align_layer or base.layer, depth, "align_layer", where)
    if point.teacher_layer is not None:
        update["teacher_layer"] = _block(point.teacher_layer, depth, "teacher_layer", where)
    update |= _positions(point, base, where)
    update |= {name: value for name in ("ema_slot_shift", "borders") if (value := getattr(point, name)) is not None}
    schedule = base.schedule if point.schedule is None else point.schedule
    if point.schedule is not None and "warmup_epochs" not in point.schedule.model_fields_set:
        schedule = schedule.model_copy(update={"warmup_epochs": base.schedule.warmup_epochs})
    if point.warmup_epochs is not None:
        schedule = schedule.model_copy(update={"warmup_epochs": point.warmup_epochs})
    update["schedule"] = schedule
    return Foresight.model_validate({**{name: getattr(base, name) for name in Foresight.model_fields}, **update})


def _refuse_axes_without_effect(point: Point, where: str) -> None:
    """A row that sets what its arm never reads would print a difference that is none."""
    layers, teacher, encoder = ("align_layer",), ("teacher_layer", "ema_slot_shift"), ("encoder", "block_size")
    positions = ("layout", "num_tokens", "offsets", "schedule", "warmup_epochs", "borders")
    without_effect: dict[Arm | None, tuple[str, ...]] = {
        "baseline": (*layers, *teacher, *encoder, *positions),
        "mirai-i": teacher,
        "mirai-e": encoder,
        "output-level": (*layers, *teacher, *encoder),
    }
    for axis in without_effect[point.arm]:
        if getattr(point, axis) is not None:
            raise UserError(
                f"{where}: {axis} has no effect on arm '{point.arm}'; remove it (null undoes a default) "
                "or choose another arm"
            )


def _positions(point: Point, base: Foresight, where: str) -> dict[str, Any]:
    """Layout and offsets from either K or an explicit list."""
    layout = point.layout or base.layout
    if point.offsets is not None:
        if point.num_tokens is not None:
            raise UserError(f"{where}: give num_tokens or offsets, not both")
        return {"layout": layout, "offsets": point.offsets}
    count = point.num_tokens or len(base.offsets)
    return {"layout": layout, "offsets": grid_offsets(count) if layout == "2D" else scan_offsets(count)}


def _encoder(point: Point, scale: Scale, size: Size) -> Encoder:
    role = size.encoder if point.encoder in (None, "default") else point.encoder
    assert role is not None
    encoder = scale.encoders[role]
    return encoder if point.block_size is None else encoder.model_copy(update={"block_size": point.block_size})


def _block(twelfths: int, depth: int, axis: str, where: str) -> int:
    block, rest = divmod(twelfths * depth, 12)
    if rest or not 1 <= block <= depth:
        raise UserError(
            f"{where}: {axis} {twelfths} (in twelfths of the depth) is no block of a model with {depth} layers"
        )
    return block
