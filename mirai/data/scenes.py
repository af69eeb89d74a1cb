"""Procedural scenes: ten classes of small colour images in which distant parts agree, unlimited and without any file.

A scene is a function of (seed, split, index, side) alone. A shape is given by its depth, a signed distance to the edge
in image widths, positive inside; the intersection of two shapes is the minimum of their depths.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import numpy.typing as npt

from mirai.data.crops import Pixels, Source
from mirai.randomness import stream

Array = npt.NDArray[np.float64]
Factors = dict[str, float]

# What a feature network learns to read off a scene. Position in image widths; hues and angle as points of the unit
# circle; size and count relative to the range their class draws them from, in [0, 1].
FACTOR_NAMES = (
    "x", "y", "hue_sin", "hue_cos", "ground_hue_sin", "ground_hue_cos", "angle_sin", "angle_cos", "size", "count",
)  # fmt: skip
NOISE = 0.015  # standard deviation of the pixel noise, of a range of 1


class Canvas:
    """An image (side, side, 3) being painted and its pixels' coordinates x (1, side), y (side, 1); all in [0, 1]."""

    def __init__(self, side: int, colour: Array) -> None:
        self.side = side
        self.x = np.linspace(0, 1, side)[None, :]
        self.y = self.x.T
        self.image = np.full((side, side, 3), colour)

    def paint(self, cover: Array, colour: Array) -> None:
        """Blend a colour in where `cover` (broadcast to (side, side)) is above 0."""
        self.image += cover[..., None] * (colour - self.image)

    def fill(self, depth: Array, colour: Array) -> None:
        """Paint a shape, its edge soft over one pixel."""
        self.paint(np.clip(depth * self.side + 0.5, 0, 1), colour)

    def distance(self, x: float, y: float) -> Array:
        """Distance of every pixel to a point."""
        return np.hypot(self.x - x, self.y - y)


def _colour(hue: float, saturation: float, value: float) -> Array:
    return np.array(colorsys.hsv_to_rgb(hue % 1, saturation, value))


def _figure(hue: float) -> Array:
    return _colour(hue, 0.75, 0.95)


def _sunset(canvas: Canvas, rng: np.random.Generator, hue: float, ground: float) -> Factors:
    """The glitter on the water has the sun's column and colour."""
    x, horizon = rng.uniform(0.2, 0.8), rng.uniform(0.45, 0.65)
    sun, water = _colour(hue + 0.08, 0.3, 1.0), canvas.y - horizon
    canvas.fill(np.ones_like(canvas.x), _colour(ground, 0.5, 0.5))
    canvas.paint(canvas.y, _colour(hue, 0.6, 1.0))
    canvas.fill(0.14 - canvas.distance(x, horizon - 0.18), sun)
    canvas.fill(water, _colour(ground, 0.8, 0.25))
    waves = (np.sin(40 * canvas.y) + 0.3) / 40
    canvas.fill(np.minimum(0.1 - np.abs(canvas.x - x), np.minimum(waves, water)), sun)
    return {"x": x, "y": horizon}


def _mask(canvas: Canvas, rng: np.random.Generator, hue: float, ground: float) -> Factors:
    """Left and right mirror each other."""
    off_axis = np.abs(canvas.x - 0.5)
    second, eye = hue + 0.5 * rng.random(), rng.uniform(0.15, 0.25)
    blobs = rng.random((6, 3))  # distance from the axis, height, radius: the last one is never covered by another
    for number, (x, y, size) in enumerate(blobs):
        depth = 0.1 + 0.12 * size - np.hypot(off_axis - x / 2, canvas.y - y)
        canvas.fill(depth, _colour(second, 0.7, 0.7) if number % 2 else _figure(hue))
    canvas.fill(0.06 - np.hypot(off_axis - eye, canvas.y - 0.4), np.ones(3))
    x, y, size = blobs[-1]
    return {"x": 0.5 + x / 2, "y": y, "size": size}


def _tiles(canvas: Canvas, rng: np.random.Generator, hue: float, ground: float) -> Factors:
    """A random motif of 2 x 2 or 4 x 4 cells repeats over the 8 x 8 cells of the image."""
    side = int(rng.choice([2, 4]))
    motif = rng.random((side, side)) > 0.5
    motif[0, 0] |= not motif.any()
    rows, columns = (np.minimum(8 * axis, 7).astype(int) % side for axis in (canvas.y, canvas.x))
    canvas.paint(motif[rows, columns].astype(float), _figure(hue))
    return {"size": float(motif.mean()), "count": float(side == 2)}


