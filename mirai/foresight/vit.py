"""A small bidirectional ViT whose patches are the tokenizer's cells, and block-causal attention (Fig. 3).

Letters: B batch, N patches in raster order, D width, S side of the image, P side of a patch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirai.foresight.layers import xavier_linear


def block_causal_mask(num_tokens: int, block_size: int, num_prefix: int = 0) -> Tensor:
    """Additive attention mask (T, T), T = prefix + N: cells see cells of their own and earlier raster blocks.

    Prefix tokens see only each other: they would carry later cells to earlier ones one layer on. Additive, because
    not every attention implementation takes a boolean mask for what it is.
    """
    block = torch.arange(num_tokens) // block_size
    block = torch.cat([torch.full((num_prefix,), -1), block])
    return torch.where(block[None, :] <= block[:, None], 0.0, -torch.inf)


def unit_range(images: Tensor) -> Tensor:
    """uint8 images as float in [0, 1]; float images unchanged."""
    return images.float() / 255 if images.dtype == torch.uint8 else images


class SmallViT(nn.Module):
    """Pre-norm ViT with fixed sine-cosine positions and no class token: nothing in it but its patches."""

    positions: Tensor

    def __init__(
        self, image_size: int, patch: int, width: int, num_layers: int, num_heads: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        assert image_size % patch == 0
        self.sizes = {  # with which the same module is built again
            "image_size": image_size,
            "patch": patch,
            "width": width,
            "num_layers": num_layers,
            "num_heads": num_heads,
        }
        self.patch, self.width, self.grid_side = patch, width, image_size // patch
        self.register_buffer("positions", sine_cosine_positions(self.grid_side, width), persistent=False)
        self.embedding = xavier_linear(3 * patch**2, width, generator)
        self.blocks = nn.ModuleList(Block(width, num_heads, generator) for _ in range(num_layers))
        self.norm = nn.LayerNorm(width)

    def embed(self, images: Tensor) -> Tensor:
        """Images (B, 3, S, S), uint8 or float in [0, 1] -> patch embeddings with positions (B, N, D)."""
        x: Tensor = self.embedding(patches_of(2 * unit_range(images) - 1, self.patch))
        return x + self.positions

    def forward(self, images: Tensor, layer: int | None = None, mask: Tensor | None = None) -> Tensor:
        """-> (B, N, D): raw output of block `layer` (1-based), or of the last block after the final norm."""
        x = self.embed(images)
        for block in self.blocks[:layer]:
            x = block(x, mask)
        return self.norm(x) if layer is None else x


class Block(nn.Module):
    """Attention and a GELU MLP of ratio 4, each on a LayerNorm and added to the stream."""

    def __init__(self, width: int, num_heads: int, generator: torch.Generator) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm_attention, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = xavier_linear(width, 3 * width, generator), xavier_linear(width, width, generator)
        self.up, self.down = xavier_linear(width, 4 * width, generator), xavier_linear(4 * width, width, generator)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D); mask (T, T) is added to the attention logits."""
        q, k, v = self.qkv(self.norm_attention(x)).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        # Written out: at 64 tokens in bfloat16 on a CPU, the fused kernel takes five times as long.
        logits = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5  # (B, heads, T, T)
        attention = (logits if mask is None else logits + mask).softmax(-1)
        x = x + self.out((attention.to(v.dtype) @ v).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm_mlp(x))))


def patches_of(images: Tensor, patch: int) -> Tensor:
    """(B, 3, S, S) -> (B, N, 3 P P), patches in raster order."""
    return F.unfold(images, patch, stride=patch).transpose(1, 2)


def sine_cosine_positions(grid_side: int, width: int) -> Tensor:
    """(N, D): a quarter of the channels each for sine and cosine of row and column, frequencies 1 to 1/10000."""
    assert width % 4 == 0
    frequencies = 10_000 ** -(torch.arange(width // 4) / (width // 4))
    row, column = torch.meshgrid(torch.arange(grid_side), torch.arange(grid_side), indexing="ij")
    angles = torch.cat([row.reshape(-1, 1) * frequencies, column.reshape(-1, 1) * frequencies], dim=1)  # (N, D/2)
    return torch.cat([angles.sin(), angles.cos()], dim=1)
