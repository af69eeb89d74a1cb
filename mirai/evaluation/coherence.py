"""Exact measures of long-range agreement in scenes: what natural images do not allow to measure.

Each is the mean absolute departure from a symmetry that every real scene of a class has, in units of the pixel range
[0, 1]; real scenes score what their pixel noise leaves. Letters: n images, S the side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from mirai.data.scenes import CLASS_NAMES
from mirai.evaluation.sources import Images, in_memory
from mirai.experiments.recipe import Data


def tile_period_error(images: np.ndarray) -> np.ndarray:
    """Departure (n,) from repetition after half the side, down and across: every motif's period divides it."""
    half = images.shape[1] // 2
    down = np.abs(images[:, :half] - images[:, half:]).mean(axis=(1, 2, 3))
    across = np.abs(images[:, :, :half] - images[:, :, half:]).mean(axis=(1, 2, 3))
    return (down + across) / 2


def left_right_error(images: np.ndarray) -> np.ndarray:
    """Departure (n,) from the left-right mirror image."""
    return np.abs(images - images[:, :, ::-1]).mean(axis=(1, 2, 3))


def up_down_error(images: np.ndarray) -> np.ndarray:
    """Departure (n,) of the upper half from the mirrored lower half, whatever colours a reflection takes.

    Each half is fitted by the best affine colour map of the other, and the two residuals are averaged: with one
    direction alone, a lower half without any structure would count as a perfect reflection.
    """
    half = images.shape[1] // 2
    upper, lower = (part.reshape(len(images), -1, 3) for part in (images[:, :half], images[:, half:][:, ::-1]))
    return np.array([(_affine_residual(u, v) + _affine_residual(v, u)) / 2 for u, v in zip(upper, lower, strict=True)])


def _affine_residual(target: np.ndarray, source: np.ndarray) -> float:
    """Mean |target - A source - b| over pixels (p, 3) for the least-squares A and b."""
    design = np.concatenate([source, np.ones((len(source), 1), source.dtype)], axis=1)
    solution = np.linalg.lstsq(design, target, rcond=1e-3)[0]  # a source of one colour has rank 1
    return float(np.abs(target - design @ solution).mean())


MEASURES: dict[str, tuple[str, Callable[[np.ndarray], np.ndarray]]] = {
    "tile_period_error": ("tiles", tile_period_error),
    "left_right_error": ("mirror-mask", left_right_error),
    "up_down_error": ("skyline", up_down_error),
}


def coherence(images: np.ndarray, labels: np.ndarray, class_names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Mean and count of each measure over the images (n, S, S, 3) uint8 of its class; nothing for classes not there."""
    result = {}
    for measure, (name, error) in MEASURES.items():
        chosen = images[labels == class_names.index(name)] if name in class_names else images[:0]
        if len(chosen):
            values = error(chosen.astype(np.float32) / 255)
            result[measure] = {"mean": float(values.mean()), "count": len(values)}
    return result


def coherence_of(data: Data, images: Images, labels: np.ndarray) -> tuple[Images, dict[str, dict[str, float]]]:
    """Scenes, now in memory, and their coherence; other images as they are, since no symmetry of theirs is known."""
    if data.source != "scenes":  # a folder's class may be called skyline too
        return images, {}
    pictures = images.array()
    return in_memory(pictures, images.what), coherence(pictures, labels, CLASS_NAMES)