def _three_objects(canvas: Canvas, rng: np.random.Generator, hue: float, ground: float) -> Factors:
    """Three copies of one object: same colour, size and shape."""
    size, shape, places = rng.random(), rng.integers(3), rng.uniform(0.2, 0.8, 3)
    radius = 0.08 + 0.08 * size
    for x, y in zip(places, (0.17, 0.5, 0.83), strict=True):
        dx, dy = np.abs(canvas.x - x), np.abs(canvas.y - y)
        if shape == 0:
            depth = radius - np.hypot(dx, dy)
        elif shape == 1:
            depth = 0.9 * radius - np.maximum(dx, dy)
        else:
            depth = 1.2 * radius - dx - dy
        canvas.fill(depth, _figure(hue))
    return {"x": places[1], "size": size}


def _rings(canvas: Canvas, rng: np.random.Generator, hue: float, ground: float) -> Factors:
    """Concentric rings at one distance."""
    (x, y), count, phase = rng.uniform(0.3, 0.7, 2), rng.random(), rng.random()
    frequency = 2 * np.pi * (3 + 5 * count)
    canvas.fill(np.sin(canvas.distance(x, y) * frequency + 2 * np.pi * phase) / frequency, _figure(hue))
    return {"x": x, "y": y, "count": count}


def _skyline(canvas: Canvas, rng: np.random.Generator, hue: float, ground: float) -> Factors:
    """Houses above the water line and their mirror image below."""
    houses = int(rng.integers(4, 8))
    heights = rng.random(houses)
    height = 0.12 + 0.33 * heights[np.minimum(canvas.x * houses, houses - 1).astype(int)]
    sky, water = 0.5 - canvas.y, canvas.y - 0.5
    canvas.fill(np.ones_like(canvas.x), _colour(ground, 0.4, 0.85))
    canvas.fill(water, _colour(ground, 0.6, 0.55))
    canvas.fill(np.minimum(height - sky, sky), _figure(hue))
    canvas.fill(np.minimum(height - water, water), 0.6 * _figure(hue))
    return {"size": float(heights.mean()), "count": (houses - 4) / 3}


def _cross(canvas: Canvas, rng: np.random.Generator, hue: float, ground: float) -> Factors:
    """Each arm goes on in one line and one colour behind the crossing."""
    (x, y), size, second = rng.uniform(0.3, 0.7, 2), rng.random(), hue + rng.choice([0, 0.33])
    width = 0.05 + 0.1 * size
    canvas.fill(width - np.abs(canvas.x - x), _figure(hue))
    canvas.fill(width - np.abs(canvas.y - y), _figure(second))
    return {"x": x, "y": y, "size": size}


def _stripes(canvas: Canvas, rng: np.random.Generator, hue: float, ground: float) -> Factors:
    """Straight parallel stripes at one distance."""
    angle, count, phase = rng.random(3)
    frequency = 2 * np.pi * (2.5 + 4 * count)
    along = canvas.x * np.cos(np.pi * angle) + canvas.y * np.sin(np.pi * angle)
    canvas.fill(np.sin(along * frequency + 2 * np.pi * phase) / frequency, _figure(hue))
    return {"angle": angle, "count": count}


def _frame(canvas: Canvas, rng: np.random.Generator, hue: float, ground: float) -> Factors:
    """A frame of one width, and a dot of its colour inside."""
    size, (x, y) = rng.random(), rng.choice([0.36, 0.64], 2)
    border = np.minimum(np.minimum(canvas.x, 1 - canvas.x), np.minimum(canvas.y, 1 - canvas.y))
    canvas.fill(0.08 + 0.08 * size - border, _figure(hue))
    canvas.fill(0.12 - canvas.distance(x, y), _figure(hue))
    return {"x": x, "y": y, "size": size}


