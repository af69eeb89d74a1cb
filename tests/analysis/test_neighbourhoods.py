"""The drawing of foresight positions: what is in the grid, what falls out of it, and the counts beside."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Literal

import pytest
from matplotlib.figure import Figure

from mirai.analysis import neighbourhoods
from mirai.analysis.neighbourhoods import Neighbourhood, neighbourhood_figure, place, table
from mirai.experiments.offsets import grid_offsets, scan_offsets
from mirai.foresight.neighbourhoods import targets_of

pytestmark = pytest.mark.full

Layout = Literal["1D", "2D"]


def neighbourhood(layout: Layout, k: int, side: int) -> Neighbourhood:
    offsets = grid_offsets(k) if layout == "2D" else scan_offsets(k)
    targets, valid = targets_of(offsets, layout, side)
    return Neighbourhood(layout, offsets, targets.numpy(), valid.numpy())


def test_2d_positions_beyond_the_right_border_are_drawn_outside_as_missing() -> None:
    one = neighbourhood("2D", 3, 4)
    assert [place(one, (1, 3), position) for position in range(3)] == [((1, 3), True), ((1, 4), False), ((2, 3), True)]


def test_1d_positions_go_on_in_the_next_row_and_end_with_the_image() -> None:
    one = neighbourhood("1D", 3, 4)
    assert [place(one, (1, 3), position) for position in range(3)] == [((1, 3), True), ((2, 0), True), ((2, 1), True)]
    assert [place(one, (3, 3), position) for position in range(3)] == [((3, 3), True), ((4, 0), False), ((4, 1), False)]


def test_what_is_drawn_is_what_training_says_and_not_worked_out_again() -> None:
    one = neighbourhood("2D", 3, 4)
    one.targets[5, 1], one.valid[5, 2] = 12, False
    assert place(one, (1, 1), 1) == ((3, 0), True)
    assert place(one, (1, 1), 2) == ((2, 1), False)


def test_the_table_counts_the_cells_that_have_each_position() -> None:
    rows = list(csv.DictReader(table([neighbourhood("2D", 4, 4), neighbourhood("1D", 3, 4)]).splitlines()))
    assert [(row["layout"], row["num_tokens"], row["position"]) for row in rows] == [
        *(("2D", "4", str(number)) for number in (1, 2, 3, 4)),
        *(("1D", "3", str(number)) for number in (1, 2, 3)),
    ]
    assert [(row["rows_down"], row["columns_right"]) for row in rows[:4]] == [
        ("0", "0"),
        ("0", "1"),
        ("1", "0"),
        ("1", "1"),
    ]
    assert [int(row["cells_where_valid"]) for row in rows] == [16, 12, 12, 9, 16, 15, 14]
    assert {row["cells"] for row in rows} == {"16"}


@pytest.mark.parametrize("side", [4, 8])
def test_every_panel_shows_a_middle_cell_the_right_border_and_the_last_cell(
    side: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures: list[Figure] = []
    monkeypatch.setattr(neighbourhoods, "save_figure", lambda path, figure: figures.append(figure))
    neighbourhood_figure(tmp_path / "f.png", [neighbourhood("1D", 3, side), neighbourhood("2D", 9, side)], columns=2)
    first, second = figures[0].axes
    assert (first.get_title(loc="left"), second.get_title(loc="left")) == ("1D, K = 3", "2D, K = 9")
    # all 3 for the cell in the middle and at the border, 1 for the last cell, whose other two are crossed out
    assert [text.get_text() for text in first.texts] == ["1", "2", "3", "1", "2", "3", "1"]
    assert len(first.lines) == 2
    # right of the border is nothing in 2D: of the nine stay current, below, below left and two below
    shown = [text.get_text() for text in second.texts]
    assert shown[:9] == [str(number) for number in range(1, 10)]
    assert shown[9:] in (["1", "3", "5", "7", "1"], ["1", "3", "5", "1"])
    assert len(second.lines) == 27 - len(shown)
    for axes in (first, second):
        (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
        for text in axes.texts:
            assert left < text.get_position()[0] < right
            assert top < text.get_position()[1] < bottom


def test_png_pdf_and_csv_lie_beside_each_other_with_equal_bytes_each_time(tmp_path: Path) -> None:
    for name in ("a", "b"):
        neighbourhood_figure(tmp_path / f"{name}.png", [neighbourhood("2D", 3, 4)], columns=1)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.csv", "a.pdf", "a.png", "b.csv", "b.pdf", "b.png"]
    for suffix in (".csv", ".pdf", ".png"):
        assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()
