"""scikit-learn's 1,797 handwritten digits, enlarged to RGB: a small set of real images that needs no download."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import numpy.typing as npt
from PIL import Image

from mirai.data.crops import Pixels, Source, centre_square
from mirai.randomness import stream

CLASS_NAMES = tuple("0123456789")
NUM_TRAINING = 1500  # of a fixed permutation; the other 297 are held out


@lru_cache(maxsize=1)
def _load() -> tuple[Pixels, npt.NDArray[np.int64]]:
    """Digits (1797, 10, 10) with a border of one pixel, and their classes, in the fixed permutation."""
    from sklearn.datasets import load_digits  # a second to import

    digits = load_digits()
    order = stream(0, "digits").permutation(len(digits.images))
    grey = np.rint(digits.images[order] * (255 / 16)).astype(np.uint8)
    return np.pad(grey, ((0, 0), (1, 1), (1, 1))), digits.target[order].astype(np.int64)


@dataclass(frozen=True)
class DigitSet:
    """The first `count` training digits, or held-out ones; None: all of them."""

    held_out: bool
    count: int | None
    side: int
    resolution: int
    class_names = CLASS_NAMES

    @property
    def _range(self) -> range:
        return (range(NUM_TRAINING, len(_load()[0])) if self.held_out else range(NUM_TRAINING))[: self.count]

    def __len__(self) -> int:
        return len(self._range)

    @cached_property
    def labels(self) -> npt.NDArray[np.int64]:
        """Classes (n,)."""
        return _load()[1][self._range]

    def _enlarged(self, index: int, side: int) -> Pixels:
        return centre_square(Image.fromarray(_load()[0][self._range[index]]).convert("RGB"), side)

    def square(self, index: int) -> Pixels:
        """The square (S', S', 3) views are cut from."""
        return self._enlarged(index, self.side)

    def centre(self, index: int) -> Pixels:
        """The digit at the resolution itself (S, S, 3)."""
        return self._enlarged(index, self.resolution)

    def name(self, index: int) -> str:
        """Its number in the permutation."""
        return f"digit {self._range[index]}"

    def read(self, index: int) -> tuple[Pixels, Source]:
        """The square, and what was enlarged to it: 8 x 8 with a border, its grey repeated over three channels here."""
        return self.square(index), Source(min(_load()[0].shape[1:]), "RGB")

    def factors(self) -> None:
        """None: real images come without factors."""
        return None

    def fingerprint(self) -> None:
        """None: the data are part of scikit-learn."""
        return None
