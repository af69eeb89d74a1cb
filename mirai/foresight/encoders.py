"""Frozen bidirectional encoders of Mirai-I behind one call: a small ViT trained here, or any ViT of timm.

Encoders are no nn.Modules: whatever holds one neither trains, moves nor saves it, and `.train()` never reaches it
(some ViTs draw random positions in training mode).
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from mirai import states
from mirai.errors import UserError
from mirai.experiments.recipe import Encoder
from mirai.foresight.vit import SmallViT, block_causal_mask, unit_range
from mirai.released import read_checkpoint


class ImageEncoder(Protocol):
    """What gives the targets of Mirai-I."""

    width: int
    num_tokens: int

    def __call__(self, images: Tensor) -> Tensor:
        """Images (B, 3, S, S), uint8 or float in [0, 1] -> features (B, N, C) by cell, in raster order."""
        ...


class SmallEncoder:
    """A SmallViT read after block `layer` (None: last block and final norm), block-causal if `block_size` is given."""

    def __init__(self, vit: SmallViT, layer: int | None = None, block_size: int | None = None) -> None:
        check_layer("ViT", layer, len(vit.blocks))
        self.vit = vit.eval().requires_grad_(False)
        self.layer = layer
        self.width, self.num_tokens = vit.width, vit.grid_side**2
        self.mask = _mask(self.num_tokens, block_size, 0, vit.positions.device)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """See ImageEncoder."""
        features: Tensor = self.vit(images, self.layer, self.mask)
        return features


class TimmEncoder:
    """A timm ViT on its own input size and normalisation; class and register tokens are dropped (reference 7.2).

    The target is the final LayerNorm of the last block (DINOv2, DINOv3), or the raw output of block `layer` (MAE).
    """

    width: int
    num_tokens: int

    def __init__(self, vit: Any, image_size: int, layer: int | None = None, block_size: int | None = None) -> None:
        # Any: timm's ViT classes share their methods, but no type.
        check_layer(
            vit.pretrained_cfg.get("architecture", "timm"), layer, len(vit.blocks), final_norm=_has_final_norm(vit)
        )
        self.vit = vit.eval().requires_grad_(False)
        self.image_size = image_size
        self.layer = layer
        self.prefix: int = vit.num_prefix_tokens
        self.width, self.num_tokens = vit.num_features, vit.patch_embed.num_patches
        device = next(vit.parameters()).device
        self.mask = _mask(self.num_tokens, block_size, self.prefix, device)
        self.mean, self.std = (
            torch.tensor(vit.pretrained_cfg[name], device=device).view(3, 1, 1) for name in ("mean", "std")
        )

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """See ImageEncoder. Normalised first, then resized, bicubic without antialias, as REPA."""
        x = (unit_range(images) - self.mean) / self.std
        if x.shape[-1] != self.image_size:
            x = F.interpolate(x, size=self.image_size, mode="bicubic", align_corners=False)
        if self.layer is None:
            features: Tensor = self.vit.forward_features(x, attn_mask=self.mask)
            return features[:, self.prefix :]
        (features,) = self.vit.forward_intermediates(
            x,
            indices=[self.layer - 1],
            norm=False,
            stop_early=True,
            output_fmt="NLC",
            intermediates_only=True,
            attn_mask=self.mask,
        )
        return features


def open_encoder(encoder: Encoder, source: Path, grid_side: int, device: str | torch.device = "cpu") -> ImageEncoder:
    """The encoder of a recipe for a grid of tokens; `source` is the folder of a trained one, or timm's weights file.

    UserError for weights that do not fit, a layer it does not have, and patches that are not the tokens' cells.
    """
    if encoder.timm is None:
        return SmallEncoder(load_vit(source, device), encoder.layer, encoder.block_size)
    assert encoder.image_size is not None, "a timm encoder states the side of its input"
    vit = load_timm(encoder.timm, encoder.image_size, source, device)
    opened = TimmEncoder(vit, encoder.image_size, encoder.layer, encoder.block_size)
    check_cells(encoder, opened.num_tokens, grid_side)
    return opened


def check_cells(encoder: Encoder, num_tokens: int, grid_side: int) -> None:
    """UserError unless a timm encoder's patches are as many as the tokens: slot s is aligned with patch s."""
    if num_tokens != grid_side**2:
        assert encoder.image_size is not None
        side = math.isqrt(num_tokens)
        fitting = encoder.image_size // side * grid_side
        raise UserError(
            f"encoder {encoder.name} gives {side}x{side} patches at image_size {encoder.image_size}, but the image "
            f"has {grid_side}x{grid_side} tokens; image_size {fitting} fits"
        )


