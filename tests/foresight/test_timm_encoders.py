"""Encoders of timm at their real sizes: structure, weights files of several origins, positions, masks, pictures."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed
from torch import Tensor

from mirai.errors import UserError
from mirai.experiments.recipe import Encoder
from mirai.experiments.scale import load_scale
from mirai.foresight.encoders import TimmEncoder, hub_file, load_timm, open_encoder

pytestmark = pytest.mark.full

ROOT = Path(__file__).parents[2]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's
PATCH = "patch_embed.proj.weight"
TINY = "test_vit.r160_in1k"  # a real model of timm: patches of 16 pixels, 64 wide, a classifier, 10x10 positions

# encoder of scale imagenet256 -> side of the 24x24 grid's input, prefix tokens, width, depth, epsilon of the norm, and
# parameters at 16x16 and 24x24 patches. Reference 7.1 states 85.7M and 303.2M for DINOv2; for all five the published
# files of timm have these sizes: 4 bytes each, with their own position tables (37x37, none, 14x14), and 15 to 32 kB of
# names (of the two MAE files only rounded sizes are known).
STRUCTURES = {
    "base": (336, 1, 768, 12, 1e-6, 85_724_928, 85_970_688),
    "large": (336, 1, 1024, 24, 1e-6, 303_227_904, 303_555_584),
    "dinov3": (384, 5, 768, 12, 1e-5, 85_641_216, 85_641_216),
    "mae": (384, 1, 768, 12, 1e-6, 85_844_736, 86_090_496),
    "mae-large": (384, 1, 1024, 24, 1e-6, 303_363_072, 303_690_752),
}


@pytest.fixture
def papers_encoders(monkeypatch: pytest.MonkeyPatch) -> dict[str, Encoder]:
    monkeypatch.chdir(ROOT)
    return load_scale("imagenet256").encoders


def bare(name: str, image_size: int, **sizes: Any) -> Any:
    """A model of timm without weights that mean anything, all of them large enough to show in the output."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vit = timm.create_model(name, num_classes=0, img_size=image_size, **sizes)
        for parameter in vit.parameters():  # layer scales start at 1e-5: nothing would reach another token
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 1.0)
    return vit


def pictures(side: int, seed: int = 0) -> Tensor:
    return torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(seed))


def random_weights(name: str) -> dict[str, Tensor]:
    """What a file of a model holds: its tensors at its own input size, by timm's names, random."""
    with torch.device("meta"):
        tensors = timm.create_model(name).state_dict()
    generator = torch.Generator().manual_seed(0)
    return {
        key: torch.empty(tensor.shape).uniform_(-0.03, 0.03, generator=generator) for key, tensor in tensors.items()
    }


# Structure


@pytest.mark.parametrize("name", STRUCTURES)
def test_the_papers_encoders_have_their_published_sizes_and_one_patch_a_token(
    name: str, papers_encoders: dict[str, Encoder]
) -> None:
    recipe = papers_encoders[name]
    assert recipe.timm is not None
    assert recipe.image_size is not None
    larger, prefix, width, depth, epsilon, *counts = STRUCTURES[name]
    for image_size, side, count in zip((recipe.image_size, larger), (16, 24), counts, strict=True):
        with torch.device("meta"):
            vit: Any = timm.create_model(recipe.timm, num_classes=0, img_size=image_size)
        encoder = TimmEncoder(vit, image_size, recipe.layer)
        assert sum(parameter.numel() for parameter in vit.parameters()) == count
        assert (encoder.num_tokens, encoder.width, encoder.prefix, len(vit.blocks)) == (side**2, width, prefix, depth)
        assert vit.norm.eps == epsilon
        assert (vit.pretrained_cfg["mean"], vit.pretrained_cfg["std"]) == (MEAN, STD)


def test_the_paper_reads_two_thirds_into_a_mae_and_the_final_norm_of_the_others(
    papers_encoders: dict[str, Encoder],
) -> None:
    assert {name: encoder.layer for name, encoder in papers_encoders.items()} == {
        "base": None,
        "large": None,
        "dinov3": None,
        "mae": 8,
        "mae-large": 16,
    }


# Real files of size B, each in another of the layouts that people have


