"""Frozen bidirectional encoders of Mirai-I behind one call: a small ViT trained here, or any ViT of timm.

Encoders are no nn.Modules: whatever holds one neither trains, moves nor saves it, and `.train()` never reaches it
(some ViTs draw random positions in training mode).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirai import states
from mirai.errors import UserError
from mirai.experiments.recipe import Encoder
from mirai.foresight.vit import SmallViT, block_causal_mask, unit_range


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
        self.vit = vit.eval().requires_grad_(False)
        self.layer = _checked_layer(layer, len(vit.blocks))
        self.width, self.num_tokens = vit.width, vit.grid_side**2
        self.mask = _mask(self.num_tokens, block_size, 0, vit.positions.device)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """See ImageEncoder."""
        features: Tensor = self.vit(images, self.layer, self.mask)
        return features


class TimmEncoder:
    """A timm ViT on its own input size and normalisation; class and register tokens are dropped (reference 7.2)."""

    width: int
    num_tokens: int

    def __init__(self, vit: Any, image_size: int, layer: int | None = None, block_size: int | None = None) -> None:
        # Any: timm's ViT classes share their methods, but no type.
        self.vit = vit.eval().requires_grad_(False)
        self.image_size = image_size
        self.layer = _checked_layer(layer, len(vit.blocks))
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


def open_encoder(encoder: Encoder, source: Path | None, device: str | torch.device = "cpu") -> ImageEncoder:
    """The encoder of a recipe: `source` is the folder of a trained one, or timm's weights file (None: the hub)."""
    if encoder.timm is None:
        assert source is not None
        return SmallEncoder(load_vit(source, device), encoder.layer, encoder.block_size)
    assert encoder.image_size is not None, "a timm encoder states the side of its input"
    vit = load_timm(encoder.timm, encoder.image_size, source, device)
    return TimmEncoder(vit, encoder.image_size, encoder.layer, encoder.block_size)


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


def load_timm(name: str, image_size: int, weights: Path | None, device: str | torch.device = "cpu") -> nn.Module:
    """A timm ViT with pretrained weights from the file `weights`, or from the hub and its cache without one.

    A stored position table is resampled to `image_size` once, here (bicubic with antialias, timm and REPA).
    UserError for an unknown name, a model that is no ViT, and weights that are absent or do not fit.
    """
    import timm  # takes seconds, and only these encoders need it

    if not timm.is_model(name):
        raise UserError(f"encoder timm: {name!r} is no timm model; see timm.list_models('vit*')")
    if weights is not None and not weights.is_file():
        raise UserError(f"encoder {name}: the weights file {weights} is missing")
    overlay = None if weights is None else {"file": str(weights)}
    try:
        with torch.random.fork_rng(devices=[]):  # the random initialisation timm overwrites draws from the global one
            vit = timm.create_model(
                name, pretrained=True, num_classes=0, img_size=image_size, pretrained_cfg_overlay=overlay
            )
    except TypeError:
        raise UserError(f"encoder timm: {name!r} takes no image size, so it is not a ViT") from None
    except Exception as error:  # timm, the hub's client and the file readers each raise kinds of their own
        source = "the hub and its cache (name a weights file instead)" if weights is None else str(weights)
        raise UserError(f"encoder {name}: no weights from {source}: {error}") from error
    return vit.to(device)


def _checked_layer(layer: int | None, depth: int) -> int | None:
    if layer is not None and layer > depth:
        raise UserError(f"encoder layer {layer} is above the encoder's depth {depth}")
    return layer


def _mask(num_tokens: int, block_size: int | None, prefix: int, device: torch.device) -> Tensor | None:
    return None if block_size is None else block_causal_mask(num_tokens, block_size, prefix).to(device)
