"""Grids: one YAML file per table, figure or own ablation, whose rows become runs at any scale."""

from __future__ import annotations

import itertools
from typing import Any, Literal, NamedTuple, get_args

from mirai.errors import UserError
from mirai.experiments.arms import Arm
from mirai.experiments.canonical import canonical_run
from mirai.experiments.figures import Convergence, Curve, Figure, Neighbourhoods, Samples, TokenMaps
from mirai.experiments.grid_files import COMPUTED, RESERVED, GridFile, RowFile, grid_names, read_grid
from mirai.experiments.points import NotAtThisScale, Point, run_of, unavailable
from mirai.experiments.recipe import Encoder, Recipe, Run, Schedule
from mirai.experiments.scale import Scale, grid_file, load_scale, scale_names
from mirai.experiments.yaml_input import Location, hint, place, validate


class Row(Recipe):
    """A row of the table: its runs, one per seed, or why there are none."""

    label: str
    axes: dict[str, str | int | float]  # what the axis columns print
    paper: dict[str, float]
    facts: dict[str, str | int | float] = {}
    cited: bool = False
    point: Point | None = None  # None: cited
    runs: tuple[Run, ...] = ()
    baselines: tuple[Run, ...] = ()  # same settings without foresight, seed by seed: what changes are relative to
    sweep: tuple[tuple[Run, ...], ...] = ()  # the runs at each guidance of the grid's sweep, the fixed one among them
    unavailable: str | None = None

    @property
    def epochs(self) -> int:
        """Epochs behind what the row's runs sample from."""
        return self.runs[0].at_epoch or self.runs[0].epochs


class Grid(Recipe):
    """A grid at one scale."""

    name: str
    scale: str
    title: str
    source: str | None
    columns: list[str]
    seeds: tuple[int, ...]
    report: Literal["metrics", "flops"]
    convergence: str | None
    figure: Figure | None
    rows: tuple[Row, ...]

    def available(self) -> list[Row]:
        """The rows with runs."""
        return [row for row in self.rows if row.runs]

    def by_epochs(self) -> dict[str, dict[int, Row]]:
        """The rows with runs by label and ascending epochs; where convergence is read off, no two are at one place."""
        found: dict[str, dict[int, Row]] = {}
        for row in self.available():
            found.setdefault(row.label, {})[row.epochs] = row
        return {label: dict(sorted(line.items())) for label, line in found.items()}


class NoRowAtThisScale(UserError):
    """A grid whose every row a scale is too small for."""


def load_grid(name: str, scale_name: str) -> Grid:
    """A grid file's rows at a scale; UserError for reserved names, unknown keys, and settings that make no sense."""
    taken = (*RESERVED, *(scale for scale in scale_names() if scale != "demo"))
    if name in taken:
        raise UserError(
            f"{grid_file(name)}: '{name}' cannot name a grid, results/{name} has another meaning; taken: {', '.join(taken)}"
        )
    path = grid_file(name)
    content = read_grid(name)
    file = validate(GridFile, content, str(path))
    known = (*Point.model_fields, *COMPUTED, *(fact for row in file.rows for fact in row.facts))
    for column in file.columns:
        if column not in known:
            raise UserError(
                f"{place(content, ('columns',), str(path))}: columns names '{column}', which is no axis; "
                f"{hint(column, known)}axes are {', '.join(Point.model_fields)}, computed columns {', '.join(COMPUTED)}, "
                "and a row's `facts` can state others"
            )
    for stranger in file.at_scale.keys() - {*scale_names()}:
        where = place(content, ("at_scale", stranger), str(path))
        raise UserError(
            f"{where}: at_scale names '{stranger}', which is no scale; {hint(stranger, scale_names())}scales are "
            f"{', '.join(scale_names())}"
        )
    scale = load_scale(scale_name)
    written: list[Written] = []
    for number, row_file in enumerate(file.rows):
        _check_lists(row_file, content, ("rows", number), str(path))
        where = f"{place(content, ('rows', number), str(path))}: row '{row_file.label}'"
        written += [Written(row_file, point, where) for point in _points(row_file, file, scale_name, where)]
    rows = [_row(one, written, file, scale) for one in written]
    if isinstance(file.figure, Curve) and not any(file.figure.x in row.axes for row in rows):
        where = place(content, ("figure", "x"), str(path))
        raise UserError(f"{where}: the curve is drawn along {file.figure.x}, which no row sets")
    missing = [row for row in rows if row.unavailable is not None]
    if rows and not any(row.runs for row in rows) and missing:
        raise NoRowAtThisScale(f"{path} has no row that scale '{scale_name}' can run: {missing[0].unavailable}")
    grid = Grid(
        name=name,
        scale=scale_name,
        title=file.title,
        source=file.source,
        columns=file.columns,
        seeds=file.seeds or scale.seeds,
        report=file.report,
        convergence=file.convergence,
        figure=file.figure,
        rows=tuple(rows),
    )
    _check_figure(grid, f"{place(content, ('figure',), str(path))}: figure")
    if grid.convergence is not None:
        _check_flops(grid, f"{place(content, ('convergence',), str(path))}: convergence names '{grid.convergence}'")
    return grid


