"""One look for every figure: the colours of the methods, type sizes, paper widths, and files with reproducible bytes.

Figures are matplotlib Figure objects, never pyplot's, so that nothing is remembered from one figure to the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

from mirai.experiments.arms import arm_of
from mirai.experiments.recipe import Run
from mirai.states import atomic_file

Pixels = npt.NDArray[np.uint8]

COLUMN_WIDTH, TEXT_WIDTH = 3.35, 6.9  # inches: one column and the full width of a two-column paper
DPI = 512  # a power of two, so that pixels / DPI * DPI is the same whole number again
FONT = "DejaVu Sans"  # comes with matplotlib: the same letters on every machine
TITLE_SIZE, LABEL_SIZE, NOTE_SIZE, MIN_SIZE = 9.0, 8.0, 6.5, 5.0  # points
LINE_HEIGHT, BASELINE = 1.25, 0.95  # of the type size: a line's height, and how far below its top the letters stand
INK, FAINT = "#222222", "#666666"
FRAME, FRAME_GREY = 2, 210  # pixels around a picture, so that a white one is seen on white paper

# Apart in hue for all common colour visions and dark enough for text on white (contrast above 4.5).
METHOD_COLOURS = {"baseline": "#595959", "mirai-i": "#0069B4", "mirai-e": "#C14A00", "output-level": "#9A3A86"}


# Of lines with one method's colour: the first, the second, ... Marks tell them apart without any colour.
LINES = (("-", "o"), ("--", "s"), ("-.", "^"), (":", "D"), ((0, (6, 1, 1, 1, 1, 1)), "v"))


def run_colour(run: Run) -> str:
    """Colour of a run's method, whatever its row is called; that of a pretrained EMA is a lighter Mirai-E."""
    colour = METHOD_COLOURS[arm_of(run.foresight)]
    return lighter(colour) if run.foresight is not None and run.foresight.source == "pretrained" else colour


def lighter(colour: str) -> str:
    """A third of the way to white."""
    return "#" + "".join(f"{int(int(colour[at : at + 2], 16) * 2 / 3 + 85):02X}" for at in (1, 3, 5))


def base_colour(colour: str) -> str:
    """The method's colour that a lighter one was made from."""
    return next((base for base in METHOD_COLOURS.values() if colour in (base, lighter(base))), colour)


def line_looks(colours: Sequence[str]) -> list[dict[str, Any]]:
    """Line style and marker of each line: those of one method differ, and the first of every method look alike."""
    looks, seen = [], dict.fromkeys(map(base_colour, colours), 0)
    for colour in colours:
        style, marker = LINES[seen[base_colour(colour)] % len(LINES)]
        seen[base_colour(colour)] += 1
        looks.append({"color": colour, "linestyle": style, "marker": marker})
    return looks


def look() -> AbstractContextManager[None]:
    """The project's matplotlib settings, to build figures inside; the user's own matplotlibrc has no effect there."""
    settings: dict[str, Any] = {
        "font.family": FONT,
        "font.size": LABEL_SIZE,
        "axes.titlesize": TITLE_SIZE,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "legend.frameon": False,
        "pdf.fonttype": 42,  # TrueType: text in a PDF stays text, which publishers ask for
    }
    return matplotlib.style.context(["default", settings])


def save_figure(path: Path, figure: Figure) -> None:
    """Write a figure as PNG and PDF beside each other, atomically; equal figures give equal bytes (no dates inside)."""
    dateless: dict[str, dict[str, None]] = {
        ".pdf": {"CreationDate": None, "Creator": None, "Producer": None},
        ".png": {"Software": None},
    }
    assert path.suffix in dateless, f"a figure is a .png or .pdf file, not {path}"
    with look():
        for suffix, metadata in dateless.items():
            with atomic_file(path.with_suffix(suffix)) as file:
                figure.savefig(file, format=suffix[1:], dpi=DPI, metadata=metadata)


def pixels(length: float) -> int:
    """Whole pixels of a length in inches."""
    return round(length * DPI)


