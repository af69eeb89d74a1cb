"""LlamaGen's VQGAN at any width: images (B, 3, H, W) in [-1, 1] <-> codes (B, N) in raster order.

Structure, keys and shapes of the state_dict are those of LlamaGen's VQ-8 and VQ-16, so that released weights load
strictly. Letters: B batch, N tokens, V codes, C channels (of a latent: `codebook_dim`), h x w the token grid.
"""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirai.experiments.recipe import Tokenizer


class ResBlock(nn.Module):
    """Two normalised 3x3 convolutions around a shortcut, which is a 1x1 convolution where the width changes."""

    def __init__(self, in_channels: int, channels: int, groups: int) -> None:
        super().__init__()
        self.norm1 = _norm(in_channels, groups)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.norm2 = _norm(channels, groups)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(in_channels, channels, 1) if in_channels != channels else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.conv1(F.silu(self.norm1(x)))
        return self.nin_shortcut(x) + self.conv2(F.silu(self.norm2(hidden)))


class AttentionBlock(nn.Module):
    """Single-head attention over all pixels of a feature map, with a residual."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = _norm(channels, groups)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        q, k, v = (layer(normed).flatten(2) for layer in (self.q, self.k, self.v))  # each (B, C, h*w)
        weights = (q.transpose(1, 2) @ k * x.shape[1] ** -0.5).softmax(dim=-1)  # (B, queries, keys)
        return x + self.proj_out((v @ weights.transpose(1, 2)).view_as(x))


class Downsample(nn.Module):
    """Half the side: a 3x3 convolution of stride 2, padded on the right and at the bottom only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Twice the side: nearest neighbour, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """The res blocks of one resolution, attention after each at the coarsest one, then at most one change of resolution."""

    def __init__(
        self, in_channels: int, channels: int, res_blocks: int, groups: int, *, attention: bool, down: bool, up: bool
    ) -> None:
        super().__init__()
        widths = [in_channels] + [channels] * res_blocks
        self.res = nn.ModuleList(ResBlock(before, after, groups) for before, after in itertools.pairwise(widths))
        self.attn = nn.ModuleList(AttentionBlock(channels, groups) if attention else nn.Identity() for _ in self.res)
        self.downsample = Downsample(channels) if down else nn.Identity()
        self.upsample = Upsample(channels) if up else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        for res, attn in zip(self.res, self.attn, strict=True):
            x = attn(res(x))
        return self.upsample(self.downsample(x))


