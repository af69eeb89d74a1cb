"""Sample grids, and the sheet that all pictures are laid out on."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import find_objects

from mirai.analysis import style
from mirai.analysis.figures import GAP, GROUP_GAP, Method, arrange, block_width, plain_grid, sample_grid
from mirai.analysis.style import (
    DPI,
    INK,
    METHOD_COLOURS,
    TEXT_WIDTH,
    Pixels,
    Sheet,
    base_colour,
    lighter,
    line_looks,
    run_colour,
    text_pixels,
    wrap,
)
from mirai.experiments.grid import load_grid
from tests.conftest import WriteGrid

pytestmark = pytest.mark.full

LABELS = ("LlamaGen-B", "+ Mirai-I", "+ Mirai-E")
COLOURS = dict(zip(LABELS, METHOD_COLOURS.values(), strict=False))


def solid(red: int, count: int, side: int = 8) -> Pixels:
    """Images (count, side, side, 3), each of a colour of its own: its row's red, its index as green."""
    images = np.zeros((count, side, side, 3), np.uint8)
    images[..., 0], images[..., 2] = red, 255
    images[..., 1] = np.arange(count)[:, None, None]
    return images


def method(label: str, red: int, classes: int, per_class: int = 1, side: int = 8) -> Method:
    """A method with `solid` images, numbered through all its classes."""
    return Method(label, COLOURS.get(label, INK), np.split(solid(red, classes * per_class, side), classes))


def boxes(page: Pixels, red: int) -> list[tuple[int, int, int, int]]:
    """Top, left, height, width of the filled square each image of `solid(red, ...)` has become, in their order."""
    labels = np.where((page[..., 0] == red) & (page[..., 2] == 255), page[..., 1].astype(np.int32) + 1, 0)
    found = [(y.start, x.start, y.stop - y.start, x.stop - x.start) for y, x in find_objects(labels)]
    assert np.bincount(labels.ravel())[1:].tolist() == [height * width for _, _, height, width in found]
    return found


def read(path: Path) -> Pixels:
    return np.asarray(Image.open(path).convert("RGB"))


@pytest.fixture
def sheets(monkeypatch: pytest.MonkeyPatch) -> list[Sheet]:
    """Collects the sheets instead of writing them."""
    collected: list[Sheet] = []
    monkeypatch.setattr(Sheet, "save", lambda sheet, path: collected.append(sheet))
    return collected


def test_methods_are_rows_and_classes_are_columns_of_equal_whole_enlarged_cells(tmp_path: Path) -> None:
    rows = [method(label, red, 3, 2) for label, red in zip(LABELS, (10, 60, 110), strict=True)]
    sample_grid(tmp_path / "grid.png", rows, class_names=["sunset", "tiles", "tree"], title="Samples")
    page = read(tmp_path / "grid.png")
    tops, lefts, heights, widths = np.moveaxis(np.array([boxes(page, red) for red in (10, 60, 110)]), -1, 0)
    cell = heights[0, 0]
    assert cell > 100
    assert cell % 8 == 0
    assert (heights == cell).all()
    assert (widths == cell).all()
    assert (tops == tops[:, :1]).all()
    assert (np.diff(tops[:, 0]) == cell + GAP).all()
    assert (lefts == lefts[:1]).all()
    assert (np.diff(lefts[0]) == cell + np.array([GAP, GROUP_GAP, GAP, GROUP_GAP, GAP])).all()


def test_png_and_pdf_lie_beside_each_other_and_nothing_else(tmp_path: Path) -> None:
    sample_grid(tmp_path / "new" / "grid.pdf", [method("LlamaGen-B", 0, 2)], class_names=["a", "b"])
    assert sorted(file.name for file in (tmp_path / "new").iterdir()) == ["grid.pdf", "grid.png"]
    assert (tmp_path / "new" / "grid.pdf").read_bytes().startswith(b"%PDF")


def test_equal_figures_are_equal_bytes_whatever_the_users_matplotlib_settings(tmp_path: Path) -> None:
    def write(name: str) -> tuple[bytes, bytes]:
        sample_grid(tmp_path / name, [method("LlamaGen-B", 0, 2)], class_names=["a", "b"])
        return (tmp_path / name).read_bytes(), (tmp_path / name).with_suffix(".pdf").read_bytes()

    first = write("first.png")
    with matplotlib.rc_context({"font.family": "serif", "savefig.bbox": "tight", "figure.facecolor": "red"}):
        assert write("second.png") == first
    assert b"CreationDate" not in first[1]