def dinov2_of_timm(path: Path, tensors: dict[str, Tensor]) -> Path:
    save_file(tensors, path / "model.safetensors")
    return path / "model.safetensors"


def dinov3_of_meta(path: Path, tensors: dict[str, Tensor]) -> Path:
    names = {"reg_token": "storage_tokens", "gamma_1": "ls1.gamma", "gamma_2": "ls2.gamma"}

    def renamed(key: str) -> str:
        for ours, theirs in names.items():
            key = key.replace(ours, theirs)
        return key

    theirs = {renamed(key): tensor for key, tensor in tensors.items()}
    width = tensors["cls_token"].shape[-1]
    for key in [key for key in theirs if key.endswith("qkv.weight")]:
        theirs[key.replace("weight", "bias")] = torch.zeros(3 * width)
        theirs[key.replace("weight", "bias_mask")] = torch.ones(3 * width)
    theirs |= {"mask_token": torch.ones(1, width), "rope_embed.periods": torch.ones(16)}
    torch.save(theirs, path / "dinov3.pth")
    return path / "dinov3.pth"


def mae_of_facebook(path: Path, tensors: dict[str, Tensor]) -> Path:
    decoder = {"mask_token": torch.ones(1, 1, 512), "decoder_embed.weight": torch.ones(512, 768)}
    torch.save({"model": tensors | decoder}, path / "mae.pth")
    return path / "mae.pth"


@pytest.mark.parametrize(
    ("name", "layout"),
    [("base", dinov2_of_timm), ("dinov3", dinov3_of_meta), ("mae", mae_of_facebook)],
)
def test_a_file_of_real_size_gives_the_target_of_the_reference(
    name: str,
    layout: Callable[[Path, dict[str, Tensor]], Path],
    papers_encoders: dict[str, Encoder],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe = papers_encoders[name]
    assert recipe.timm is not None
    assert recipe.image_size is not None
    tensors = random_weights(recipe.timm)
    file = layout(tmp_path, tensors)
    before = torch.random.get_rng_state()
    encoder = open_encoder(recipe, file, grid_side=16)
    file.unlink()  # a third of a gigabyte
    assert torch.equal(torch.random.get_rng_state(), before)
    assert capsys.readouterr().out == ""
    assert isinstance(encoder, TimmEncoder)
    vit = encoder.vit

    # The file's weights, all of them; positions resampled once to 16x16, bicubic with antialias
    loaded = vit.state_dict()
    table = tensors.pop("pos_embed", None)
    if table is not None:
        old = math.isqrt(table.shape[1] - 1)
        assert old == {"base": 37, "mae": 14}[name]
        grid = table[:, 1:].unflatten(1, (old, old)).permute(0, 3, 1, 2)
        grid = F.interpolate(grid, size=16, mode="bicubic", antialias=True, align_corners=False)
        resampled = torch.cat([table[:, :1], grid.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)
        torch.testing.assert_close(loaded.pop("pos_embed"), resampled)
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[key], tensor) for key, tensor in tensors.items())
    assert "state_dict" not in vit.pretrained_cfg
    assert not vit.training
    assert not any(parameter.requires_grad for parameter in vit.parameters())

    # The reference's processing (7.2), and its target
    image = torch.randint(0, 256, (1, 3, 256, 256), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    normal = (image / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    if name == "base":  # the only one whose patches are not 16 pixels
        normal = F.interpolate(normal, size=(224, 224), mode="bicubic", align_corners=False, antialias=False)
    with torch.no_grad():
        if recipe.layer is None:
            expected = vit.norm(vit.forward_intermediates(normal, output_fmt="NLC", intermediates_only=True)[-1])
        else:
            expected = vit.blocks[:8](vit.norm_pre(vit._pos_embed(vit.patch_embed(normal))))[:, 1:]
    features = encoder(image)
    assert features.shape == (1, 256, 768)
    assert not features.requires_grad
    torch.testing.assert_close(features, expected)


# Positions


def test_a_table_of_518_pixels_is_resampled_as_timm_does_and_only_once(tmp_path: Path) -> None:
    name = "vit_small_patch14_dinov2.lvd142m"
    tensors = random_weights(name)
    torch.save(tensors | {"mask_token": torch.ones(1, 384)}, tmp_path / "dinov2_vits14_pretrain.pth")  # Meta's layout
    table = tensors["pos_embed"]
    assert table.shape == (1, 37 * 37 + 1, 384)
    for image_size, side in ((224, 16), (336, 24)):
        vit: Any = load_timm(name, image_size, tmp_path / "dinov2_vits14_pretrain.pth")
        assert torch.equal(vit.pos_embed, resample_abs_pos_embed(table, [side, side]))
        assert not torch.allclose(vit.pos_embed, resample_abs_pos_embed(table, [side, side], antialias=False))
        assert not vit.dynamic_img_size


# Block-causal attention on the real grids

FAMILIES = {
    "DINOv2": ("vit_base_patch14_dinov2", 224),
    "DINOv2 with registers": ("vit_base_patch14_reg4_dinov2", 224),
    "DINOv3": ("vit_base_patch16_dinov3", 256),
    "MAE": ("vit_base_patch16_224.mae", 256),
}


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "written out"])
@pytest.mark.parametrize("family", FAMILIES)
def test_no_block_of_cells_learns_of_the_last_one(family: str, fused: bool) -> None:
    name, image_size = FAMILIES[family]
    vit = bare(name, image_size, depth=3, embed_dim=48, num_heads=3)
    for block in vit.blocks:
        block.attn.fused_attn = fused
    patch, images = image_size // 16, pictures(image_size)  # at its own size: a resize would mix neighbours
    other = images.clone()
    other[:, :, -patch:, -patch:] = 1 - other[:, :, -patch:, -patch:]

    def changed(layer: int | None, block_size: int | None) -> list[int]:
        encoder = TimmEncoder(vit, image_size, layer, block_size)
        return (encoder(images) != encoder(other)).any(dim=-1)[0].nonzero().flatten().tolist()

    for layer in (None, 2):
        assert changed(layer, None) == list(range(256))
        for block_size in (1, 16, 64):
            assert changed(layer, block_size) == list(range(256 - block_size, 256))


