"""Hidden states on the token grid (Fig. 6 and 9): t-SNE of one image's tokens as colours, and how smooth the field is.

The colours are what the paper shows; the number says the same without t-SNE: how far apart the hidden states of
neighbouring tokens are, compared with any two tokens of the image.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.spatial.distance import pdist, squareform
from sklearn.manifold import TSNE

from mirai.analysis.style import (
    FAINT,
    INK,
    LABEL_SIZE,
    NOTE_SIZE,
    TEXT_WIDTH,
    TITLE_SIZE,
    Pixels,
    Sheet,
    line_pixels,
    pixels,
    wrap,
)
from mirai.states import write_text

Array = npt.NDArray[np.float64]

PERPLEXITY = 30.0  # not in the paper; scikit-learn's default (reading 9.21)
# Corners (x, y) = (0, 0), (1, 0), (0, 1), (1, 1) of the colour map, searched for such that places far apart differ in
# colour for normal, protan and deutan vision alike: lightness grows along y, blue turns to red and yellow along x.
CORNERS = np.array([[0x27, 0x56, 0xE5], [0x78, 0x0A, 0x0A], [0x53, 0xD5, 0xFF], [0xFF, 0xD0, 0x5D]]) / 255
CELL, LEGEND = pixels(1.0), pixels(0.55)  # largest side of a map, side of the colour map
GAP, AIR, MARGIN = pixels(0.07), pixels(0.02), pixels(0.04)


@dataclass(frozen=True)
class Maps:
    """A method's hidden states (M, N, D) of M images, tokens in raster order."""

    label: str
    colour: str
    hidden: npt.NDArray[np.floating]


def embed_tokens(hidden: npt.NDArray[np.floating], *, seed: int, perplexity: float = PERPLEXITY) -> Array:
    """t-SNE of an image's token states (N, D) -> (N, 2); the same input and seed give the same embedding.

    The perplexity is clipped to (N - 1) / 3, beyond which t-SNE has too few tokens. States that are all equal, which
    t-SNE cannot place, lie at the origin.
    """
    tokens = len(hidden)
    states = np.asarray(hidden, np.float64)
    if not np.ptp(states, axis=0).any():
        return np.zeros((tokens, 2))
    clipped = min(perplexity, (tokens - 1) / 3)
    return TSNE(2, perplexity=clipped, init="pca", random_state=seed).fit_transform(states).astype(np.float64)


def colours(embedding: Array) -> Array:
    """RGB in [0, 1] (N, 3) of embedded tokens (N, 2): bilinear between CORNERS, each axis by rank.

    Ranks instead of coordinates: every map spends the whole colour map on its tokens, so that an outlier cannot make
    one method's field look uniform, i.e. smooth. Orientation and scale of a t-SNE mean nothing: compare how colours
    change within a map, not colours across maps.
    """
    x, y = (ranks(axis)[:, None] for axis in embedding.T)
    return mix(x, y)


def mix(x: Array, y: Array) -> Array:
    """The 2-D colour map at x, y in [0, 1] (..., 1) -> RGB (..., 3)."""
    lower = CORNERS[0] + x * (CORNERS[1] - CORNERS[0])
    upper = CORNERS[2] + x * (CORNERS[3] - CORNERS[2])
    return lower + y * (upper - lower)


def ranks(values: Array) -> Array:
    """Ranks scaled to [0, 1]; equal values share their mean rank, so that values all equal are 0.5."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    mean_rank = np.cumsum(counts) - (counts + 1) / 2
    return mean_rank[place] / max(len(values) - 1, 1)


def neighbour_smoothness(hidden: npt.NDArray[np.floating], grid_side: int) -> float:
    """Mean cosine distance of grid neighbours (right and below) over that of all pairs of an image's states (N, D).

    Below 1: smoother than chance; 1: the states ignore the grid. Rows of `hidden` are grid cells in raster order. NaN
    if all states point the same way, where there is nothing to compare.
    """
    states = np.asarray(hidden, np.float64)
    unit = states / np.maximum(np.linalg.norm(states, axis=1, keepdims=True), 1e-12)
    return neighbour_ratio(pdist(unit, "sqeuclidean"), grid_side)  # |u - v|^2 = 2 (1 - cos), exactly 0 for equal states


def neighbour_ratio(distances: Array, grid_side: int) -> float:
    """Mean distance of right and lower neighbours over that of all pairs, from scipy's condensed distances."""
    cells = np.arange(grid_side**2).reshape(grid_side, grid_side)
    square = squareform(distances)
    assert len(square) == grid_side**2, f"{len(square)} tokens are no grid of side {grid_side}"
    right = square[cells[:, :-1], cells[:, 1:]]
    below = square[cells[:-1], cells[1:]]
    chance = distances.mean()
    return float(np.concatenate([right.ravel(), below.ravel()]).mean() / chance) if chance > 1e-12 else math.nan