def test_labels_stand_in_the_given_order_in_their_methods_colour(sheets: list[Sheet]) -> None:
    rows = [method(label, 0, 2) for label in reversed(LABELS)]
    sample_grid(Path("grid.png"), rows, class_names=["first", "second"])
    labels = [(text, look["color"]) for _, _, text, look in sorted(sheets[0].texts) if text in LABELS]
    assert labels == [(label, COLOURS[label]) for label in reversed(LABELS)]
    titles = [text for _, _, text, _ in sorted(sheets[0].texts) if text in ("first", "second")]
    assert titles == ["first", "second"]


def test_classes_that_do_not_fit_side_by_side_go_on_in_a_band_below_with_all_methods_again(sheets: list[Sheet]) -> None:
    rows = [method(label, red, 10, 4, 32) for label, red in zip(LABELS, (10, 60, 110), strict=True)]
    names = [f"class {index}" for index in range(10)]
    sample_grid(Path("grid.png"), rows, class_names=names)
    page = sheets[0].canvas
    assert page.shape[1] <= TEXT_WIDTH * DPI
    tops = [[top for top, *_ in boxes(page, red)] for red in (10, 60, 110)]
    bands = len(set(tops[0]))
    assert bands > 1
    assert [[text for *_, text, _ in sheets[0].texts].count(label) for label in LABELS] == [bands] * 3
    assert tops[0] == sorted(tops[0])
    assert max(tops[2][:4]) < min(tops[0][-4:])


@pytest.mark.parametrize(
    ("classes", "across", "side"), [(10, 1, 32), (10, 8, 32), (8, 1, 256), (100, 1, 256), (1, 50, 8), (3, 1, 1024)]
)
def test_every_class_has_a_place_and_cells_are_whole_multiples_of_the_images(
    classes: int, across: int, side: int
) -> None:
    papers = [(3.35, 1), *((TEXT_WIDTH, bands) for bands in range(1, classes + 1))]
    bands, cell = arrange(classes, across, side, 500, papers, 200)
    assert [index for band in bands for index in band] == list(range(classes))
    assert cell >= side
    assert cell % side == 0
    assert max(map(len, bands)) == len(bands[0]) == math.ceil(classes / len(bands))


def test_labels_are_plain_text_not_mathematics(tmp_path: Path) -> None:
    label = "$\\frac$ {} λ = 2 → 1"
    sample_grid(tmp_path / "grid.png", [method(label, 0, 1)], class_names=[label], title=label)
    assert (tmp_path / "grid.png").exists()


def test_text_is_inside_the_page_and_above_its_own_picture(sheets: list[Sheet]) -> None:
    names = ["Chesapeake Bay retriever", "an_awfully_long_class_name_of_a_folder", "cat"]
    rows = [method(label, 1, 3) for label in ("LlamaGen-B + Mirai-I with a rather long label", "another")]
    sample_grid(
        Path("grid.png"), rows, class_names=names, note="A note " * 30, title="A title longer than the page " * 3
    )
    sheet = sheets[0]
    shown = np.argwhere((sheet.canvas[..., 0] == 1) & (sheet.canvas[..., 2] == 255))
    (top, left_edge), (bottom, _) = shown.min(axis=0), shown.max(axis=0)
    for x, baseline, text, look in sheet.texts:
        extent = text_pixels(text, look["fontsize"], bold=look["fontweight"] == "bold")
        left = x - extent / 2 if look["horizontalalignment"] == "center" else x
        assert left >= 0
        assert left + extent <= sheet.width
        assert 0 < baseline < sheet.height
        if look["color"] == style.FAINT:
            assert baseline > bottom
        elif look["horizontalalignment"] == "left":
            assert left + extent < left_edge
        else:
            assert baseline < top


def test_wrapped_text_fits_keeps_its_words_and_shares_one_size() -> None:
    texts = ["golden retriever", "sports car", "three-objects"]
    longest = text_pixels("three-objects", 8)
    lines, size = wrap(texts, longest, 8)
    assert [text.replace("\n", " ") for text in lines] == texts
    assert size == 8
    assert max(text_pixels(line, size) for text in lines for line in text.split("\n")) <= longest * 1.001
    narrow, smaller = wrap(texts, 0.8 * longest, 8)
    assert style.MIN_SIZE < smaller < 8
    assert [text.replace("\n", " ") for text in narrow] == texts
    (cut,), smallest = wrap(["unbreakable_name_of_a_class_folder"], 100, 8)
    assert smallest == style.MIN_SIZE
    assert cut.endswith("…")
    assert text_pixels(cut, smallest) <= 101


