"""A finished tokenizer at work: bounded in pixels and without TF32, whoever calls it, and to the same numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from mirai.cli import main
from mirai.tokenizer.passes import encode_pixels, in_passes
from mirai.tokenizer.store import decode_images, save_tokenizer
from mirai.tokenizer.training import measure_tokenizer
from mirai.tokenizer.vqgan import VQGAN, to_float
from tests.tokenizers import TINY

PIXELS = np.random.default_rng(0).integers(0, 256, (7, 8, 8, 3), dtype=np.uint8)


@pytest.fixture
def tiny() -> VQGAN:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return VQGAN(TINY).eval()


@pytest.fixture
def tf32() -> Iterator[None]:
    """As a scale on a GPU sets it."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    yield
    assert torch.backends.cuda.matmul.allow_tf32, "the setting comes back"
    torch.backends.cuda.matmul.allow_tf32 = before


def reconstruct(tiny: VQGAN) -> None:
    save_tokenizer(Path("vq"), tiny, TINY, {})
    Path("images").mkdir()
    for number, image in enumerate(PIXELS):
        Image.fromarray(image).save(f"images/{number}.png")
    assert main(["reconstruct", "images", "--tokenizer", "vq", "--resolution", "8", "--npz", "rec.npz"]) == 0


WAYS: dict[str, Callable[[VQGAN], object]] = {
    "codes": lambda tiny: encode_pixels(tiny, PIXELS),
    "pixels": lambda tiny: decode_images(tiny, np.zeros((7, 16), np.uint16)),
    "resized pixels": lambda tiny: decode_images(tiny, np.zeros((7, 16), np.uint16), size=6),
    "report": lambda tiny: measure_tokenizer(tiny, PIXELS),
    "reconstructions": reconstruct,
}


@pytest.mark.usefixtures("project", "tf32")
@pytest.mark.parametrize("way", WAYS)
def test_every_pass_is_bounded_in_pixels_and_in_float32_proper(
    way: str, tiny: VQGAN, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mirai.tokenizer.passes.PASS_PIXELS", 3 * 8 * 8 + 1)
    passes: dict[str, list[int]] = {}

    def watch(name: str) -> None:
        method: Callable[[VQGAN, Tensor], Tensor] = getattr(VQGAN, name)

        def noted(model: VQGAN, batch: Tensor) -> Tensor:
            assert not torch.backends.cuda.matmul.allow_tf32
            assert not torch.backends.cudnn.allow_tf32
            passes.setdefault(name, []).append(len(batch))
            return method(model, batch)

        monkeypatch.setattr(VQGAN, name, noted)

    watch("encode")
    watch("decode")
    WAYS[way](tiny)
    used = {"codes": ["encode"], "pixels": ["decode"], "resized pixels": ["decode"]}.get(way, ["encode", "decode"])
    assert passes == {name: [3, 3, 1] for name in used}


def test_codes_are_those_of_all_images_at_once(tiny: VQGAN, monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.inference_mode():
        wanted = tiny.encode(to_float(torch.from_numpy(PIXELS)))
    monkeypatch.setattr("mirai.tokenizer.passes.PASS_PIXELS", 2 * 8 * 8)
    np.testing.assert_array_equal(encode_pixels(tiny, PIXELS), wanted)


def test_an_image_larger_than_a_pass_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mirai.tokenizer.passes.PASS_PIXELS", 1)
    assert in_passes(lambda part: part * len(part), torch.arange(3), 100).tolist() == [0, 1, 2]
