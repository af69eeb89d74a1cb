"""Reconstructions of a tokenizer, and samples as pixels: what is written is what the tokenizer gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from mirai.cli import main
from mirai.data.crops import centre_square
from mirai.tokenizer.store import save_tokenizer
from mirai.tokenizer.vqgan import VQGAN, to_float, to_uint8
from tests.tokenizers import TINY


@pytest.fixture
def tokenizer(project: Path) -> VQGAN:
    torch.manual_seed(0)
    model = VQGAN(TINY).eval()
    save_tokenizer(Path("vq"), model, TINY, {})
    Path("images/a").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(35):  # more than a batch, of several sizes
        size = (20 + number % 5, 16 + number % 3, 3)
        Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8)).save(f"images/a/{number:02d}.png")
    return model


def test_reconstructions_are_those_of_the_centre_crops_in_order_of_the_paths(tokenizer: VQGAN) -> None:
    assert main(["reconstruct", "images", "--tokenizer", "vq", "--resolution", "8", "--npz", "rec.npz"]) == 0
    with np.load("rec.npz") as file:
        images = file["arr_0"]
    assert (images.shape, images.dtype) == ((35, 8, 8, 3), np.uint8)
    for number in (0, 34):
        square = centre_square(Image.open(f"images/a/{number:02d}.png"), 8)
        with torch.inference_mode():
            wanted = to_uint8(tokenizer.decode(tokenizer.encode(to_float(torch.from_numpy(square)[None]))))[0].numpy()
        assert np.abs(images[number].astype(int) - wanted).max() <= 1  # batch size may move a float by an ulp


def test_reconstructions_are_resized_before_rounding(tokenizer: VQGAN) -> None:
    assert (
        main(["reconstruct", "images", "--tokenizer", "vq", "--resolution", "8", "--size", "6", "--npz", "rec.npz"])
        == 0
    )
    with np.load("rec.npz") as file:
        images = file["arr_0"]
    square = centre_square(Image.open("images/a/07.png"), 8)
    with torch.inference_mode():
        decoded = tokenizer.decode(tokenizer.encode(to_float(torch.from_numpy(square)[None])))
        wanted = to_uint8(F.interpolate(decoded, size=(6, 6), mode="bicubic"))[0].numpy()
    assert images.shape == (35, 6, 6, 3)
    assert np.abs(images[7].astype(int) - wanted).max() <= 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("reconstruct images --tokenizer vq --resolution 9 --npz a.npz", "--resolution 9 is no multiple of 2"),
        ("reconstruct images --tokenizer nowhere --npz a.npz", "nowhere/tokenizer.json is missing"),
        ("reconstruct vq --tokenizer vq --npz a.npz", "vq holds no image"),
        ("export images --npz a.npz", "images holds no samples.json: its samples are not complete"),
    ],
)
def test_what_cannot_be_done_is_told_before_anything_is_written(
    arguments: str, sentence: str, tokenizer: VQGAN, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments.split()) == 2
    assert sentence in capsys.readouterr().err
    assert not Path("a.npz").exists()
