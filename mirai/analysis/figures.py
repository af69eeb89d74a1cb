"""Pictures of samples: methods under each other at the same classes and seeds (Figs. 1, 8, 10-15), and a plain grid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from mirai.analysis.style import (
    COLUMN_WIDTH,
    FAINT,
    LABEL_SIZE,
    NOTE_SIZE,
    TEXT_WIDTH,
    TITLE_SIZE,
    Pixels,
    Sheet,
    enlarged,
    line_pixels,
    pixels,
    text_pixels,
    wrap,
)
from mirai.states import atomic_file

GAP, GROUP_GAP, BAND_GAP = pixels(0.02), pixels(0.06), pixels(0.12)  # between samples, classes, bands of classes
MARGIN = pixels(0.04)
LABEL_WIDTH = pixels(1.05)  # at most, for the methods' names
# A picture on paper, at least; with more columns than fit, classes go on in a band below. One method alone has room.
SMALLEST_CELL, SMALLEST_ALONE = pixels(0.42), pixels(0.6)
LONGEST_LINE = 8  # samples of a class side by side; more become a block
PLAIN_SIDE, PLAIN_GAP = 128, 2  # pixels: small images of a plain grid are enlarged to at least this side
Papers = Sequence[tuple[float, int]]  # widths in inches with the number of bands to try on each, in turn


@dataclass(frozen=True)
class Method:
    """A row of a sample grid: its name, and per class its samples uint8 (n, S, S, 3); n may differ between classes."""

    label: str
    colour: str
    classes: Sequence[Pixels]


def sample_grid(
    path: Path, methods: Sequence[Method], *, class_names: Sequence[str], title: str | None = None, note: str = ""
) -> None:
    """Write samples of several methods at the same classes and seeds: a row per method, a column group per class.

    Writes `path` and the same name as .pdf / .png. Classes that do not fit side by side on TEXT_WIDTH go on in a band
    below, with all methods again. `title` stands above, `note` small below.
    """
    papers = [(TEXT_WIDTH, bands) for bands in range(1, len(class_names) + 1)]
    if len(methods) > 1:  # one alone is a gallery
        papers.insert(0, (COLUMN_WIDTH, 1))
    sample_sheet(methods, class_names=class_names, papers=papers, title=title, note=note).save(path)


def sample_sheet(
    methods: Sequence[Method],
    *,
    class_names: Sequence[str],
    papers: Papers,
    title: str | None = None,
    note: str = "",
) -> Sheet:
    """Lay out a sample grid on the first of the papers where its pictures are large enough; one method goes unnamed."""
    side = methods[0].classes[0].shape[1]
    assert all(len(method.classes) == len(class_names) for method in methods)
    assert all(images.shape[1:] == (side, side, 3) for method in methods for images in method.classes)
    alone = len(methods) == 1
    most = max(len(images) for method in methods for images in method.classes)
    across = block_width(most) if alone or most > LONGEST_LINE else most
    down = math.ceil(most / across)

    labels, label_size = wrap([method.label for method in methods], LABEL_WIDTH, LABEL_SIZE, bold=True)
    label_width = max(text_pixels(line, label_size, bold=True) for label in labels for line in label.split("\n"))
    left = MARGIN if alone else MARGIN + math.ceil(label_width) + GROUP_GAP
    smallest = SMALLEST_ALONE if alone else SMALLEST_CELL
    bands, cell = arrange(len(class_names), across, side, left, papers, smallest)
    group = across * (cell + GAP) - GAP
    block = down * (cell + GAP) + (GROUP_GAP if down > 1 else 0)
    names, name_size = wrap(class_names, group, LABEL_SIZE)
    width = left + len(bands[0]) * (group + GROUP_GAP) - GROUP_GAP + MARGIN
    (heading,), heading_size = wrap([title or ""], width - 2 * MARGIN, TITLE_SIZE, bold=True)
    (caption,), caption_size = wrap([note], width - 2 * MARGIN, NOTE_SIZE)

    heading_height = line_pixels(heading_size, heading) + BAND_GAP if title else 0
    caption_height = line_pixels(caption_size, caption) + GROUP_GAP if note else 0
    name_heights = [max(line_pixels(name_size, names[index]) for index in band) + GAP for band in bands]
    band_heights = [height + len(methods) * block + BAND_GAP for height in name_heights]
    sheet = Sheet(width, MARGIN + heading_height + sum(band_heights) - BAND_GAP - GAP + caption_height + MARGIN)
    sheet.text(width / 2, MARGIN, heading, heading_size, bold=True, centred=True)
    sheet.text(MARGIN, sheet.height - MARGIN - caption_height + GROUP_GAP, caption, caption_size, colour=FAINT)
    bottom = MARGIN + heading_height
    for band, name_height, band_height in zip(bands, name_heights, band_heights, strict=True):
        top = bottom + name_height
        bottom += band_height
        for row, method in enumerate(methods if not alone else []):
            y = top + row * block + (down * (cell + GAP) - GAP - line_pixels(label_size, labels[row])) / 2
            sheet.text(MARGIN, y, labels[row], label_size, bold=True, colour=method.colour)
        for place, index in enumerate(band):
            x = left + place * (group + GROUP_GAP)
            y = top - GAP - line_pixels(name_size, names[index])
            sheet.text(x + group / 2, y, names[index], name_size, centred=True)
            for row, method in enumerate(methods):
                for sample, image in enumerate(method.classes[index]):
                    line, column = divmod(sample, across)
                    sheet.picture(x + column * (cell + GAP), top + row * block + line * (cell + GAP), image, cell)
    return sheet


def block_width(count: int) -> int:
    """Columns of a block of so many samples: no fewer than rows, without holes where that stays near a square."""
    least = math.ceil(math.sqrt(count))
    return next((columns for columns in range(least, 2 * least) if count % columns == 0), least)


def arrange(
    classes: int, across: int, side: int, left: int, papers: Papers, smallest: int
) -> tuple[list[list[int]], int]:
    """Bands of classes, and the side of a cell in pixels, a multiple of the images' `side`.

    The first paper, a width with a number of bands, on which the pictures are not below `smallest`, else the last.
    """
    smallest = max(side, smallest // side * side)
    cell, bands = 0, 0
    for width, bands in papers:
        columns = math.ceil(classes / bands)
        room = pixels(width) - left - MARGIN - (columns - 1) * GROUP_GAP - columns * (across - 1) * GAP
        cell = room // (columns * across) // side * side
        if cell >= smallest:
            break
    return [band.tolist() for band in np.array_split(np.arange(classes), bands)], max(cell, smallest)


def plain_grid(path: Path, images: Pixels, columns: int) -> None:
    """Write images uint8 (n, S, S, 3) row by row as one PNG, small ones enlarged by a whole factor, unlabelled."""
    count, side = images.shape[:2]
    factor = max(1, math.ceil(PLAIN_SIDE / side))
    step = side * factor + PLAIN_GAP
    columns = min(columns, count)
    canvas = np.full((math.ceil(count / columns) * step - PLAIN_GAP, columns * step - PLAIN_GAP, 3), 255, np.uint8)
    for index, image in enumerate(images):
        top, left = (step * place for place in divmod(index, columns))
        canvas[top : top + side * factor, left : left + side * factor] = enlarged(image, factor)
    with atomic_file(path) as file:
        Image.fromarray(canvas).save(file, format="PNG")
