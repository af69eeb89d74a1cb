"""Frozen encoders: cells, leaks of block-causal attention, pictures, weights files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from mirai.errors import UserError
from mirai.experiments.recipe import Encoder, EncoderTraining
from mirai.foresight.encoders import (
    ImageEncoder,
    SmallEncoder,
    TimmEncoder,
    load_timm,
    load_vit,
    open_encoder,
    save_vit,
)
from mirai.foresight.vit import SmallViT, block_causal_mask

SIDE = 4  # of the patch grid, in every encoder here
TRAINING = EncoderTraining(
    objective="none", width=16, num_layers=2, num_heads=2, steps=0, batch_size=1, learning_rate=1.0, num_images=1
)


def pictures(side: int, seed: int = 0) -> Tensor:
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(seed))


def small_vit() -> SmallViT:
    return SmallViT(16, 4, 16, 2, 2, torch.Generator().manual_seed(0))


def timm_vit(registers: int = 4) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return timm.create_model(
            "vit_tiny_patch16_224", num_classes=0, img_size=64, depth=3, embed_dim=48, reg_tokens=registers
        )


def eva_vit() -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return timm.create_model(
            "vit_small_patch16_dinov3", num_classes=0, img_size=64, depth=2, embed_dim=48, num_heads=3
        )


def encoder(kind: str, layer: int | None, block_size: int | None) -> ImageEncoder:
    if kind == "small":
        return SmallEncoder(small_vit(), layer, block_size)
    return TimmEncoder(timm_vit() if kind == "timm" else eva_vit(), 64, layer, block_size)


def changed_cells(encoder: ImageEncoder, side: int, cell: int) -> list[int]:
    """Cells whose features change with the pixels of one cell."""
    images, patch = pictures(side), side // SIDE
    other = images.clone()
    row, column = cell // SIDE * patch, cell % SIDE * patch
    other[:, :, row : row + patch, column : column + patch] = (
        1 - other[:, :, row : row + patch, column : column + patch]
    )
    difference = (encoder(images) - encoder(other)).abs().amax(dim=(0, 2))
    return difference.nonzero().flatten().tolist()


@pytest.mark.parametrize(("kind", "side"), [("small", 16), ("timm", 64), ("eva", 64)])
@pytest.mark.parametrize("layer", [None, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_block_of_cells_never_sees_a_later_one_not_even_through_prefix_tokens(
    kind: str, side: int, layer: int | None, dtype: torch.dtype
) -> None:
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        assert changed_cells(encoder(kind, layer, 4), side, cell=9) == list(range(8, 16))
        assert changed_cells(encoder(kind, layer, 1), side, cell=9) == list(range(9, 16))
        assert changed_cells(encoder(kind, layer, None), side, cell=9) == list(range(16))


@pytest.mark.parametrize(("kind", "side"), [("small", 16), ("timm", 64), ("eva", 64)])
def test_one_block_of_all_cells_is_full_attention_but_for_the_prefix(kind: str, side: int) -> None:
    assert changed_cells(encoder(kind, None, 16), side, cell=15) == list(range(16))


def test_cells_see_the_prefix_and_earlier_blocks_and_the_prefix_sees_itself() -> None:
    seen = block_causal_mask(4, block_size=2, num_prefix=1) == 0
    drawn = ["x....", "xxx..", "xxx..", "xxxxx", "xxxxx"]
    assert seen.tolist() == [[mark == "x" for mark in row] for row in drawn]


def test_one_block_of_all_cells_is_exactly_full_attention_without_a_prefix() -> None:
    torch.testing.assert_close(encoder("small", None, 16)(pictures(16)), encoder("small", None, None)(pictures(16)))


def test_features_of_a_small_vit_lie_in_raster_order() -> None:
    vit, images = small_vit(), pictures(16)
    other = images.clone()
    other[:, :, 8:12, 4:8] = 0  # row 2, column 1
    difference = (vit.embed(images) - vit.embed(other)).abs().amax(dim=(0, 2))
    assert difference.nonzero().flatten().tolist() == [9]


def test_uint8_pictures_are_the_same_as_float_ones() -> None:
    whole = (pictures(64) * 255).round().byte()
    for name, side in (("small", 16), ("timm", 64)):
        part = whole[:, :, :side, :side]
        torch.testing.assert_close(encoder(name, None, None)(part), encoder(name, None, None)(part / 255))


def test_the_last_block_normed_is_the_default_target() -> None:
    small, images = small_vit(), pictures(16)
    torch.testing.assert_close(small.norm(SmallEncoder(small, 2)(images)), SmallEncoder(small)(images))
    vit, images = timm_vit(), pictures(64)
    torch.testing.assert_close(vit.norm(TimmEncoder(vit, 64, 3)(images)), TimmEncoder(vit, 64)(images))
    assert not torch.allclose(TimmEncoder(vit, 64, 2)(images), TimmEncoder(vit, 64, 3)(images))


@pytest.mark.parametrize("registers", [0, 4])
def test_a_timm_encoder_normalises_then_resizes_then_drops_its_prefix(registers: int) -> None:
    vit, images = timm_vit(registers), pictures(48)
    vit.pretrained_cfg = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.25, 0.3)}
    normal = (images - torch.tensor([0.4, 0.5, 0.6])[:, None, None]) / torch.tensor([0.2, 0.25, 0.3])[:, None, None]
    tokens = vit.eval().forward_features(F.interpolate(normal, size=64, mode="bicubic", align_corners=False))
    encoder = TimmEncoder(vit, 64)
    features = encoder(images)
    assert features.shape == (2, encoder.num_tokens, encoder.width) == (2, 16, 48)
    torch.testing.assert_close(features, tokens[:, 1 + registers :])


def test_an_encoder_is_frozen_and_no_part_of_what_holds_it() -> None:
    for encoder_, side in ((SmallEncoder(small_vit()), 16), (TimmEncoder(timm_vit(), 64), 64)):
        owner = nn.Module()
        owner.encoder = encoder_
        owner.train()
        assert list(owner.parameters()) == []
        assert not encoder_.vit.training
        assert not encoder_(pictures(side).requires_grad_()).requires_grad


def test_a_layer_above_the_depth_is_refused() -> None:
    with pytest.raises(UserError, match="encoder ViT: layer 3 is above its depth 2"):
        SmallEncoder(small_vit(), layer=3)


def test_a_saved_vit_gives_the_same_features(tmp_path: Path) -> None:
    vit, images = small_vit(), pictures(16)
    save_vit(tmp_path, vit, {"loss": None})
    recipe = Encoder(name="vit-random", training=TRAINING, layer=1, block_size=4)
    assert torch.equal(open_encoder(recipe, tmp_path, grid_side=4)(images), SmallEncoder(vit, 1, 4)(images))


def test_an_altered_weights_file_is_named(tmp_path: Path) -> None:
    save_vit(tmp_path, small_vit(), {})
    path = tmp_path / "weights.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"weights\.safetensors was altered"):
        load_vit(tmp_path)


def test_timm_weights_come_from_the_file_given(tmp_path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        vit = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=64)
    save_file(vit.state_dict(), tmp_path / "vit.safetensors")
    before = torch.random.get_rng_state()
    recipe = Encoder(name="vit-tiny", timm="vit_tiny_patch16_224", image_size=64)
    loaded = open_encoder(recipe, tmp_path / "vit.safetensors", grid_side=4)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(loaded(pictures(64)), TimmEncoder(vit, 64)(pictures(64)))


def test_timm_weights_that_are_missing_or_damaged_are_told_in_one_sentence(tmp_path: Path) -> None:
    name, damaged = "vit_tiny_patch16_224", tmp_path / "damaged.safetensors"
    damaged.write_bytes(b"no weights")
    with pytest.raises(UserError, match=r"the weights file .*absent\.safetensors is missing"):
        load_timm(name, 64, tmp_path / "absent.safetensors")
    with pytest.raises(UserError, match=r"damaged\.safetensors is truncated or no safetensors file"):
        load_timm(name, 64, damaged)
