"""Metrics as curves: along an axis of the grid (Figs. 3, 4, 5, 7), and against epochs beside samples (Fig. 1, right)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator
from matplotlib.transforms import offset_copy

from mirai.analysis.convergence import Goal, Interval
from mirai.analysis.records import metrics_of, summary
from mirai.analysis.style import (
    COLUMN_WIDTH,
    DPI,
    FAINT,
    LABEL_SIZE,
    NOTE_SIZE,
    line_looks,
    line_pixels,
    look,
    pixels,
    run_colour,
    save_figure,
    text_pixels,
    wrap,
)
from mirai.experiments import paths
from mirai.experiments.figures import Metric
from mirai.experiments.grid import Grid

AXES = {
    "epochs": "Epochs",
    "num_tokens": "Foresight tokens K",
    "block_size": "Block size of the encoder's attention (tokens)",
    "guidance": "Guidance scale",
    "align_layer": "Aligned layer (twelfths of the depth)",
    "warmup_epochs": "Warm-up epochs",
}
METRICS = {
    "fid": "FID (lower is better)",
    "sfid": "sFID (lower is better)",
    "inception_score": "Inception score (higher is better)",
    "precision": "Precision (higher is better)",
    "recall": "Recall (higher is better)",
}
PLOT_HEIGHT, LEGEND_DROP = 2.1, 0.4  # inches: the axes with their labels; from the axes to the legend
LINE, THIN_LINE = 1.2, 0.7  # points: a run of its own per place, states on the way of one run
MOST_TICKS, CLOSEST_TICKS = 8, 0.055  # places with a tick of their own, and their distance as a part of the axis


@dataclass(frozen=True)
class Value:
    """A row's metric: mean and standard deviation over seeds (None of one seed), and what the paper reports."""

    mean: float
    spread: float | None = None
    paper: float | None = None


@dataclass(frozen=True)
class Line:
    """The rows of one label: values along the axis, and the one that is the same everywhere on it."""

    label: str
    colour: str
    curve: dict[float, Value] = field(default_factory=dict)
    level: Value | None = None


def lines_of(grid: Grid, axis: str, metric: Metric) -> list[Line]:
    """The grid's rows with runs as lines along an axis, in the order of their labels; a row without it is a level."""
    lines: dict[str, Line] = {}
    for row in grid.available():
        measured = summary(metrics_of(row.runs), metric)
        # beside values of another data set the paper's have no place
        paper = row.paper.get(metric) if grid.scale == paths.PAPER_SCALE else None
        value = Value(measured.mean, measured.over_seeds, paper)
        line = lines.get(row.label, Line(row.label, run_colour(row.runs[0])))
        x = row.axes.get(axis)
        assert not isinstance(x, str), f"{axis} {x!r} of row '{row.label}' is no number"
        line = replace(line, level=value) if x is None else replace(line, curve=line.curve | {x: value})
        lines[row.label] = line
    return [replace(line, curve=dict(sorted(line.curve.items()))) for line in lines.values()]


def curve_figure(
    path: Path, lines: Sequence[Line], *, axis: str, metric: Metric, trajectory: bool = False, note: str = ""
) -> None:
    """Write lines along an axis as .png and .pdf, a column wide: the axes, the legend below, `note` small under it."""
    with look():
        width, margin = COLUMN_WIDTH, pixels(0.03)
        (caption,), size = wrap([note], pixels(width) - 2 * margin, NOTE_SIZE)
        entries = legend_entries(lines, trajectory)
        columns = _legend_columns([str(entry.get_label()) for entry in entries], pixels(width))
        rows = -(-len(entries) // columns)
        below = (rows * line_pixels(LABEL_SIZE) + bool(note) * line_pixels(size, caption) + 2 * margin) / DPI
        height = PLOT_HEIGHT + below
        figure = Figure(figsize=(width, height))
        axes = figure.add_axes(
            (0.5 / width, (below + 0.4) / height, (width - 0.6) / width, (PLOT_HEIGHT - 0.46) / height)
        )
        plot(axes, lines, axis=axis, metric=metric, trajectory=trajectory)
        anchor = (0.5, (below + 0.02) / height)
        figure.legend(handles=entries, loc="upper center", bbox_to_anchor=anchor, ncols=columns, borderpad=0, **LEGEND)
        figure.text(
            0.5, margin / DPI / height, caption, size=size, color=FAINT, ha="center", va="bottom", parse_math=False
        )
        save_figure(path, figure)


LEGEND: dict[str, Any] = {"fontsize": NOTE_SIZE, "handlelength": 3.2, "columnspacing": 1.2, "borderaxespad": 0.0}


def _legend_columns(labels: Sequence[str], room: float) -> int:
    """As many columns as fit with the longest label in each; with room for all, one line."""
    longest = max(text_pixels(label, NOTE_SIZE) for label in labels) + 5.5 * NOTE_SIZE / 72 * DPI
    return min(len(labels), max(1, int(room / longest)))


def plot(axes: Axes, lines: Sequence[Line], *, axis: str, metric: Metric, trajectory: bool) -> None:
    """Draw lines with error bars, levels dashed across, and the paper's values as hollow markers."""
    width = THIN_LINE if trajectory else LINE
    for line, style in zip(lines, line_looks([line.colour for line in lines]), strict=True):
        level = line.level
        if line.curve:
            means = [value.mean for value in line.curve.values()]
            spreads = [value.spread or 0.0 for value in line.curve.values()]
            bars: dict[str, Any] = {"yerr": spreads, "capsize": 2, "elinewidth": 0.8} if any(spreads) else {}
            axes.errorbar(list(line.curve), means, **bars, **style, linewidth=width, markersize=4)
            cited = {x: value.paper for x, value in line.curve.items() if value.paper is not None}
            axes.plot(list(cited), list(cited.values()), **(style | PAPER))
        if level is not None:
            axes.axhline(level.mean, color=line.colour, linewidth=width, dashes=(4, 2))
            if level.spread is not None:
                band = level.mean - level.spread, level.mean + level.spread
                axes.axhspan(*band, color=line.colour, alpha=0.12, linewidth=0)
            if level.paper is not None:  # on the axis itself
                at_left: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "clip_on": False}
                axes.plot([0], [level.paper], **(style | PAPER), **at_left)
    if axis == "block_size":
        axes.set_xscale("log", base=2)
    _ticks(axes, sorted({x for line in lines for x in line.curve}))
    axes.set_xlabel(AXES[axis])
    axes.set_ylabel(METRICS[metric])
    axes.tick_params(labelsize=NOTE_SIZE)
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.5)
    axes.set_axisbelow(True)