class Encoder(nn.Module):
    """Images (B, 3, H, W) -> features (B, z_channels, h, w)."""

    def __init__(self, recipe: Tokenizer) -> None:
        super().__init__()
        groups, last = recipe.group_norm_groups, len(recipe.multipliers) - 1
        widths = [recipe.channels] + [recipe.channels * multiplier for multiplier in recipe.multipliers]
        self.conv_in = nn.Conv2d(3, recipe.channels, 3, padding=1)
        self.conv_blocks = nn.Sequential(
            *(
                Level(before, after, recipe.res_blocks, groups, attention=i == last, down=i < last, up=False)
                for i, (before, after) in enumerate(itertools.pairwise(widths))
            )
        )
        self.mid = _middle(widths[-1], groups)
        self.norm_out = _norm(widths[-1], groups)
        self.conv_out = nn.Conv2d(widths[-1], recipe.z_channels, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.mid(self.conv_blocks(self.conv_in(images)))
        return self.conv_out(F.silu(self.norm_out(hidden)))


class Decoder(nn.Module):
    """Features (B, z_channels, h, w) -> images (B, 3, H, W), not clipped. One res block more per level than the encoder."""

    def __init__(self, recipe: Tokenizer) -> None:
        super().__init__()
        groups, last = recipe.group_norm_groups, len(recipe.multipliers) - 1
        levels = [recipe.channels * multiplier for multiplier in reversed(recipe.multipliers)]
        widths = [levels[0], *levels]
        self.conv_in = nn.Conv2d(recipe.z_channels, widths[0], 3, padding=1)
        self.mid = _middle(widths[0], groups)
        self.conv_blocks = nn.Sequential(
            *(
                Level(before, after, recipe.res_blocks + 1, groups, attention=i == 0, down=False, up=i < last)
                for i, (before, after) in enumerate(itertools.pairwise(widths))
            )
        )
        self.norm_out = _norm(widths[-1], groups)
        self.conv_out = nn.Conv2d(widths[-1], 3, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        hidden = self.conv_blocks(self.mid(self.conv_in(features)))
        return self.conv_out(F.silu(self.norm_out(hidden)))


class Quantizer(nn.Module):
    """The codebook. Latents and rows are compared, and rows used, at unit length; the stored rows need not have it."""

    codebook_used: Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        # LlamaGen's usage statistics: never read here, kept because released files hold it and are loaded strictly
        self.register_buffer("codebook_used", torch.zeros(65536))
        self.embedding = nn.Embedding(size, dim)
        nn.init.uniform_(self.embedding.weight, -1 / size, 1 / size)

    def nearest(self, latents: Tensor) -> Tensor:
        """Codes (B, N) of unit latents (B, N, C): at unit length the largest cosine is the smallest distance."""
        return (latents @ self.rows().T).argmax(dim=-1)

    def rows(self) -> Tensor:
        """The codebook (V, C) at unit length."""
        return F.normalize(self.embedding.weight, dim=-1)


class Reconstruction(NamedTuple):
    """What one training step needs of a batch."""

    images: Tensor  # (B, 3, H, W)
    latents: Tensor  # (B, N, C) at unit length, before quantisation
    codes: Tensor  # (B, N)
    codebook_loss: Tensor  # pulls codebook rows to their latents
    commitment_loss: Tensor  # pulls latents to their rows; LlamaGen weighs it with 0.25


class VQGAN(nn.Module):
    """Encoder, codebook and decoder of one recipe."""

    def __init__(self, recipe: Tokenizer) -> None:
        super().__init__()
        self.downsampling = recipe.downsampling
        self.encoder = Encoder(recipe)
        self.decoder = Decoder(recipe)
        self.quantize = Quantizer(recipe.codebook_size, recipe.codebook_dim)
        self.quant_conv = nn.Conv2d(recipe.z_channels, recipe.codebook_dim, 1)
        self.post_quant_conv = nn.Conv2d(recipe.codebook_dim, recipe.z_channels, 1)

    def latents(self, images: Tensor) -> Tensor:
        """Continuous latents (B, C, h, w) of images (B, 3, H, W) in [-1, 1], not normalised."""
        return self.quant_conv(self.encoder(images))

    def encode(self, images: Tensor) -> Tensor:
        """Codes (B, N) int64, in raster order, of images (B, 3, H, W) in [-1, 1]."""
        return self.quantize.nearest(unit_vectors(self.latents(images)))

    def decode(self, codes: Tensor) -> Tensor:
        """Images (B, 3, H, W), about [-1, 1] and not clipped, of codes (B, N) of a square grid."""
        return self._decode_rows(F.embedding(codes, self.quantize.rows()))

    def forward(self, images: Tensor) -> Reconstruction:
        """Encode and decode with the straight-through gradient, as in training."""
        latents = unit_vectors(self.latents(images))
        codes = self.quantize.nearest(latents)
        rows = F.embedding(codes, self.quantize.rows())  # (B, N, C)
        return Reconstruction(
            images=self._decode_rows(latents + (rows - latents).detach()),
            latents=latents,
            codes=codes,
            codebook_loss=F.mse_loss(rows, latents.detach()),
            commitment_loss=F.mse_loss(latents, rows.detach()),
        )

    def _decode_rows(self, rows: Tensor) -> Tensor:
        side = math.isqrt(rows.shape[1])
        assert side * side == rows.shape[1], f"{rows.shape[1]} codes are no square grid"
        return self.decoder(self.post_quant_conv(rows.transpose(1, 2).unflatten(2, (side, side))))


def unit_vectors(latents: Tensor) -> Tensor:
    """Latents (B, C, h, w) -> (B, N, C) in raster order, at unit length."""
    return F.normalize(latents.flatten(2).transpose(1, 2), dim=-1)


def to_float(images: Tensor) -> Tensor:
    """Pixels (B, S, S, 3) uint8 -> (B, 3, S, S) float32 in [-1, 1], with LlamaGen's arithmetic (ToTensor, Normalize)."""
    return (images.permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5


def to_uint8(images: Tensor) -> Tensor:
    """Images (B, 3, H, W), nominally in [-1, 1] -> pixels (B, H, W, 3) uint8, rounded as LlamaGen's sampler does."""
    return (127.5 * images + 128).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def _norm(channels: int, groups: int) -> nn.GroupNorm:
    return nn.GroupNorm(groups, channels, eps=1e-6)


def _middle(channels: int, groups: int) -> nn.Sequential:
    return nn.Sequential(
        ResBlock(channels, channels, groups), AttentionBlock(channels, groups), ResBlock(channels, channels, groups)
    )
