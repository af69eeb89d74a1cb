"""What every table begins with: its title, its rows' labels and the grid's own columns, and rows that nothing was run for."""

from __future__ import annotations

from collections.abc import Callable

from mirai.analysis.rendering import NOTHING, Cell, Column, Record, shown_count
from mirai.experiments.grid import Grid, Row
from mirai.experiments.grid_files import COMPUTED

AXIS_HEADINGS = {
    "num_tokens": "K",
    "encoder_parameters": "parameters of the encoder",
    "head_parameters": "parameters of a head",
}
UNEQUAL, ALONE = "states of different numerics", "no baseline in this grid"  # notes on measured records
MEASURED, CITED, ABSENT = "measured", "cited", "not at this scale"  # status of a record


def title(grid: Grid) -> str:
    """With the paper's table or figure."""
    return f"{grid.title} ({grid.source})" if grid.source else grid.title


def label(grid: Grid, row: Row) -> Record:
    """The fields that tell a row from the others."""
    return {"model": row.label, **{name: column_value(row, name) for name in grid.columns}}


def column_value(row: Row, name: str) -> Cell:
    """What a row has in one of the grid's columns: a stated fact, an axis, or what its networks say of themselves."""
    if name in row.facts:
        return row.facts[name]
    if name not in COMPUTED or not row.runs:
        return row.axes.get(name)
    from mirai.analysis import parameters  # imports torch

    count: Callable[..., int | None] = getattr(parameters, name)
    return count(row.runs[0])


def without_runs(row: Row) -> Record:
    """Status and note of a row that has no runs."""
    assert not row.runs
    if row.cited:
        return {"status": CITED, "note": "cited from the paper, not measured"}
    return {"status": ABSENT, "note": f"{ABSENT}: {row.unavailable}"}


def note_on(baseline: Row | None, *, unequal: bool = False) -> str | None:
    """Note of a measured row. `unequal`: its states, or its baseline's, were not all trained with the same numerics."""
    return "; ".join([UNEQUAL] * unequal + [ALONE] * (baseline is None)) or None


def label_columns(grid: Grid) -> list[Column]:
    """How `label` is read."""
    first = Column("Model", lambda one: f"{one['model']}{' †' if one['status'] == CITED else ''}", "text")
    return [first, *(_column(name) for name in grid.columns)]


def _column(name: str) -> Column:
    def show(one: Record) -> str:
        value = one[name]
        if value is None:
            return NOTHING
        return shown_count(value) if name in COMPUTED and isinstance(value, int) else str(value)

    return Column(AXIS_HEADINGS.get(name, name.replace("_", " ")), show, "text")


def notes_on_rows(records: tuple[Record, ...]) -> list[str]:
    """Which rows are cited, missing, made of unequal states, or without a baseline."""
    notes = ["† cited from the paper, not measured."] if any(one["status"] == CITED for one in records) else []
    notes += dict.fromkeys(f"{one['model']}: {one['note']}." for one in records if one["status"] == ABSENT)
    for note in (UNEQUAL, ALONE):
        noted = [str(one["model"]) for one in records if one["status"] == MEASURED and note in str(one["note"])]
        if noted:
            notes.append(f"{note.capitalize()}: {', '.join(dict.fromkeys(noted))}.")
    return notes
