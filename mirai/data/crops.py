"""ADM's centre crop and the views cut from it, as LlamaGen extracts codes. Pixels are uint8, rows first."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from mirai.experiments.recipe import Data

Pixels = npt.NDArray[np.uint8]


def square_side(data: Data) -> int:
    """Side S' of the square that views are cut from: the ten crop enlarges, fewer views are the S x S crop itself."""
    return int(data.resolution * data.crop_range) if data.views == 10 else data.resolution


def centre_square(image: Image.Image, side: int) -> Pixels:
    """ADM's centre crop of an RGB image -> (side, side, 3): halve with BOX, scale the short side with BICUBIC, cut.

    A smaller image is enlarged by the same rule.
    """
    while min(image.size) >= 2 * side:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = side / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return np.array(image)[top : top + side, left : left + side]


@lru_cache
def view_corners(side: int, resolution: int, count: int) -> tuple[tuple[bool, int, int], ...]:
    """Per view: whether the square is mirrored first, then top and left of the cut in the (mirrored) square.

    The ten views come in torchvision's order: four corners and the centre, then the same five of the mirrored square.
    """
    end = side - resolution
    assert end >= 0, f"views of side {resolution} do not fit into a square of side {side}"
    # halves to even like torchvision: the centre of 281 -> 256 starts at 12 in the square and in its mirror image
    centre = round(end / 2)
    if count == 10:
        corners = ((0, 0), (0, end), (end, 0), (end, end), (centre, centre))
        return tuple((flip, top, left) for flip in (False, True) for top, left in corners)
    assert count in (1, 2)
    assert end == 0, "one or two views are the square itself and its mirror image"
    return ((False, 0, 0), (True, 0, 0))[:count]


def views(square: Pixels, resolution: int, count: int) -> Pixels:
    """All views of one square (S', S', 3) -> (count, S, S, 3)."""
    return cut_views(np.broadcast_to(square, (count, *square.shape)), np.arange(count), resolution, count)


def cut_views(squares: Pixels, view_ids: npt.NDArray[np.int64], resolution: int, count: int) -> Pixels:
    """One view of each square: (B, S', S', 3), ids (B,) -> (B, S, S, 3). What an id means depends on `count`."""
    cuts = np.empty((len(squares), resolution, resolution, 3), np.uint8)
    for view, (flip, top, left) in enumerate(view_corners(squares.shape[1], resolution, count)):
        chosen = np.flatnonzero(view_ids == view)
        if flip:  # the columns of the mirrored square, found in the unmirrored one
            left = squares.shape[2] - resolution - left
        cut = squares[chosen, top : top + resolution, left : left + resolution]
        cuts[chosen] = cut[:, :, ::-1] if flip else cut
    return cuts


class Source(NamedTuple):
    """What an image was before it was cut: its smaller side, and PIL's mode ("RGB", "L", "RGBA", "CMYK", ...)."""

    side: int
    mode: str
