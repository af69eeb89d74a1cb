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
from mirai.analysis.figures import GAP, GROUP_GAP, arrange, plain_grid, sample_grid
from mirai.analysis.style import DPI, METHOD_COLOURS, TEXT_WIDTH, Pixels, Sheet, method_colour, text_pixels, wrap

LABELS = ("LlamaGen-B", "+ Mirai-I", "+ Mirai-E")


def solid(red: int, count: int, side: int = 8) -> Pixels:
    """Images (count, side, side, 3), each of a colour of its own: its row's red, its index as green."""
    images = np.zeros((count, side, side, 3), np.uint8)
    images[..., 0], images[..., 2] = red, 255
    images[..., 1] = np.arange(count)[:, None, None]
    return images


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
    rows = [(label, solid(red, 6)) for label, red in zip(LABELS, (10, 60, 110), strict=True)]
    sample_grid(tmp_path / "grid.png", rows, column_titles=["sunset", "tiles", "tree"], title="Samples")
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
    sample_grid(tmp_path / "new" / "grid.pdf", [("LlamaGen-B", solid(0, 2))], column_titles=["a", "b"])
    assert sorted(file.name for file in (tmp_path / "new").iterdir()) == ["grid.pdf", "grid.png"]
    assert (tmp_path / "new" / "grid.pdf").read_bytes().startswith(b"%PDF")


def test_equal_figures_are_equal_bytes_whatever_the_users_matplotlib_settings(tmp_path: Path) -> None:
    def write(name: str) -> tuple[bytes, bytes]:
        sample_grid(tmp_path / name, [("LlamaGen-B", solid(0, 2))], column_titles=["a", "b"])
        return (tmp_path / name).read_bytes(), (tmp_path / name).with_suffix(".pdf").read_bytes()

    first = write("first.png")
    with matplotlib.rc_context({"font.family": "serif", "savefig.bbox": "tight", "figure.facecolor": "red"}):
        assert write("second.png") == first
    assert b"CreationDate" not in first[1]


def test_labels_stand_in_the_given_order_in_their_methods_colour(sheets: list[Sheet]) -> None:
    rows = [(label, solid(0, 2)) for label in reversed(LABELS)]
    sample_grid(Path("grid.png"), rows, column_titles=["first", "second"], title=None)
    labels = [(text, look["color"]) for _, _, text, look in sorted(sheets[0].texts) if text in LABELS]
    assert labels == [(label, method_colour(label)) for label in reversed(LABELS)]
    titles = [text for _, _, text, _ in sorted(sheets[0].texts) if text in ("first", "second")]
    assert titles == ["first", "second"]


def test_classes_that_do_not_fit_side_by_side_go_on_in_a_band_below_with_all_methods_again(sheets: list[Sheet]) -> None:
    rows = [(label, solid(red, 40, 32)) for label, red in zip(LABELS, (10, 60, 110), strict=True)]
    names = [f"class {index}" for index in range(10)]
    sample_grid(Path("grid.png"), rows, column_titles=names)
    page = sheets[0].canvas
    assert page.shape[1] <= TEXT_WIDTH * DPI
    tops = [[top for top, *_ in boxes(page, red)] for red in (10, 60, 110)]
    bands = len(set(tops[0]))
    assert bands > 1
    assert [[text for *_, text, _ in sheets[0].texts].count(label) for label in LABELS] == [bands] * 3
    assert tops[0] == sorted(tops[0])
    assert max(tops[2][:4]) < min(tops[0][-4:])


@pytest.mark.parametrize(
    ("classes", "per_class", "side"), [(10, 1, 32), (10, 8, 32), (8, 1, 256), (100, 1, 256), (1, 50, 8), (3, 1, 1024)]
)
def test_every_class_has_a_place_and_cells_are_whole_multiples_of_the_images(
    classes: int, per_class: int, side: int
) -> None:
    bands, cell = arrange(classes, per_class, side, left=500)
    assert [index for band in bands for index in band] == list(range(classes))
    assert cell >= side
    assert cell % side == 0
    assert max(map(len, bands)) == len(bands[0]) == math.ceil(classes / len(bands))


def test_labels_are_plain_text_not_mathematics(tmp_path: Path) -> None:
    label = "$\\frac$ {} λ = 2 → 1"
    sample_grid(tmp_path / "grid.png", [(label, solid(0, 1))], column_titles=[label], title=label)
    assert (tmp_path / "grid.png").exists()


def test_text_is_inside_the_page_and_above_its_own_picture(sheets: list[Sheet]) -> None:
    names = ["Chesapeake Bay retriever", "an_awfully_long_class_name_of_a_folder", "cat"]
    rows = [("LlamaGen-B + Mirai-I with a rather long label", solid(1, 3))]
    sample_grid(Path("grid.png"), rows, column_titles=names, title="A title longer than the page " * 3)
    sheet = sheets[0]
    first_picture = boxes(sheet.canvas, 1)[0]
    for x, baseline, text, look in sheet.texts:
        extent = text_pixels(text, look["fontsize"], bold=look["fontweight"] == "bold")
        left = x - extent / 2 if look["horizontalalignment"] == "center" else x
        assert left >= 0
        assert left + extent <= sheet.width
        assert 0 < baseline < sheet.height
        if look["horizontalalignment"] == "left":
            assert left + extent < first_picture[1]
        else:
            assert baseline < first_picture[0]


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


def test_a_method_has_one_colour_whatever_its_row_is_called() -> None:
    assert method_colour("mirai-i") == method_colour("LlamaGen-B + Mirai-I, layer 4") == METHOD_COLOURS["mirai-i"]
    assert method_colour("+ Mirai-E (Pretrained)") == METHOD_COLOURS["mirai-e"]
    assert method_colour("LlamaGen-XL") == method_colour("baseline") == METHOD_COLOURS["baseline"]
    assert method_colour("Output level, K = 3") == METHOD_COLOURS["output-level"]
    assert len(set(METHOD_COLOURS.values())) == 4


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