# Files and names that do not fit


@pytest.fixture(scope="module")
def tiny() -> dict[str, Tensor]:
    return random_weights(TINY)


def test_a_classifier_is_left_out_and_nothing_else_may_differ(tiny: dict[str, Tensor], tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    assert {"head.weight", "head.bias"} < tiny.keys()
    save_file(tiny, file)
    assert load_timm(TINY, 160, file).state_dict().keys() == tiny.keys() - {"head.weight", "head.bias"}

    save_file({key: tensor for key, tensor in tiny.items() if key != "blocks.3.mlp.fc1.bias"}, file)
    with pytest.raises(
        UserError, match=r"does not hold the weights of test_vit\.r160_in1k .*blocks\.3\.mlp\.fc1\.bias"
    ):
        load_timm(TINY, 160, file)
    save_file(tiny | {"blocks.3.ls1.gamma": torch.ones(64)}, file)
    with pytest.raises(UserError, match=r'Unexpected key.*"blocks\.3\.ls1\.gamma"'):
        load_timm(TINY, 160, file)
    save_file(tiny | {"norm.weight": torch.ones(65)}, file)
    with pytest.raises(UserError, match=r"size mismatch for norm\.weight"):
        load_timm(TINY, 160, file)


def test_another_models_file_is_refused_in_a_short_sentence(tiny: dict[str, Tensor], tmp_path: Path) -> None:
    save_file(random_weights("test_vit3.r160_in1k"), tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="does not hold the weights of") as caught:
        load_timm(TINY, 160, tmp_path / "model.safetensors")
    assert len(str(caught.value)) < 600 + len(str(tmp_path))
    assert "\n" not in str(caught.value)
    save_file(tiny | {PATCH: torch.zeros(64, 3, 8, 8)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"has patches of 8 pixels, test_vit\.r160_in1k of 16"):
        load_timm(TINY, 160, tmp_path / "model.safetensors")


def test_a_file_without_weights_is_not_replaced_by_the_hubs(tmp_path: Path) -> None:
    save_file({"head.weight": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="holds no weights of an encoder"):
        load_timm(TINY, 160, tmp_path / "model.safetensors")


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_a_truncated_file_is_named(suffix: str, tiny: dict[str, Tensor], tmp_path: Path) -> None:
    file = tmp_path / f"model.{suffix}"
    save_file(tiny, file) if suffix == "safetensors" else torch.save(tiny, file)
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(UserError, match=rf"model\.{suffix} is truncated or no"):
        load_timm(TINY, 160, file)


class Opener:
    """Unpickled, it would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return open, (str(self.path), "w")


def test_nothing_pickled_in_a_file_is_run(tiny: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save({"model": tiny, "extra": Opener(tmp_path / "run")}, tmp_path / "model.pth")
    with pytest.raises(UserError, match=r"model\.pth holds a pickled \S*open"):
        load_timm(TINY, 160, tmp_path / "model.pth")
    assert not (tmp_path / "run").exists()


def test_attention_biases_that_timm_would_drop_are_refused_unless_zero(tmp_path: Path) -> None:
    name = "vit_small_patch16_dinov3.lvd1689m"
    file = dinov3_of_meta(tmp_path, random_weights(name))
    tensors = torch.load(file, weights_only=True)
    tensors["blocks.5.attn.qkv.bias"][-1] = 0.1
    torch.save(tensors, file)
    with pytest.raises(UserError, match="has attention biases, which vit_small_patch16_dinov3"):
        load_timm(name, 256, file)


def test_names_and_sizes_that_no_plain_vit_has_are_refused(tiny: dict[str, Tensor], tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_file(tiny, file)
    for name in ("dinov9", "vit_base_patch14_dinov2.lvd143m", "hf-hub:timm/test_vit"):
        with pytest.raises(UserError, match=f"'{name}' is no timm model"):
            load_timm(name, 224, file)
    with pytest.raises(UserError, match="'resnet18' takes no image size"):
        load_timm("resnet18", 224, file)
    with pytest.raises(UserError, match=r"image_size 168 is no multiple of its patches' 16 pixels"):
        load_timm(TINY, 168, file)
    save_file(random_weights("test_vit_relpos"), file)
    with pytest.raises(UserError, match="'test_vit_relpos' is no plain ViT"):
        load_timm("test_vit_relpos", 160, file)


def test_a_model_that_only_norms_the_mean_of_its_patches_needs_a_layer() -> None:
    vit = bare("test_vit2", 160)
    with pytest.raises(UserError, match=r"test_vit2 has no final norm of its patches, .* name the block to read"):
        TimmEncoder(vit, 160)
    assert TimmEncoder(vit, 160, layer=8)(pictures(160)).shape == (1, 100, 64)


def test_an_encoder_whose_patches_are_not_the_tokens_is_refused(tiny: dict[str, Tensor], tmp_path: Path) -> None:
    save_file(tiny, tmp_path / "model.safetensors")
    recipe = Encoder(name="tiny", timm=TINY, image_size=256)
    assert open_encoder(recipe, tmp_path / "model.safetensors", grid_side=16).num_tokens == 256
    with pytest.raises(UserError) as caught:
        open_encoder(recipe, tmp_path / "model.safetensors", grid_side=24)
    assert str(caught.value) == (
        "encoder tiny gives 16x16 patches at image_size 256, but the image has 24x24 tokens; image_size 384 fits"
    )


# The hub


def test_the_hubs_weights_are_those_of_its_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError) as caught:
        hub_file("vit_base_patch14_dinov2.lvd142m")
    assert str(caught.value) == (
        "model.safetensors of timm/vit_base_patch14_dinov2.lvd142m is neither in the Hugging Face hub's cache nor to be "
        "had from here (LocalEntryNotFoundError); fetch it elsewhere and give its path as "
        "weights.vit_base_patch14_dinov2.lvd142m in config/site.yaml"
    )
    repository, commit = tmp_path / "models--timm--vit_base_patch14_dinov2.lvd142m", "0" * 40
    for path, text in ((f"snapshots/{commit}/model.safetensors", "weights"), ("refs/main", commit)):
        (repository / path).parent.mkdir(parents=True)
        (repository / path).write_text(text)
    assert hub_file("vit_base_patch14_dinov2.lvd142m").read_text() == "weights"