def _check_figure(grid: Grid, where: str) -> None:
    """Refuse, before anything is trained for it, a figure that could not be drawn from the grid's rows."""
    if not isinstance(grid.figure, None | Neighbourhoods) and not grid.available():
        raise UserError(f"{where}: there is nothing to draw, every row is cited")
    match grid.figure:
        case Samples() | TokenMaps():
            sizes = sorted({row.runs[0].data.resolution for row in grid.available()})
            if len(sizes) > 1:
                raise UserError(f"{where}: pictures side by side are of one resolution, and these rows have {sizes}")
        case Neighbourhoods(num_tokens=counts):
            scale = load_scale(grid.scale)
            tokens = (scale.data.resolution // scale.tokenizer.downsampling) ** 2
            if max(counts) > tokens:
                raise UserError(f"{where}: num_tokens {max(counts)} is more than the {tokens} tokens of an image")
        case Curve(x=axis):
            _check_lines(grid, axis, where)
        case Convergence():
            _check_convergence(grid, where)


def _check_lines(grid: Grid, axis: str, where: str) -> None:
    """A line has one value at each place."""
    drawn = set()
    for row in grid.available():
        point = row.label, row.epochs if axis == "epochs" else row.axes.get(axis)
        if point in drawn:
            at = "as a level" if point[1] is None else f"at {axis} {point[1]}"
            raise UserError(f"{where}: two rows are labelled '{row.label}' {at}; give each line a label of its own")
        drawn.add(point)


def _check_convergence(grid: Grid, where: str) -> None:
    """Each method goes towards the last value of one baseline, which is its own."""
    _check_lines(grid, "epochs", where)
    where = f"{where}, and {grid_file(grid.name)}"
    plain = [row for row in grid.available() if row.runs[0].foresight is None]
    if not plain:
        raise UserError(f"{where} has no row with `arm: baseline` whose last value is the goal")
    goal = plain[0]
    for row in plain:
        if row.label != goal.label:
            raise UserError(f"{where} has two baselines, '{goal.label}' and '{row.label}', where one is the goal")
    for row in grid.available():
        if _at_any_epoch(row.baselines[0]) != _at_any_epoch(goal.runs[0]):
            raise UserError(
                f"{where} has a row '{row.label}' of which '{goal.label}' is not the baseline: size, guidance "
                "and all else but foresight and epochs must be equal"
            )


def _at_any_epoch(run: Run) -> Run:
    return run.model_copy(update={"epochs": 1, "at_epoch": None})


def _check_flops(grid: Grid, where: str) -> None:
    """The grid that Table 13's epochs are read from has them for each of its rows."""
    assert grid.convergence is not None
    if grid.convergence not in grid_names():
        near = hint(grid.convergence, grid_names())
        raise UserError(f"{where}, which is no grid; {near}grids are {', '.join(grid_names())}")
    if grid.convergence == grid.name or read_grid(grid.convergence).get("report", "metrics") != "metrics":
        raise UserError(f"{where}, which has no metrics against epochs; name a grid with `report: metrics`")
    converging = load_grid(grid.convergence, grid.scale)
    _check_convergence(converging, where)
    labels = list(dict.fromkeys(row.label for row in converging.rows if not row.cited))
    for row in grid.available():
        if row.label not in labels:
            raise UserError(f"{where}, which has no row '{row.label}'; its labels are {', '.join(labels)}")


class Written(NamedTuple):
    """One setting of a row as its file has it; a cited row has none."""

    row: RowFile
    point: Point | None
    where: str


def _points(row: RowFile, file: GridFile, scale_name: str, where: str) -> list[Point] | list[None]:
    """What a row sets at a scale, once per combination of the axes that it varies."""
    own = row.model_fields_set & set(Point.model_fields)
    if row.cited:
        if own or row.vary or row.zip:
            raise UserError(f"{where}: a cited row has no axes, only `paper` values and `facts`")
        return [None]
    points = [
        Point(size="B", epochs=80)
        .updated(file.defaults)
        .updated(file.at_scale.get(scale_name.partition("-")[0], Point()))
        .updated(point)
        for point in _crossed(row, own, where)
    ]
    if row.paper and len(points) > 1:
        raise UserError(f"{where}: `paper` values belong to one run, and this row is {len(points)}; write them as rows")
    for axis in ("size", "epochs"):
        if any(getattr(point, axis) is None for point in points):
            raise UserError(f"{where}: {axis} is null, and every run has one; remove it or give a value")
    if any(point.arm is None for point in points):
        arms = ", ".join(get_args(Arm))
        raise UserError(f"{where}: every run has an arm; give one of {arms}, in the row or in `defaults`")
    return points


def _check_lists(row: RowFile, content: dict[str, Any], location: Location, path: str) -> None:
    """Refuse what is no axis, or no value of it, in the lists that a row crosses or zips."""
    for kind, lists in (("vary", row.vary), ("zip", row.zip)):
        for axis, values in lists.items():
            for number, value in enumerate(values):
                where = place(content, (*location, kind, axis, number), path)
                validate(Point, {axis: value}, f"{where}: row '{row.label}': {kind}")


def _cited(row: RowFile) -> dict[str, float]:
    return {str(metric): value for metric, value in row.paper.items()}


def _crossed(row: RowFile, own: set[str], where: str) -> list[Point]:
    """The row's points: its own axes, times every combination of the axes it varies."""
    for axis in (*row.vary, *row.zip):
        if axis in own or (axis in row.vary and axis in row.zip):
            raise UserError(f"{where}: {axis} stands in several of row, vary and zip; give it once")
    lengths = {len(values) for values in row.zip.values()}
    if len(lengths) > 1:
        raise UserError(f"{where}: zip needs lists of one length, got {sorted(lengths)}")
    zipped = [dict(zip(row.zip, values, strict=True)) for values in zip(*row.zip.values(), strict=True)] or [{}]
    crossed = [dict(zip(row.vary, values, strict=True)) for values in itertools.product(*row.vary.values())]
    stated = Point.model_construct(**{name: getattr(row, name) for name in own})
    return [stated.updated(validate(Point, one | other, where)) for one in zipped for other in crossed]


def _row(written: Written, others: list[Written], file: GridFile, scale: Scale) -> Row:
    row, point, where = written
    if point is None:
        return Row(label=row.label, axes={}, paper=_cited(row), facts=row.facts, cited=True)
    of_label = [other.point for other in others if other.row.label == row.label and other.point is not None]
    total_epochs = _total_epochs(point, of_label, file)
    shown = [name for name in (*file.columns, *_plotted(file)) if name in Point.model_fields]
    axes = {name: _shown(value) for name in shown if (value := getattr(point, name)) is not None}
    result = Row(label=row.label, axes=axes, paper=_cited(row), facts=row.facts, point=point)
    missing = unavailable(point, scale, where)
    if missing is not None:
        return result.model_copy(update={"unavailable": missing})
    try:
        runs = _runs(point, total_epochs, file, scale, where)
        sweep = tuple(
            _runs(point.model_copy(update={"guidance": guidance}), total_epochs, file, scale, where)
            for guidance in sorted({*file.guidance_sweep, runs[0].sampling.guidance})
        )
    except NotAtThisScale as reason:
        return result.model_copy(update={"unavailable": str(reason)})
    if (foresight := runs[0].foresight) is not None and foresight.encoder is not None and "encoder" in file.columns:
        axes["encoder"] = foresight.encoder.name  # the concrete name: a stand-in is never called DINOv2
    if point.resolution is not None and "resolution" in file.columns:
        axes["resolution"] = runs[0].data.resolution
    baselines = tuple(canonical_run(run.model_copy(update={"foresight": None})) for run in runs)
    return result.model_copy(
        update={"axes": axes, "runs": runs, "baselines": baselines, "sweep": sweep if file.guidance_sweep else ()}
    )


def _plotted(file: GridFile) -> list[str]:
    """The axis that a curve needs as a number."""
    match file.figure:
        case Curve(x=axis) if axis not in file.columns:
            return [axis]
        case Convergence() if "epochs" not in file.columns:
            return ["epochs"]
    return []


def _runs(point: Point, total_epochs: int, file: GridFile, scale: Scale, where: str) -> tuple[Run, ...]:
    """The runs of a point by seed; with more epochs in total, stations on their way."""
    whole = point.model_copy(update={"epochs": total_epochs})
    runs = [run_of(whole, scale, seed, where) for seed in file.seeds or scale.seeds]
    return tuple(canonical_run(run.model_copy(update={"at_epoch": point.epochs})) for run in runs)


def _total_epochs(point: Point, of_label: list[Point], file: GridFile) -> int:
    """Length of the run that a point's state is taken from: on a trajectory, of the label's longest otherwise equal one."""
    assert point.epochs is not None
    if not isinstance(file.figure, Curve | Convergence) or file.figure.curve == "separate":
        return point.epochs
    others = [other.epochs for other in of_label if other.model_copy(update={"epochs": point.epochs}) == point]
    return max(epochs for epochs in others if epochs is not None)


def _shown(value: Any) -> str | int | float:
    """An axis value as a table prints it."""
    if isinstance(value, Schedule):
        return f"{value.kind} " + " → ".join(f"{number:g}" for number in value.values)
    if isinstance(value, Encoder):
        return value.name
    if isinstance(value, tuple):
        return " ".join(f"({down},{right})" for down, right in value)
    shown: str | int | float = value
    return shown
