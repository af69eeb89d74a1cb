"""Pictures of samples: methods under each other at the same classes and seeds (Fig. 1, Fig. 8), and a plain grid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from mirai.analysis.style import (
    COLUMN_WIDTH,
    LABEL_SIZE,
    TEXT_WIDTH,
    TITLE_SIZE,
    Pixels,
    Sheet,
    enlarged,
    line_pixels,
    method_colour,
    pixels,
    text_pixels,
    wrap,
)
from mirai.states import atomic_file

GAP, GROUP_GAP, BAND_GAP = pixels(0.02), pixels(0.06), pixels(0.12)  # between samples, classes, bands of classes
MARGIN = pixels(0.04)
LABEL_WIDTH = pixels(1.05)  # at most, for the methods' names
SMALLEST_CELL = pixels(0.42)  # a picture on paper; with more columns than fit, classes go on in a band below
PLAIN_SIDE, PLAIN_GAP = 128, 2  # pixels: small images of a plain grid are enlarged to at least this side


def sample_grid(
    path: Path, rows: Sequence[tuple[str, Pixels]], *, column_titles: Sequence[str], title: str | None = None
) -> None:
    """Write samples of several methods at the same classes and seeds: a row per method, a column group per class.

    `rows`: (label, images uint8 (n, S, S, 3)), n the same multiple of the number of titles, the samples of a class
    next to each other. Writes `path` and the same name as .pdf / .png. Classes that do not fit side by side on
    TEXT_WIDTH go on in a band below, with all methods again.
    """
    count, side = rows[0][1].shape[:2]
    assert all(images.shape == (count, side, side, 3) and images.dtype == np.uint8 for _, images in rows)
    per_class, rest = divmod(count, len(column_titles))
    assert per_class > rest == 0, f"{count} images are no multiple of {len(column_titles)} column titles"

    labels, label_size = wrap([label for label, _ in rows], LABEL_WIDTH, LABEL_SIZE, bold=True)
    label_width = max(text_pixels(line, label_size, bold=True) for label in labels for line in label.split("\n"))
    left = MARGIN + math.ceil(label_width) + GROUP_GAP
    bands, cell = arrange(len(column_titles), per_class, side, left)
    group = per_class * (cell + GAP) - GAP
    names, name_size = wrap(column_titles, group, LABEL_SIZE)
    width = left + len(bands[0]) * (group + GROUP_GAP) - GROUP_GAP + MARGIN
    (heading,), heading_size = wrap([title or ""], width - 2 * MARGIN, TITLE_SIZE, bold=True)

    heading_height = line_pixels(heading_size, heading) + BAND_GAP if title else 0
    name_heights = [max(line_pixels(name_size, names[index]) for index in band) + GAP for band in bands]
    band_heights = [height + len(rows) * (cell + GAP) + BAND_GAP for height in name_heights]
    sheet = Sheet(width, MARGIN + heading_height + sum(band_heights) - BAND_GAP - GAP + MARGIN)
    sheet.text(width / 2, MARGIN, heading, heading_size, bold=True, centred=True)
    bottom = MARGIN + heading_height
    for band, name_height, band_height in zip(bands, name_heights, band_heights, strict=True):
        top = bottom + name_height
        bottom += band_height
        for row, (label, _) in enumerate(rows):
            y = top + row * (cell + GAP) + (cell - line_pixels(label_size, labels[row])) / 2
            sheet.text(MARGIN, y, labels[row], label_size, bold=True, colour=method_colour(label))
        for place, index in enumerate(band):
            x = left + place * (group + GROUP_GAP)
            y = top - GAP - line_pixels(name_size, names[index])
            sheet.text(x + group / 2, y, names[index], name_size, centred=True)
            for row, (_, images) in enumerate(rows):
                for sample, image in enumerate(images[index * per_class : (index + 1) * per_class]):
                    sheet.picture(x + sample * (cell + GAP), top + row * (cell + GAP), image, cell)
    sheet.save(path)


def arrange(classes: int, per_class: int, side: int, left: int) -> tuple[list[list[int]], int]:
    """Bands of classes, and the side of a cell in pixels, a multiple of the images' `side`.

    One column of the paper is enough if the pictures are not below SMALLEST_CELL there; else its full width is used,
    with as few bands as that needs.
    """
    smallest = max(side, SMALLEST_CELL // side * side)
    cell, bands = 0, 0
    for paper, bands in [(COLUMN_WIDTH, 1), *((TEXT_WIDTH, bands) for bands in range(1, classes + 1))]:
        columns = math.ceil(classes / bands)
        room = pixels(paper) - left - MARGIN - (columns - 1) * GROUP_GAP - columns * (per_class - 1) * GAP
        cell = room // (columns * per_class) // side * side
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