def token_map_figure(
    path: Path, images: Pixels, maps: Sequence[Maps], *, grid_side: int, seed: int, layer: str, title: str | None = None
) -> None:
    """Write the token maps of n images: a row per image, the image first, then one map per method.

    `images` uint8 (n, S, S, 3) are the first of the M images of `maps`. The number below a map is
    `neighbour_smoothness`; below a method's name stands its mean +- standard deviation over all M. Writes `path`, the
    same name as .pdf / .png, and as .csv all M numbers, their mean and deviation, with the same ratio on the t-SNE
    embedding beside them. `layer` is how the text calls the block.
    """
    count = len(maps[0].hidden)
    assert all(one.hidden.shape[:2] == (count, grid_side**2) for one in maps)
    assert len(images) <= count
    fields = np.empty((count, len(maps), grid_side, grid_side, 3), np.uint8)
    ratios = np.empty((count, len(maps), 2))  # of the states, of their embedding
    for image in range(count):
        for method, one in enumerate(maps):
            embedding = embed_tokens(one.hidden[image], seed=seed)
            fields[image, method] = (colours(embedding) * 255).round().reshape(grid_side, grid_side, 3)
            ratios[image, method] = (
                neighbour_smoothness(one.hidden[image], grid_side),
                neighbour_ratio(pdist(embedding), grid_side),
            )
    write_text(path.with_suffix(".csv"), numbers(maps, ratios))
    draw(path, images, maps, fields, ratios[:, :, 0], layer=layer, title=title)


def numbers(maps: Sequence[Maps], ratios: Array) -> str:
    """The csv of ratios (M, methods, 2): image by image, then mean and standard deviation over the images."""
    lines = [(str(image), of_image) for image, of_image in enumerate(ratios)]
    lines.append(("mean", ratios.mean(axis=0)))
    if len(ratios) > 1:
        lines.append(("standard deviation", ratios.std(axis=0, ddof=1)))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("image", "method", "smoothness", "embedding_smoothness"))
    for name, of_methods in lines:
        for one, pair in zip(maps, of_methods, strict=True):
            writer.writerow((name, one.label, *(f"{ratio:.6f}" for ratio in pair)))
    return text.getvalue()


def draw(
    path: Path,
    images: Pixels,
    maps: Sequence[Maps],
    fields: Pixels,
    smoothness: Array,
    *,
    layer: str,
    title: str | None,
) -> None:
    """Lay out images (n, S, S, 3) with the first n fields of (M, methods, g, g, 3) and their numbers (M, methods)."""
    labels = [one.label for one in maps]
    columns = 1 + len(labels)
    unit = math.lcm(images.shape[1], fields.shape[2])  # whole pixels for an image's and a field's squares
    room = (pixels(TEXT_WIDTH) - 2 * MARGIN + GAP) // columns - GAP
    cell = max(unit, min(room, CELL) // unit * unit)
    step = cell + GAP
    width = 2 * MARGIN + columns * step - GAP
    names, name_size = wrap(["Image", *labels], cell, LABEL_SIZE, bold=True)
    name_height = max(line_pixels(name_size, name) for name in names)
    (heading,), heading_size = wrap([title or ""], width - 2 * MARGIN, TITLE_SIZE, bold=True)
    note_left = MARGIN + max(cell, LEGEND) + GAP
    (note,), note_size = wrap([explanation(layer, len(smoothness))], width - note_left - MARGIN, NOTE_SIZE)
    number = line_pixels(NOTE_SIZE)
    with_means = len(smoothness) > 1

    names_top = MARGIN + (line_pixels(heading_size, heading) + GAP if title else 0)
    top = names_top + name_height + with_means * number + AIR
    row_step = cell + AIR + number + GAP
    legend_top = top + len(images) * row_step + GAP // 2
    sheet = Sheet(width, legend_top + max(LEGEND + AIR + number, line_pixels(note_size, note)) + MARGIN)
    sheet.text(width / 2, MARGIN, heading, heading_size, bold=True, centred=True)
    for column, name in enumerate(names):
        centre = MARGIN + column * step + cell / 2
        colour = maps[column - 1].colour if column else INK
        y = names_top + name_height - line_pixels(name_size, name)
        sheet.text(centre, y, name, name_size, bold=True, colour=colour, centred=True)
        if column and with_means:
            values = smoothness[:, column - 1]
            mean = f"{values.mean():.2f} ± {values.std(ddof=1):.2f}"
            sheet.text(centre, names_top + name_height, mean, NOTE_SIZE, centred=True)
    for row, image in enumerate(images):
        y = top + row * row_step
        sheet.picture(MARGIN, y, image, cell)
        for column, (field, value) in enumerate(zip(fields[row], smoothness[row], strict=True), 1):
            sheet.picture(MARGIN + column * step, y, field, cell)
            sheet.text(MARGIN + column * step + cell / 2, y + cell + AIR, f"{value:.2f}", NOTE_SIZE, centred=True)
    ramp = np.linspace(0, 1, LEGEND)
    colour_map = mix(ramp[None, :, None], ramp[::-1, None, None])  # y upwards
    x = MARGIN + max(cell - LEGEND, 0) // 2
    sheet.picture(x, legend_top, (colour_map * 255).round().astype(np.uint8), LEGEND)
    sheet.text(x + LEGEND / 2, legend_top + LEGEND + AIR, "colour map", NOTE_SIZE, colour=FAINT, centred=True)
    sheet.text(note_left, legend_top, note, note_size, colour=FAINT)
    sheet.save(path)


def explanation(layer: str, images: int) -> str:
    """What colours and numbers of the figure are."""
    mean = f"; at the top: mean ± standard deviation over {images} images" if images > 1 else ""
    return (
        f"Colour: place of a token's state after {layer} in the t-SNE of all tokens of its image (axes by rank). "
        "Number: cosine distance between states of neighbouring tokens, relative to all pairs of tokens; "
        f"below 1 is smoother than chance{mean}."
    )