def check_layer(name: str, layer: int | None, depth: int, *, final_norm: bool = True) -> None:
    """UserError for a block that an encoder does not have, and for none where patches pass no final norm."""
    if layer is not None and layer > depth:
        raise UserError(f"encoder {name}: layer {layer} is above its depth {depth}")
    if layer is None and not final_norm:
        raise UserError(
            f"encoder {name} has no final norm of its patches, only one of their mean or none; name the block to read as "
            "`layer`"
        )


def timm_shape(encoder: Encoder, source: Path) -> dict[str, Any]:
    """Of a timm encoder's weights, for its manifest: patches, blocks, and whether patches pass a final norm."""
    assert encoder.timm is not None
    assert encoder.image_size is not None
    vit: Any = load_timm(encoder.timm, encoder.image_size, source)
    return {
        "num_tokens": vit.patch_embed.num_patches,
        "depth": len(vit.blocks),
        "final_norm": _has_final_norm(vit),
    }


def _has_final_norm(vit: Any) -> bool:
    return not isinstance(vit.norm, nn.Identity)  # timm may move it behind the average of the patches


def save_vit(folder: Path, vit: SmallViT, report: Mapping[str, Any]) -> None:
    """Publish a trained ViT: weights.safetensors, and encoder.json with its sizes and the report of its training."""
    weights = states.save_tensors(folder / "weights.safetensors", vit.state_dict())
    states.publish(folder / "encoder.json", {"sizes": vit.sizes, "report": dict(report)}, {"weights": weights})


def load_vit(folder: Path, device: str | torch.device = "cpu") -> SmallViT:
    """The ViT of `save_vit`. UserError if a file is missing or was altered."""
    manifest = states.read_json(folder / "encoder.json")
    vit = SmallViT(**manifest["sizes"], generator=torch.Generator())
    vit.load_state_dict(states.load_tensors(folder, manifest["payloads"]["weights"]))
    return vit.to(device)


def load_timm(name: str, image_size: int, weights: Path, device: str | torch.device = "cpu") -> nn.Module:
    """A timm ViT with the weights of a file: timm's own (.safetensors), or the authors' where timm converts them.

    A stored position table is resampled to `image_size` once, here (bicubic with antialias, timm and REPA). UserError
    for an unknown name, a model that is no ViT, and a file that is damaged or does not hold exactly its weights.
    """
    import timm  # takes seconds, and only these encoders need it

    stored = _stored(weights, name, _timm_config(name).classifier)
    # With no classes on either side timm loads strictly; its filter converts and resamples.
    overlay = {"state_dict": stored, "num_classes": 0, "classifier": None}
    try:
        with torch.random.fork_rng(devices=[]):  # the random initialisation timm overwrites draws from the global one
            vit: Any = timm.create_model(
                name, pretrained=True, num_classes=0, img_size=image_size, pretrained_cfg_overlay=overlay
            )
    except Exception as error:  # timm's conversions raise kinds of their own; torch lists missing and extra tensors
        if isinstance(error, TypeError) and "img_size" in str(error):
            raise UserError(f"encoder timm: {name!r} takes no image size, so it is not a ViT") from None
        raise UserError(
            f"{weights} does not hold the weights of {name} in timm's layout or its authors': "
            + textwrap.shorten(str(error).split(":\n\t", 1)[-1], 400)
        ) from None
    del vit.pretrained_cfg["state_dict"]  # a second copy of the weights
    _check_patches(vit, name, image_size, stored.get("patch_embed.proj.weight"), weights)
    module: nn.Module = vit.to(device)
    return module


