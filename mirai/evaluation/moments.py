"""Moments of the pixels of any images: regression targets for a feature network where no factors are known."""

from __future__ import annotations

import numpy as np

LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601
COSINES = 4  # lowest frequencies per axis


def pixel_moments(images: np.ndarray) -> np.ndarray:
    """Moments (n, 30) float32 of images (n, H, W, 3) uint8, each column with mean 0 and variance 1 (0 where constant).

    Mean and spread of each colour; centroid, spread and tilt of the luminance's departure from its median; edge energy
    across and down; the luminance's lowest 4 x 4 cosine coefficients without the constant one; its contrast and skew.
    """
    moments = np.concatenate([_moments(images[start : start + 256]) for start in range(0, len(images), 256)])
    centred = moments - moments.mean(axis=0)
    deviation = centred.std(axis=0)
    return np.where(deviation > 1e-6, centred / deviation.clip(min=1e-6), 0).astype(np.float32)


def _moments(images: np.ndarray) -> np.ndarray:
    """Raw moments (b, 30) of a block of images (b, H, W, 3)."""
    pixels = images.astype(np.float32) / 255
    colours = pixels.reshape(len(images), -1, 3)
    luminance = pixels @ LUMINANCE  # (b, H, W)
    height, width = luminance.shape[1:]
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, width, dtype=np.float32)[None, :]

    ink = np.abs(luminance - np.median(luminance, axis=(1, 2), keepdims=True)) + 1e-3  # where something is drawn
    ink /= ink.sum(axis=(1, 2), keepdims=True)
    row, column = ((ink * axis).sum(axis=(1, 2)) for axis in (y, x))
    from_row, from_column = y - row[:, None, None], x - column[:, None, None]
    shape = [(ink * term).sum(axis=(1, 2)) for term in (from_row**2, from_column**2, from_row * from_column)]

    edges = [np.abs(np.diff(luminance, axis=axis)).mean(axis=(1, 2)) for axis in (1, 2)]
    deviation = luminance - luminance.mean(axis=(1, 2), keepdims=True)
    contrast = np.sqrt((deviation**2).mean(axis=(1, 2)))
    skew = (deviation**3).mean(axis=(1, 2)) / (contrast**3 + 1e-6)
    cosines = _cosine_rows(height) @ luminance @ _cosine_rows(width).T  # (b, 4, 4)

    scalars = [row, column, *shape, *edges, contrast, skew]
    parts = [
        colours.mean(axis=1),
        colours.std(axis=1),
        np.stack(scalars, axis=1),
        cosines.reshape(len(images), -1)[:, 1:],
    ]
    return np.concatenate(parts, axis=1)


def _cosine_rows(size: int) -> np.ndarray:
    """The lowest rows (4, size) of a discrete cosine transform, averaging over pixels."""
    places = (np.arange(size) + 0.5) / size
    return (np.cos(np.pi * np.outer(np.arange(COSINES), places)) / size).astype(np.float32)