PAPER: dict[str, Any] = {"linestyle": "none", "markerfacecolor": "none", "markersize": 6}


def _ticks(axes: Axes, places: list[float]) -> None:
    """A tick where something was measured, if the numbers do not run into each other."""
    if not 0 < len(places) <= MOST_TICKS:
        return
    scaled = np.log2(places) if axes.get_xscale() == "log" else np.array(places)
    gaps = np.diff(scaled) / max(np.ptp(scaled), 1e-9)
    if (gaps >= CLOSEST_TICKS).all():
        axes.set_xticks(places, [f"{place:g}" for place in places])
        axes.xaxis.set_minor_locator(NullLocator())


def legend_entries(lines: Sequence[Line], trajectory: bool) -> list[Line2D]:
    """A handle per line, as it is drawn; one for the paper's values if there are any."""
    width = THIN_LINE if trajectory else LINE
    entries = []
    for line, style in zip(lines, line_looks([line.colour for line in lines]), strict=True):
        drawn: dict[str, Any] = style if line.curve else {"color": line.colour, "dashes": (4, 2)}
        entries.append(Line2D([], [], **drawn, linewidth=width, markersize=4, label=line.label))
    if any(value.paper is not None for line in lines for value in (*line.curve.values(), line.level) if value):
        entries.append(Line2D([], [], color=FAINT, marker="o", **PAPER, label="paper"))
    return entries


def convergence_plot(
    figure: Figure,
    box: tuple[float, float, float, float],
    lines: Sequence[Line],
    goal: Goal,
    reached: Mapping[str, Interval],
    *,
    metric: Metric,
    trajectory: bool,
) -> None:
    """Curves against epochs, the baseline's last value across, and below it per method the interval where it is reached.

    `box`: left, bottom, width, height of the axes in inches; their labels and the legend stand outside, below.
    """
    left, bottom, width, height = box
    whole = figure.get_figwidth(), figure.get_figheight()
    axes = figure.add_axes((left / whole[0], bottom / whole[1], width / whole[0], height / whole[1]))
    plot(axes, lines, axis="epochs", metric=metric, trajectory=trajectory)
    entries = legend_entries(lines, trajectory)
    bars = 0
    for line, entry in zip(lines, entries, strict=False):
        if line.label == goal.label:
            axes.axhline(goal.value, color=line.colour, linewidth=THIN_LINE, dashes=(4, 2))
        if (interval := reached.get(line.label)) is None:
            continue
        entry.set_label(f"{line.label} ({words(interval)})")
        if interval.upto is not None:
            bars += 1  # each further below the line: bars do not hide each other
            below = offset_copy(axes.transData, figure, y=-4 * bars, units="points")
            ends = interval.after or interval.upto, interval.upto
            axes.plot(ends, (goal.value, goal.value), color=line.colour, linewidth=2, marker="|", transform=below)
    entries.append(Line2D([], [], color="none", label=f"dashed: {goal.label} after {goal.epochs} epochs"))
    if bars:
        entries.append(Line2D([], [], color="none", label="bars: from not yet there to there"))
    axes.legend(handles=entries, loc="upper left", bbox_to_anchor=(-0.12, -LEGEND_DROP / height), **LEGEND)


def words(interval: Interval) -> str:
    """When a method reaches the baseline's last value."""
    if interval.upto is None:
        return f"not within {interval.after} epochs"
    if interval.after is None:
        return f"reached by {interval.upto} epochs"
    return f"reached in {interval.after}–{interval.upto} epochs"
