"""Grid files: what may stand in a YAML file of experiments/, and which files there are."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from mirai.errors import UserError
from mirai.experiments import paths
from mirai.experiments.figures import DRAWINGS, PLOTS, Figure
from mirai.experiments.points import Point
from mirai.experiments.recipe import Recipe
from mirai.experiments.scale import Seeds, grid_file
from mirai.experiments.yaml_input import hint, joined, overlaid, read_yaml, validate

NAME = r"[A-Za-z0-9][A-Za-z0-9_-]*"  # the Snakefile's constraint on {grid}
PAPER_GRID = r"(table|figure)\d+"  # what results/all makes
RESERVED = ("all", "costs", "index", "store", "logs", "cache", "README")  # names that results/ itself uses
METRICS = ("fid", "sfid", "inception_score", "precision", "recall")
# Columns that a table works out from a row's run, beside the axes and what the rows state as `facts`.
COMPUTED = ("parameters", "encoder_parameters", "head_parameters")

Cited = Literal["fid", "sfid", "inception_score", "precision", "recall", "flops", "overhead_percent", "speed_up"]
Values = Annotated[list[Any], Field(min_length=1)]


class RowFile(Point):
    """A row as written in YAML: a label, axes, axes to cross or to zip, and what the paper reports."""

    label: str
    vary: dict[str, Values] = {}  # every combination of the axes' values
    zip: dict[str, Values] = {}  # first values together, second values together, ...; crossed with `vary`
    paper: dict[Cited, float] = {}
    facts: dict[str, str | int | float] = {}  # columns as they are printed
    cited: bool = False  # a result of the literature: nothing is run


class GridFile(Recipe):
    """A file of experiments/."""

    title: str
    source: str | None = None  # the paper's table or figure
    extends: str | None = None  # another grid: its defaults under these, its rows before these, all else if not given
    columns: list[str] = []  # axes, computed columns and facts printed beside the label
    defaults: Point = Point()
    at_scale: dict[str, Point] = {}  # defaults that one scale has otherwise
    seeds: Seeds | None = None  # None: the scale's
    guidance_sweep: tuple[Annotated[float, Field(ge=1.0)], ...] = ()  # beside the fixed one; the best FID is reported
    report: Literal["metrics", "flops"] = "metrics"
    convergence: str | None = None  # report flops: the grid with the epochs that each method needs
    figure: Figure | None = None
    rows: list[RowFile] = []

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not self.rows and (self.figure is None or self.figure.kind != "neighbourhoods"):
            raise ValueError("`rows` needs at least one row")
        if (self.report == "flops") != (self.convergence is not None):
            raise ValueError("`convergence` names the grid with FID against epochs for `report: flops`, and only there")
        kind = None if self.figure is None else self.figure.kind
        if self.report == "flops" and is_plot(kind):
            raise ValueError(
                f"a {kind} is drawn from metrics, which `report: flops` has none of; draw it in another grid"
            )
        if self.guidance_sweep and is_drawing(kind):
            raise ValueError(f"`guidance_sweep` adds columns to a table, and a figure of {kind} has none; remove it")
        return self


def grid_names() -> list[str]:
    """Names of the grid files; what an editor leaves beside them is none."""
    return sorted(path.stem for path in paths.EXPERIMENTS.glob("*.yaml") if re.fullmatch(NAME, path.stem))


def paper_grids() -> list[str]:
    """The paper's tables and figures, in its order."""
    names = [name for name in grid_names() if re.fullmatch(PAPER_GRID, name)]
    return sorted(names, key=lambda name: (name.startswith("figure"), int(re.sub(r"\D", "", name))))


def extensions(name: str) -> list[str]:
    """The grids that extend a grid."""
    return [other for other in grid_names() if _readable(other).get("extends") == name]


def kinds() -> dict[str, str | None]:
    """Grid -> kind of its figure, None for a table; a file that cannot be read counts as a table, which then says why."""
    return {name: _kind(_readable(name)) for name in grid_names()}


def _kind(content: dict[str, Any]) -> str | None:
    figure = content.get("figure")
    return figure.get("kind") if isinstance(figure, dict) else None


def _readable(name: str) -> dict[str, Any]:
    """A grid file's content, nothing where it has a mistake, which is told when the grid is asked for."""
    try:
        return read_grid(name)
    except UserError:
        return {}


def is_drawing(kind: str | None) -> bool:
    """Whether a grid has no table, only a figure with data of its own."""
    return kind in DRAWINGS


def is_plot(kind: str | None) -> bool:
    """Whether a grid has a table and a figure drawn from it."""
    return kind in PLOTS


def read_grid(name: str, extending: tuple[str, ...] = ()) -> dict[str, Any]:
    """A grid file with what it extends filled in."""
    path = grid_file(name)
    if not re.fullmatch(NAME, name):
        raise UserError(
            f"{path}: a grid's name has letters, digits, '_' and '-' only, and starts with a letter or digit"
        )
    if not path.exists():
        paths.refuse_elsewhere()
        asked = f"{grid_file(extending[-1])}: extends '{name}'" if extending else f"there is no grid '{name}'"
        names = grid_names()
        raise UserError(f"{asked}: {path} does not exist; {hint(name, names)}grids are {', '.join(names)}")
    content = read_yaml(path)
    base_name = content.get("extends")
    if not isinstance(base_name, str):
        return content
    if base_name in (name, *extending):
        raise UserError(f"{path}: extends '{base_name}', which extends this file in turn")
    base = read_grid(base_name, (*extending, name))
    validate(GridFile, base, str(grid_file(base_name)))
    merged, rows = overlaid(base, content), joined(base.get("rows", []), [])
    if isinstance(content.get("defaults", {}), dict):
        merged["defaults"] = overlaid(base.get("defaults", {}), content.get("defaults", {}))
    if any(merged.get(axes, {}) != base.get(axes, {}) for axes in ("defaults", "at_scale")):
        rows[:] = map(_without_paper, rows)  # other runs than those that the paper reports
        merged["source"] = content.get("source")
    if isinstance(content.get("rows", []), list):
        merged["rows"] = joined(rows, content.get("rows", []))
    if "guidance_sweep" not in content and is_drawing(_kind(merged)):
        merged.pop("guidance_sweep", None)  # of the other's table
    return merged


def _without_paper(row: dict[str, Any]) -> dict[str, Any]:
    """A row without what the paper reports of it, unless it is only cited."""
    kept = overlaid(row, {})
    if not kept.get("cited"):
        kept.pop("paper", None)
    return kept
