"""Curves: what lines a grid has, how they are drawn, and where a method reaches the baseline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mirai.analysis import curves
from mirai.analysis.convergence import Goal, Interval
from mirai.analysis.curves import Line, Value, convergence_plot, curve_figure, lines_of, plot, words
from mirai.analysis.style import METHOD_COLOURS, lighter
from mirai.experiments.grid import load_grid
from mirai.experiments.recipe import Run
from tests.conftest import WriteGrid

GREY, BLUE, ORANGE = (METHOD_COLOURS[name] for name in ("baseline", "mirai-i", "mirai-e"))


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Metrics of every run: its epochs plus its seed."""

    def fake(runs: tuple[Run, ...]) -> list[dict[str, Any]]:
        return [{"fid": float((run.at_epoch or run.epochs) + run.training.seed), "spread": {}} for run in runs]

    monkeypatch.setattr(curves, "metrics_of", fake)


def xy(line: Line2D) -> list[list[float]]:
    """Places of a line."""
    return np.asarray(line.get_xydata()).tolist()


def axes_of(lines: list[Line], axis: str, *, trajectory: bool = False) -> Axes:
    axes = Figure().add_subplot()
    plot(axes, lines, axis=axis, metric="fid", trajectory=trajectory)
    return axes


def test_rows_of_a_label_are_one_line_and_a_row_without_the_axis_is_a_level(
    write_grid: WriteGrid, measured: None
) -> None:
    rows = (
        {"label": "plain", "arm": "baseline"},
        {"label": "own words", "arm": "mirai-e", "vary": {"num_tokens": [4, 1, 3]}},
        {"label": "fixed", "arm": "mirai-e", "ema": "pretrained", "num_tokens": 3},
    )
    name = write_grid(*rows, figure={"kind": "curve", "x": "num_tokens"}, seeds=[0, 2])
    plain, own, fixed = lines_of(load_grid(name, "digits"), "num_tokens", "fid")
    assert (plain.colour, own.colour, fixed.colour) == (GREY, ORANGE, lighter(ORANGE))
    assert plain.curve == {}
    assert plain.level == Value(81.0, 2**0.5)
    assert list(own.curve) == [1, 3, 4]
    assert own.level is None
    assert own.label == "own words"


@pytest.mark.parametrize(("scale", "paper"), [("imagenet256", 6.36), ("digits", None)])
def test_the_papers_values_stand_beside_values_of_its_own_scale_only(
    scale: str, paper: float | None, write_grid: WriteGrid, measured: None
) -> None:
    row = {"label": "plain", "arm": "baseline", "paper": {"fid": 6.36}}
    name = write_grid(row, figure={"kind": "curve", "x": "epochs"})
    (line,) = lines_of(load_grid(name, scale), "epochs", "fid")
    assert line.curve == {80: Value(80.0, None, paper)}


def test_a_curve_is_drawn_through_its_means_with_the_spread_of_seeds() -> None:
    axes = axes_of([Line("a", BLUE, {1: Value(5.0, 0.5), 4: Value(3.0, 0.25)})], "num_tokens")
    ((data, _, (bars,)),) = axes.containers
    assert xy(data) == [[1, 5], [4, 3]]
    assert [np.ptp(segment[:, 1]) for segment in bars.get_segments()] == [1.0, 0.5]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "4"]


def test_a_level_is_dashed_across_the_whole_axis() -> None:
    axes = axes_of([Line("base", GREY, level=Value(6.0)), Line("a", BLUE, {1: Value(5.0)})], "num_tokens")
    level = next(line for line in axes.lines if {y for _, y in xy(line)} == {6.0})
    assert level.is_dashed()
    assert [x for x, _ in xy(level)] == [0, 1]
    assert level.get_transform() == axes.get_yaxis_transform(which="grid")


def test_the_papers_values_are_hollow_markers() -> None:
    lines = [Line("a", BLUE, {1: Value(5.0, None, 4.5), 4: Value(3.0)}), Line("b", GREY, level=Value(6.0, None, 6.5))]
    axes = axes_of(lines, "num_tokens")
    hollow, of_level = (line for line in axes.lines if line.get_markerfacecolor() == "none")
    assert xy(hollow) == [[1, 4.5]]
    assert xy(of_level) == [[0, 6.5]]  # on the axis
    assert hollow.get_linestyle() == "None"


def test_block_sizes_are_equally_far_apart_when_doubled() -> None:
    line = Line("a", BLUE, {x: Value(1.0) for x in (1, 4, 16, 64, 256)})
    assert axes_of([line], "block_size").get_xscale() == "log"
    assert axes_of([line], "epochs").get_xscale() == "linear"


def test_ticks_that_would_run_into_each_other_are_left_to_matplotlib() -> None:
    axes = axes_of([Line("a", BLUE, {x: Value(1.0) for x in (1, 2, 300)})], "epochs")
    assert list(axes.get_xticks()) != [1, 2, 300]


def test_states_on_the_way_of_a_run_are_drawn_thinner() -> None:
    line = Line("a", BLUE, {1: Value(1.0), 2: Value(2.0)})
    widths = [axes_of([line], "epochs", trajectory=thin).lines[0].get_linewidth() for thin in (False, True)]
    assert widths[0] > widths[1]


def test_a_curve_figure_is_a_column_wide_png_and_pdf_with_equal_bytes_each_time(tmp_path: Path) -> None:
    lines = [
        Line("LlamaGen-B", GREY, level=Value(6.0, 0.1)),
        Line("+ Mirai-I $x$", BLUE, {1: Value(5.0), 4: Value(4.0)}),
    ]
    for name in ("a", "b"):
        curve_figure(tmp_path / f"{name}.png", lines, axis="num_tokens", metric="fid", note="Scale digits, one seed")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.pdf", "a.png", "b.pdf", "b.png"]
    for suffix in (".pdf", ".png"):
        assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


def test_convergence_shows_the_baselines_last_value_and_an_interval_for_each_method_that_reaches_it() -> None:
    lines = [
        Line("base", GREY, {40: Value(9.0), 400: Value(6.0)}),
        Line("fast", BLUE, {40: Value(7.0), 80: Value(5.0)}),
        Line("slow", ORANGE, {40: Value(8.0), 80: Value(7.0)}),
    ]
    figure = Figure()
    reached = {"fast": Interval(40, 80), "slow": Interval(80, None)}
    convergence_plot(figure, (0.5, 1, 3, 3), lines, Goal("base", 400, 6.0), reached, metric="fid", trajectory=False)
    (axes,) = figure.axes
    assert any(line.is_dashed() and {y for _, y in xy(line)} == {6.0} for line in axes.lines)
    (bar,) = (line for line in axes.lines if line.get_marker() == "|")
    assert (xy(bar), to_hex(bar.get_color())) == ([[40, 6.0], [80, 6.0]], BLUE.lower())
    legend = axes.get_legend()
    assert legend is not None
    entries = [text.get_text() for text in legend.get_texts()]
    assert entries[:3] == ["base", "fast (reached in 40–80 epochs)", "slow (not within 80 epochs)"]
    assert entries[3] == "dashed: base after 400 epochs"


def test_a_method_that_is_there_at_the_first_measured_place_is_said_to_be_there_by_then() -> None:
    assert words(Interval(None, 40)) == "reached by 40 epochs"