def _tree(canvas: Canvas, rng: np.random.Generator, hue: float, ground: float) -> Factors:
    """Crown and trunk share an axis, ground and sky a hue."""
    x, size = rng.uniform(0.3, 0.7), rng.random()
    canvas.fill(np.ones_like(canvas.x), _colour(ground, 0.35, 0.9))
    canvas.fill(canvas.y - 0.78, _colour(ground, 0.7, 0.4))
    trunk = np.minimum(0.05 - np.abs(canvas.x - x), np.minimum(canvas.y - 0.4, 0.84 - canvas.y))
    canvas.fill(trunk, np.array([0.35, 0.2, 0.1]))
    canvas.fill(0.16 + 0.12 * size - canvas.distance(x, 0.38), _figure(hue))
    return {"x": x, "size": size}


_PAINTERS: dict[str, Callable[[Canvas, np.random.Generator, float, float], Factors]] = {
    "sunset": _sunset,
    "mirror-mask": _mask,
    "tiles": _tiles,
    "three-objects": _three_objects,
    "rings": _rings,
    "skyline": _skyline,
    "cross": _cross,
    "stripes": _stripes,
    "frame": _frame,
    "tree": _tree,
}
CLASS_NAMES = tuple(_PAINTERS)


@lru_cache(maxsize=4096)
def _classes_of_block(seed: int, split: str, block: int) -> tuple[int, ...]:
    """The classes of ten consecutive scenes: each once."""
    return tuple(stream(seed, f"scene-classes-{split}", block).permutation(len(CLASS_NAMES)).tolist())


def class_of(seed: int, split: str, index: int) -> int:
    """Class of scene `index` of a stream; every ten consecutive scenes hold each class once."""
    block, place = divmod(index, len(CLASS_NAMES))
    return _classes_of_block(seed, split, block)[place]


def draw_scene(seed: int, split: str, index: int, side: int) -> tuple[Pixels, Factors]:
    """Scene `index` of a stream -> uint8 (side, side, 3) and the factors its class has, whatever the side."""
    rng = stream(seed, f"scene-{split}", index)
    hue, ground = rng.random(2)
    canvas = Canvas(side, _colour(ground, 0.6, 0.45))
    paint = _PAINTERS[CLASS_NAMES[class_of(seed, split, index)]]
    factors = {"hue": hue, "ground_hue": ground, **paint(canvas, rng, hue, ground)}
    image = canvas.image + NOISE * rng.standard_normal(canvas.image.shape)
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8), factors


def factor_vector(factors: Factors) -> npt.NDArray[np.float32]:
    """Factors -> float32 (F,) in the order of FACTOR_NAMES, nan where one does not exist."""
    flat = dict(factors)
    for name in factors.keys() & {"hue", "ground_hue", "angle"}:  # given as a fraction of a full turn
        turn = 2 * np.pi * flat[name]
        flat[f"{name}_sin"], flat[f"{name}_cos"] = np.sin(turn), np.cos(turn)
    return np.array([flat.get(name, np.nan) for name in FACTOR_NAMES], np.float32)


@dataclass(frozen=True)
class SceneSet:
    """The first `count` scenes of the stream (seed, split), drawn when asked for."""

    seed: int
    split: str
    count: int
    side: int
    resolution: int
    class_names = CLASS_NAMES

    def __len__(self) -> int:
        return self.count

    @cached_property
    def labels(self) -> npt.NDArray[np.int64]:
        """Classes (n,)."""
        return np.array([class_of(self.seed, self.split, index) for index in range(self.count)], np.int64)

    def square(self, index: int) -> Pixels:
        """The square (S', S', 3) views are cut from."""
        return draw_scene(self.seed, self.split, index, self.side)[0]

    def centre(self, index: int) -> Pixels:
        """The scene at the resolution itself (S, S, 3)."""
        return draw_scene(self.seed, self.split, index, self.resolution)[0]

    def name(self, index: int) -> str:
        """Its number in the stream."""
        return f"scene {index}"

    def read(self, index: int) -> tuple[Pixels, Source]:
        """The square, drawn at the size asked for."""
        return self.square(index), Source(self.side, "RGB")

    def factors(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
        """Values (n, F) in the order of FACTOR_NAMES, zero where there is none, and where they exist (n, F)."""
        # factors do not depend on the side, and 2 x 2 pixels are painted in no time
        scenes = (draw_scene(self.seed, self.split, index, side=2) for index in range(self.count))
        values = np.stack([factor_vector(factors) for _, factors in scenes])
        return np.nan_to_num(values), ~np.isnan(values)

    def fingerprint(self) -> None:
        """None: there is no file that could change."""
        return None
