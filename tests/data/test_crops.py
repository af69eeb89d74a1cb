"""Crops and views against hashes of guided-diffusion's and LlamaGen's own functions, and against torchvision."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torchvision.transforms import functional

from mirai.data.crops import centre_square, cut_views, square_side, view_corners, views
from mirai.experiments.recipe import Data
from mirai.tokenizer.vqgan import to_float

GOLDEN = Path(__file__).parents[1] / "golden" / "crops"
MANIFEST = json.loads((GOLDEN / "manifest.json").read_text())


def digest(pixels: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()


@pytest.fixture(params=["china.jpg", "flower.jpg"])
def picture(request: pytest.FixtureRequest) -> tuple[str, Image.Image]:
    names = [Path(name).name for name in load_sample_images().filenames]
    pixels = load_sample_images().images[names.index(request.param)]
    if digest(pixels) != MANIFEST[request.param]["decoded_jpeg_sha256"]:
        pytest.skip("this machine's JPEG decoder differs from the one behind the golden numbers")
    return request.param, Image.fromarray(pixels)


def test_every_golden_crop_is_reproduced_to_the_byte(picture: tuple[str, Image.Image]) -> None:
    name, image = picture
    checked = Counter()
    for crop in MANIFEST[name]["crops"]:
        kind, size, crop_range = crop["kind"], crop["image_size"], crop.get("crop_range")
        data = Data(name="test", source="folder", resolution=size, crop_range=crop_range or 1.1)
        if crop_range is None:
            data = data.model_copy(update={"views": 2})
        square = centre_square(image, square_side(data))
        crops = views(square, size, data.views)
        checked[kind, size, crop_range] += 1
        if kind == "ten_crop_normalised_tensor":  # what the tokenizer is given
            given = to_float(torch.from_numpy(crops)).contiguous().numpy()
            assert list(given.shape) == crop["shape"]
            assert given.dtype == np.float32
            assert digest(given) == crop["sha256_float32"], crop
            continue
        if kind == "ten_crop":
            flip, top, left = view_corners(len(square), size, 10)[crop["index"]]
            assert (flip, [top, left]) == (crop["flipped"], crop["offset_yx_in_expanded"])
        pixels = square if kind == "expanded_center" else crops[crop["index"]]
        assert len(square) == crop["crop_size"]
        assert digest(pixels) == crop["sha256"], crop
    ranges = {(size, crop_range) for size in (64, 256) for crop_range in (1.1, 1.05)}
    wanted = {("ten_crop", *key): 10 for key in ranges}
    wanted |= {(kind, *key): 1 for key in ranges for kind in ("expanded_center", "ten_crop_normalised_tensor")}
    wanted |= {(kind, size, None): 1 for size in (64, 256) for kind in ("adm_center", "adm_center_hflip")}
    assert checked == wanted


@pytest.mark.parametrize("crop_range", [1.1, 1.05])
def test_ten_views_equal_the_golden_arrays(picture: tuple[str, Image.Image], crop_range: float) -> None:
    name, image = picture
    data = Data(name="test", source="folder", resolution=64, crop_range=crop_range)
    golden = np.load(GOLDEN / "crops64.npz")
    wanted = golden[
        next(key for key in golden if key.startswith(name[:5]) and key.endswith(f"tencrop_64_{crop_range}"))
    ]
    np.testing.assert_array_equal(views(centre_square(image, square_side(data)), 64, 10), wanted)


@pytest.mark.parametrize(("side", "resolution"), [(35, 32), (70, 64), (67, 64), (281, 256), (12, 12)])
def test_ten_views_are_torchvisions_ten_crop(side: int, resolution: int) -> None:
    square = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    wanted = functional.ten_crop(Image.fromarray(square), [resolution, resolution])
    np.testing.assert_array_equal(views(square, resolution, 10), np.stack([np.array(crop) for crop in wanted]))


@pytest.mark.parametrize(("count", "side"), [(1, 8), (2, 8), (10, 9), (10, 11)])
def test_views_cut_from_a_batch_equal_the_views_of_each_square(count: int, side: int) -> None:
    rng = np.random.default_rng(0)
    squares = rng.integers(0, 256, (40, side, side, 3), np.uint8)
    ids = rng.integers(0, count, 40)
    wanted = np.stack([views(square, 8, count)[view] for square, view in zip(squares, ids, strict=True)])
    np.testing.assert_array_equal(cut_views(squares, ids, 8, count), wanted)


def test_two_views_are_the_square_and_its_mirror_image() -> None:
    square = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    np.testing.assert_array_equal(views(square, 8, 2), np.stack([square, square[:, ::-1]]))


def test_only_the_ten_crop_enlarges_the_square() -> None:
    for resolution, crop_range, side in ((256, 1.1, 281), (384, 1.1, 422), (256, 1.05, 268), (384, 1.05, 403)):
        data = Data(name="test", source="folder", resolution=resolution, crop_range=crop_range)
        assert square_side(data) == side
        assert square_side(data.model_copy(update={"views": 2})) == resolution


def test_a_small_image_is_enlarged_and_keeps_its_middle() -> None:
    pixels = np.zeros((5, 20, 3), np.uint8)
    pixels[:, 5:15] = 200
    square = centre_square(Image.fromarray(pixels), 16)
    assert square.shape == (16, 16, 3)
    assert (square[:, 2:-2] > 190).all()