def test_a_method_has_one_colour_whatever_its_row_is_called(write_grid: WriteGrid) -> None:
    arms = ({"label": "LlamaGen-XL", "arm": arm} for arm in METHOD_COLOURS)
    name = write_grid(*arms, {"arm": "mirai-e", "ema": "pretrained"})
    colours = [run_colour(row.runs[0]) for row in load_grid(name, "digits").rows]
    assert colours == [*METHOD_COLOURS.values(), lighter(METHOD_COLOURS["mirai-e"])]
    assert len(set(colours)) == 5


def test_one_method_alone_is_unnamed_and_shows_many_samples_of_a_class_as_a_block(sheets: list[Sheet]) -> None:
    sample_grid(Path("grid.png"), [method("+ Mirai-I", 9, 1, 24)], class_names=["golden retriever"])
    places = boxes(sheets[0].canvas, 9)
    assert len({top for top, *_ in places}) == 4
    assert len({left for _, left, *_ in places}) == 6
    assert places == sorted(places)
    assert [text for *_, text, _ in sheets[0].texts if text.strip()] == ["golden retriever"]


@pytest.mark.parametrize(("count", "columns"), [(1, 1), (2, 2), (4, 2), (7, 3), (8, 4), (24, 6), (23, 5)])
def test_a_block_is_near_a_square_and_without_holes_where_that_can_be(count: int, columns: int) -> None:
    assert block_width(count) == columns


def test_a_class_with_fewer_samples_leaves_places_empty(sheets: list[Sheet]) -> None:
    few = [Method(label, "#000000", [solid(red, 3)[:1], solid(red, 3)[1:]]) for label, red in (("a", 10), ("b", 60))]
    sample_grid(Path("grid.png"), few, class_names=["rare", "common"])
    (_, first, _, cell), (_, second, *_), (_, third, *_) = boxes(sheets[0].canvas, 10)
    assert second - first == 2 * (cell + GAP) - GAP + GROUP_GAP
    assert third - second == cell + GAP


def test_lines_of_one_method_share_a_colour_and_differ_in_style_and_marker() -> None:
    plain, mirai = METHOD_COLOURS["baseline"], METHOD_COLOURS["mirai-e"]
    looks = line_looks([plain, mirai, lighter(mirai), plain])
    assert [one["color"] for one in looks] == [plain, mirai, lighter(mirai), plain]
    styles = [(one["linestyle"], one["marker"]) for one in looks]
    assert styles[0] == styles[1] != styles[2] == styles[3]
    assert base_colour(lighter(mirai)) == mirai


@pytest.mark.parametrize("colour", METHOD_COLOURS.values())
def test_a_methods_colour_is_readable_on_white(colour: str) -> None:
    channels = np.array([int(colour[start : start + 2], 16) for start in (1, 3, 5)]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    assert 1.05 / (linear @ [0.2126, 0.7152, 0.0722] + 0.05) > 4.5  # WCAG's contrast ratio


def test_a_plain_grid_fills_rows_with_whole_enlarged_images(tmp_path: Path) -> None:
    plain_grid(tmp_path / "out.png", solid(7, 5, 32), columns=3)
    page = read(tmp_path / "out.png")
    assert page.shape == (2 * 128 + 2, 3 * 128 + 4, 3)
    assert boxes(page, 7) == [
        (130 * row, 130 * column, 128, 128) for row, column in ((0, 0), (0, 1), (0, 2), (1, 0), (1, 1))
    ]
    assert (page[130:, 260:] == 255).all()
    assert [file.name for file in tmp_path.iterdir()] == ["out.png"]


def test_a_plain_grid_of_few_or_large_images_is_as_large_as_they_are(tmp_path: Path) -> None:
    plain_grid(tmp_path / "out.png", solid(7, 2, 200), columns=8)
    assert read(tmp_path / "out.png").shape == (200, 402, 3)


def test_figures_need_neither_torch_nor_pyplot() -> None:
    code = "import sys, mirai.analysis.figures; print({'torch', 'matplotlib.pyplot'} & sys.modules.keys())"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "set()\n"
