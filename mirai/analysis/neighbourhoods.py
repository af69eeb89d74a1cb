"""The foresight positions that training uses, drawn on the token grid (Fig. 2): per layout and K, borders included."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from mirai.analysis.style import (
    DPI,
    FAINT,
    INK,
    LABEL_SIZE,
    METHOD_COLOURS,
    NOTE_SIZE,
    TEXT_WIDTH,
    line_pixels,
    look,
    pixels,
    save_figure,
    wrap,
)
from mirai.experiments.offsets import Offset
from mirai.states import write_text

Cell = tuple[int, int]  # row, column; outside the grid for a position that does not exist

ROOMY = 8  # side from which the examples do not touch each other, and share one grid
CURRENT, TARGET, MISSING = METHOD_COLOURS["mirai-i"], "#B8D8F2", METHOD_COLOURS["mirai-e"]
GRID_LINE = "#C8C8C8"
NOTE = (
    "Dark: current position (1). Light: the further positions whose foresight its state is aligned with, from the nearest "
    "on. Crossed out: positions outside the image, left out of the average."
)


@dataclass(frozen=True)
class Neighbourhood:
    """The offsets of a layout, nearest first, and per cell (N) and offset (K) the target cell and whether it exists."""

    layout: str
    offsets: tuple[Offset, ...]
    targets: npt.NDArray[np.int64]  # (N, K)
    valid: npt.NDArray[np.bool_]  # (N, K)

    @property
    def side(self) -> int:
        """Cells per side of the grid."""
        return round(len(self.valid) ** 0.5)


def neighbourhood_figure(path: Path, shown: Sequence[Neighbourhood], *, columns: int) -> None:
    """Write neighbourhoods row by row as .png and .pdf, and as .csv in how many cells each position exists."""
    with look():
        rows = -(-len(shown) // columns)
        (caption,), size = wrap([NOTE], pixels(TEXT_WIDTH - 0.1), NOTE_SIZE)
        foot, title = line_pixels(size, caption) / DPI + 0.05, 0.2
        panel = TEXT_WIDTH / columns
        examples = [_examples(one.side) for one in shown]
        extents = [_extent(one, parts) for one, parts in zip(shown, examples, strict=True)]
        across, down = max(right for right, _ in extents), max(bottom for _, bottom in extents)
        unit = (panel - 0.1) / across  # inches a cell, the same everywhere
        height = rows * (title + unit * down) + foot
        figure = Figure(figsize=(TEXT_WIDTH, height))
        for index, (one, parts) in enumerate(zip(shown, examples, strict=True)):
            row, column = divmod(index, columns)
            bottom = height - (row + 1) * (title + unit * down)
            box = (
                (column * panel + 0.05) / TEXT_WIDTH,
                bottom / height,
                unit * across / TEXT_WIDTH,
                unit * down / height,
            )
            axes = figure.add_axes(box)
            axes.set(xlim=(0, across), ylim=(down - 0.3, -0.3), aspect="equal")
            axes.set_axis_off()
            axes.set_title(f"{one.layout}, K = {len(one.offsets)}", size=LABEL_SIZE, loc="left", pad=2)
            for part, cells in enumerate(parts):
                _draw(axes, one, cells, part * _pitch(one, parts), min(NOTE_SIZE, 0.75 * unit * 72))
        figure.text(0.05 / TEXT_WIDTH, 0.03 / height, caption, size=size, color=FAINT, va="bottom")
        save_figure(path, figure)
    write_text(path.with_suffix(".csv"), table(shown))


def table(shown: Sequence[Neighbourhood]) -> str:
    """The csv: a line per layout, K and offset, with the number of cells that have it."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("layout", "num_tokens", "position", "rows_down", "columns_right", "cells_where_valid", "cells"))
    for one in shown:
        for place, (offset, count) in enumerate(zip(one.offsets, one.valid.sum(axis=0), strict=True), 1):
            writer.writerow((one.layout, len(one.offsets), place, *offset, count, len(one.valid)))
    return text.getvalue()


def _examples(side: int) -> list[list[Cell]]:
    """Current positions to show, in the middle, at the right border, the last one: on one grid, or on one each."""
    cells = [(side // 8 if side >= ROOMY else 0, side // 2 - 1), (3 * side // 8, side - 1), (side - 1, side - 1)]
    return [cells] if side >= ROOMY else [[cell] for cell in cells]


def place(one: Neighbourhood, cell: Cell, position: int) -> tuple[Cell, bool]:
    """Where a position of the neighbourhood of `cell` is drawn, and whether it exists; if so, as training has it."""
    number = cell[0] * one.side + cell[1]
    if one.valid[number, position]:
        row, column = divmod(int(one.targets[number, position]), one.side)
        return (row, column), True
    down, right = one.offsets[position]
    if one.layout == "1D":
        row, column = divmod(number + right, one.side)
        return (row, column), False
    return (cell[0] + down, cell[1] + right), False


def _places(one: Neighbourhood, cells: Sequence[Cell]) -> list[Cell]:
    return [place(one, cell, position)[0] for cell in cells for position in range(len(one.offsets))]


def _pitch(one: Neighbourhood, parts: Sequence[Sequence[Cell]]) -> float:
    """Cells from one grid of a panel to the next."""
    return max(one.side, 1 + max(column for cells in parts for _, column in _places(one, cells))) + 0.7


def _extent(one: Neighbourhood, parts: Sequence[Sequence[Cell]]) -> tuple[float, float]:
    """Width and height of a panel in cells, with what lies outside the grid."""
    bottom = max(one.side, 1 + max(row for cells in parts for row, _ in _places(one, cells)))
    return len(parts) * _pitch(one, parts), bottom + 0.6


def _draw(axes: Axes, one: Neighbourhood, cells: Sequence[Cell], left: float, size: float) -> None:
    squares = [Rectangle((left + column, row), 1, 1) for row in range(one.side) for column in range(one.side)]
    axes.add_collection(PatchCollection(squares, facecolor="white", edgecolor=GRID_LINE, linewidth=0.5))
    for cell in cells:
        for position in range(len(one.offsets)):
            (row, column), exists = place(one, cell, position)
            x, y = left + column, row
            if not exists:
                axes.add_patch(
                    Rectangle((x, y), 1, 1, facecolor="none", edgecolor=MISSING, linewidth=0.5, linestyle=":")
                )
                axes.plot((x + 0.2, x + 0.8, np.nan, x + 0.2, x + 0.8), (y + 0.2, y + 0.8, np.nan, y + 0.8, y + 0.2),
                          color=MISSING, linewidth=0.8)  # fmt: skip
                continue
            current = position == 0 and one.offsets[0] == (0, 0)
            face = CURRENT if current else TARGET
            axes.add_patch(Rectangle((x, y), 1, 1, facecolor=face, edgecolor="white", linewidth=0.5))
            colour = "white" if current else INK
            axes.text(x + 0.5, y + 0.52, str(position + 1), size=size, color=colour, ha="center", va="center_baseline")
