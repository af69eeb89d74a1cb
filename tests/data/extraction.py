"""Code stores of made-up codes, for tests."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from mirai.data.codes import extract_codes
from mirai.data.images import open_images
from mirai.experiments.recipe import Data

SCENES = Data(name="scenes", source="scenes", resolution=16, num_images=23, views=10)
FOLDER = Data(name="pets", source="folder", resolution=16, views=2, corrupt_images="skip")
GRID = 4


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


def encode(pixels: np.ndarray) -> np.ndarray:
    """A tokenizer of hashes: any pixel changes the codes (n, 16) of its image."""
    digests = [hashlib.sha512(image.tobytes()).digest()[:32] for image in pixels]
    return np.frombuffer(b"".join(digests), "<u2").reshape(len(pixels), GRID * GRID).astype(np.int64)


def extract(folder: Path, data: Data = SCENES, source: Path | None = None, **changes: Any) -> None:
    settings: dict[str, Any] = {
        "encode": encode,
        "grid_side": GRID,
        "codebook_size": 65536,
        "tokenizer_key": "abc",
        "store_squares": True,
        "batch_images": 4,
    }
    extract_codes(folder, open_images(data, "train", folder=source), data, **(settings | changes))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
