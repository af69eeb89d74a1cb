"""The embedded set of real images."""

from __future__ import annotations

import numpy as np
import pytest
from squares import load_squares

from mirai.data.images import centre_images, open_images
from mirai.errors import UserError
from mirai.experiments.recipe import Data

DATA = Data(name="digits", source="digits", resolution=32, num_classes=10)


def test_training_and_held_out_digits_are_all_digits_and_share_none() -> None:
    from sklearn.datasets import load_digits

    small = Data(name="digits", source="digits", resolution=10, views=1)
    training, held_out = open_images(small, "train"), open_images(small, "validation")
    assert (len(training), len(held_out)) == (1500, 297)
    pixels = np.concatenate([load_squares(training), load_squares(held_out)])[:, 1:-1, 1:-1, 0]  # side 10: not resized
    labels = np.concatenate([training.labels, held_out.labels])
    digits = load_digits()
    originals = np.rint(digits.images * 255 / 16).astype(np.uint8)
    drawn = sorted((image.tobytes(), label) for image, label in zip(pixels, labels, strict=True))
    assert drawn == sorted((image.tobytes(), label) for image, label in zip(originals, digits.target, strict=True))


def test_all_training_splits_are_the_same_digits() -> None:
    wanted = load_squares(open_images(DATA, "train", count=5))
    np.testing.assert_array_equal(load_squares(open_images(DATA, "reference", count=5)), wanted)
    assert wanted.shape == (5, 35, 35, 3)
    assert centre_images(open_images(DATA, "train"), [0, 7]).shape == (2, 32, 32, 3)


def test_a_digit_is_grey_and_bright_on_black() -> None:
    square = open_images(DATA, "train").square(0)
    assert (square == square[..., :1]).all()
    assert square.max() > 240
    assert square[0].max() < 10


def test_more_digits_than_there_are_is_refused() -> None:
    with pytest.raises(UserError, match="1500 images for split `encoder`, 2000 are asked for"):
        open_images(DATA, "encoder", count=2000)