def line_pixels(size: float, text: str = "") -> int:
    """Height in pixels of a text's lines at a type size in points."""
    return pixels((text.count("\n") + 1) * LINE_HEIGHT * size / 72)


def text_pixels(text: str, size: float, *, bold: bool = False) -> float:
    """Width in pixels of one line of type."""
    font = FontProperties(family=FONT, size=size, weight="bold" if bold else "normal")
    return text_to_path.get_text_width_height_descent(text, font, ismath=False)[0] * DPI / 72


def wrap(texts: Sequence[str], width: float, size: float, *, bold: bool = False) -> tuple[list[str], float]:
    """Break texts into lines of at most `width` pixels -> texts with line breaks, and the type size common to all.

    The type shrinks (not below MIN_SIZE) until the longest word fits; what is longer still ends in an ellipsis.
    """
    longest = max((text_pixels(word, size, bold=bold) for text in texts for word in text.split()), default=0.0)
    size = max(MIN_SIZE, min(size, size * width / max(longest, 1.0)))

    def fits(line: str) -> bool:
        return text_pixels(line, size, bold=bold) <= width * 1.001  # a margin for the word that set the size

    def broken(text: str) -> str:
        lines: list[str] = []
        for word in text.split():
            if lines and fits(f"{lines[-1]} {word}"):
                lines[-1] += f" {word}"
                continue
            while not fits(word) and len(word) > 2:
                word = word.removesuffix("…")[:-1] + "…"
            lines.append(word)
        return "\n".join(lines)

    return [broken(text) for text in texts], size


def enlarged(image: Pixels, factor: int) -> Pixels:
    """(h, w, 3) -> (h * factor, w * factor, 3): every pixel becomes a square, nothing is interpolated."""
    return image.repeat(factor, axis=0).repeat(factor, axis=1)


@dataclass
class Sheet:
    """A page of pictures and text, placed in pixels from the top left.

    Pictures keep whole pixels, in the PNG as in the PDF; text is vector in the PDF.
    """

    width: int
    height: int
    canvas: Pixels = field(init=False)  # (height, width, 3)
    texts: list[tuple[float, float, str, dict[str, Any]]] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self.canvas = np.full((self.height, self.width, 3), 255, np.uint8)

    def picture(self, left: int, top: int, image: Pixels, side: int) -> None:
        """Paste a square picture, enlarged to `side` pixels, a multiple of its own side."""
        assert image.shape == (len(image), len(image), 3), image.shape
        assert side % len(image) == 0, f"{side} pixels are no multiple of {len(image)}"
        self.canvas[top - FRAME : top + side + FRAME, left - FRAME : left + side + FRAME] = FRAME_GREY
        self.canvas[top : top + side, left : left + side] = enlarged(image, side // len(image))

    def text(
        self,
        x: float,
        y: float,
        text: str,
        size: float,
        *,
        colour: str = INK,
        bold: bool = False,
        centred: bool = False,
    ) -> None:
        """Write lines of text downwards from y, each starting at x or centred on it."""
        style: dict[str, Any] = {"fontsize": size, "color": colour, "fontweight": "bold" if bold else "normal"}
        style |= {"horizontalalignment": "center" if centred else "left", "verticalalignment": "baseline"}
        for number, line in enumerate(text.split("\n")):
            baseline = y + (number * LINE_HEIGHT + BASELINE) * size / 72 * DPI
            self.texts.append((x, baseline, line, {**style, "parse_math": False}))

    def figure(self, beside: int = 0, least_height: int = 0) -> Figure:
        """The sheet as a figure, at its top left, with so many empty pixels beside; to be drawn on inside `look`."""
        width, height = self.width + beside, max(self.height, least_height)
        figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
        axes = figure.add_axes((0, 1 - self.height / height, self.width / width, self.height / height))
        axes.set_axis_off()
        axes.imshow(self.canvas, interpolation="none", extent=(0, self.width, self.height, 0), aspect="auto")
        for x, y, text, style in self.texts:
            axes.text(x, y, text, **style)
        return figure

    def save(self, path: Path) -> None:
        """Write the sheet as PNG and PDF beside each other, atomically."""
        with look():
            save_figure(path, self.figure())