def hub_file(name: str) -> Path:
    """timm's own weights of a model in the cache of the Hugging Face hub, fetched first if this machine can.

    UserError that says what to fetch by hand where it cannot.
    """
    from huggingface_hub import hf_hub_download

    config = _timm_config(name)
    if config.hf_hub_id is None:
        raise UserError(f"encoder timm: timm publishes no weights of {name!r}")
    file = config.hf_hub_filename or "model.safetensors"
    try:
        return Path(hf_hub_download(config.hf_hub_id, file))
    except Exception as error:  # of the hub's client, of what it fetches with, or of the network
        raise UserError(
            f"{file} of {config.hf_hub_id} is neither in the Hugging Face hub's cache nor to be had from here "
            f"({type(error).__name__}); fetch it elsewhere and give its path as weights.{name} in config/site.yaml"
        ) from None


def _timm_config(name: str) -> Any:
    """What timm knows of a model's published weights; UserError for a name or tag it does not have."""
    import timm

    try:
        config = timm.models.get_pretrained_cfg(name)
    except RuntimeError:  # the part behind the dot
        config = None
    if config is None:
        raise UserError(f"encoder timm: {name!r} is no timm model; see timm.list_models('vit*', pretrained=True)")
    return config


def _check_patches(vit: Any, name: str, image_size: int, kernel: Tensor | None, file: Path) -> None:
    """UserError for a model that is no plain ViT, and for patches that timm would crop or resample without a word."""
    from timm.models.eva import Eva
    from timm.models.vision_transformer import VisionTransformer

    if not isinstance(vit, VisionTransformer | Eva):
        raise UserError(f"encoder timm: {name!r} is no plain ViT: timm's {type(vit).__name__} takes no attention mask")
    patch = vit.patch_embed.patch_size[0]
    if image_size % patch:
        raise UserError(f"encoder {name}: image_size {image_size} is no multiple of its patches' {patch} pixels")
    if kernel is not None and kernel.shape[-1] != patch:
        raise UserError(f"{file} has patches of {kernel.shape[-1]} pixels, {name} of {patch}: another model's file")


def _stored(file: Path, name: str, classifier: str | tuple[str, ...] | None) -> dict[str, Tensor]:
    """The tensors of a weights file, without a classifier and a MAE's decoder, which no target needs."""
    if file.suffix == ".safetensors":
        try:
            tensors = load_file(file)
        except FileNotFoundError:
            raise UserError(f"encoder {name}: the weights file {file} is missing") from None
        except (SafetensorError, OSError) as error:
            raise UserError(f"{file} is truncated or no safetensors file ({error}); download it again") from None
    else:
        tensors = dict(read_checkpoint(file).tensors)
    heads = (classifier,) if isinstance(classifier, str) else classifier or ()
    unused = ("decoder_", *(f"{head}." for head in heads))
    tensors = {key: tensor for key, tensor in tensors.items() if not key.startswith(unused)}
    if "storage_tokens" in tensors and "_qkvb" not in name:  # Meta's own DINOv3 file for timm's model without biases
        for key in [key for key in tensors if key.endswith("qkv.bias")]:
            query, _, value = tensors.pop(key).chunk(3)  # keys have none: theirs is masked out
            if query.any() or value.any():
                raise UserError(f"{file} has attention biases, which {name} leaves out; timm's model with _qkvb fits")
    if not tensors:  # timm would take an empty dictionary for none, and ask the hub
        raise UserError(f"{file} holds no weights of an encoder")
    return tensors


def _mask(num_tokens: int, block_size: int | None, prefix: int, device: torch.device) -> Tensor | None:
    return None if block_size is None else block_causal_mask(num_tokens, block_size, prefix).to(device)
