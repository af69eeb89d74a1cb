"""The parts of LlamaGen's transformer: SwiGLU, 2D rotary positions, causal attention.

Letters: B batch, T slots, G slots of a group, D width, H heads, C head width. No layer has a bias.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirai.models.cache import KVCache
from mirai.models.order import NO_CELL

AttentionKernel = Literal["flash", "explicit"]
ROPE_BASE = 10000.0
NORM_EPS = 1e-5  # of nn.RMSNorm: float32 statistics as LlamaGen's; in bfloat16 it rounds once, LlamaGen's twice


def at_least_float32(x: Tensor) -> Tensor:
    """Float32 for half precisions; float32 and float64 unchanged."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class Linear(nn.Linear):
    """Linear map without bias. Zero until it is given values, so that construction draws nothing at random."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)


class Embedding(nn.Embedding):
    """Embedding table. Zero until it is given values, as `Linear`."""

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)


class Dropout(nn.Dropout):
    """Dropout; on a CPU from 16 random bits per element (the rate to 2^-17), a small training step is 5 to 12 % faster."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0 or x.device.type != "cpu":
            return super().forward(x)
        dropped = min(round(self.p * 2**16), 2**16 - 1)  # of 2^16 values
        words = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
        bits = words.view(torch.int16)[: x.numel()].view(x.shape)
        return x * (bits >= dropped - 2**15).to(x.dtype).mul_(2**16 / (2**16 - dropped))


def rope_table(cells: Tensor, grid_side: int, head_width: int, dtype: torch.dtype) -> Tensor:
    """Rotations exp(i angle) of raster cells (T,) -> complex (T,C/2): first half of the pairs by row, second by column.

    Class and special slots get zero, not one: their queries and keys vanish, so that every later slot sees them with
    logit 0. All released weights were trained with this (reference 1.4, 5).
    """
    half = head_width // 2
    frequencies = 1.0 / ROPE_BASE ** (torch.arange(0, half, 2, device=cells.device, dtype=dtype) / half)  # C/4
    rows, columns = cells // grid_side, cells % grid_side
    angles = torch.cat([torch.outer(rows, frequencies), torch.outer(columns, frequencies)], dim=-1)
    return torch.polar((cells != NO_CELL).to(dtype)[:, None].expand_as(angles), angles)


def rotate(x: Tensor, rope: Tensor) -> Tensor:
    """Turn the interleaved channel pairs (2j, 2j+1) of x (...,T,C) by `rope` (T,C/2), in float32, and cast back."""
    pairs = torch.view_as_complex(at_least_float32(x).unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * rope).flatten(-2).to(x.dtype)


class FeedForward(nn.Module):
    """SwiGLU: w2(silu(w1 x) * w3 x)."""

    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.w1 = Linear(width, hidden)
        self.w3 = Linear(width, hidden)
        self.w2 = Linear(hidden, width)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.w2(F.silu(self.w1(x)) * self.w3(x)))


def masked_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax attention written out, (B,H,T,C): on a CPU at 64 slots several times as fast as the flash kernel.

    A slot (row) sees the slots (columns) where `mask` (T,T) is true; None: itself and those before it.
    """
    batch, _, slots, head_width = q.shape
    if mask is None:
        mask = torch.ones((slots, slots), dtype=torch.bool, device=q.device).tril()
    unseen = q.new_zeros((slots, slots)).masked_fill(~mask, -torch.inf)
    q, k, v = q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1)
    scores = torch.baddbmm(unseen, q, k.transpose(1, 2), alpha=head_width**-0.5)  # (B*H,T,T)
    return (scores.softmax(-1) @ v).unflatten(0, (batch, -1))


def last_query_attention(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Attention of one query (B,H,C) to keys and values (T,B,H,C), written out as products and sums -> (B,H,C)."""
    scores = (keys * q).sum(-1) * q.shape[-1] ** -0.5  # (T,B,H)
    return (values * scores.softmax(0)[..., None]).sum(0)


class Attention(nn.Module):
    """Causal multi-head attention. Dropout sits after the output map, not on the probabilities (reading 9.1)."""

    def __init__(self, width: int, heads: int, dropout: float, kernel: AttentionKernel) -> None:
        super().__init__()
        self.heads, self.kernel = heads, kernel
        self.wqkv = Linear(width, 3 * width)
        self.wo = Linear(width, width)
        self.dropout = Dropout(dropout)

    def _project(self, x: Tensor, rope: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries and keys, and values, each (B,H,T,C)."""
        qk, v = self.wqkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).split((2, 1))  # (2|1,B,H,T,C)
        q, k = rotate(qk.contiguous(), rope)
        return q, k, v[0]

    def _merge(self, heads: Tensor) -> Tensor:
        return self.dropout(self.wo(heads.transpose(1, 2).flatten(2)))

    def forward(self, x: Tensor, rope: Tensor, mask: Tensor | None) -> Tensor:
        """All slots at once, (B,T,D) -> (B,T,D); `mask` (T,T) as in `TokenOrder.mask`, None for causal."""
        q, k, v = self._project(x, rope)
        if self.kernel == "flash":
            return self._merge(F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None))
        return self._merge(masked_attention(q, k, v, mask))

    def decode(self, x: Tensor, rope: Tensor, cache: KVCache, layer: int, slots: range) -> Tensor:
        """A group of slots, (B,G,D) -> (B,G,D), attending to each other and to the cached ones before them: no mask."""
        q, k, v = self._project(x, rope)  # (B,H,G,C)
        keys, values = cache.extend(layer, slots, k, v)
        if self.kernel == "flash" or len(slots) > 1:  # of several queries the kernel is faster on a CPU too
            return self._merge(F.scaled_dot_product_attention(q, keys.permute(1, 2, 0, 3), values.permute(1, 2, 0, 3)))
        return self._merge(last_query_attention(q[:, :, 0], keys, values)[:, :, None])


class Block(nn.Module):
    """Pre-norm residual block."""

    def __init__(
        self, width: int, heads: int, ffn_hidden: int, dropouts: tuple[float, float], kernel: AttentionKernel
    ) -> None:
        super().__init__()
        self.attention = Attention(width, heads, dropouts[0], kernel)
        self.feed_forward = FeedForward(width, ffn_hidden, dropouts[1])
        self.attention_norm = nn.RMSNorm(width, eps=NORM_EPS)
        self.ffn_norm = nn.RMSNorm(width, eps=NORM_EPS)

    def forward(self, x: Tensor, rope: Tensor, mask: Tensor | None) -> Tensor:
        """All slots at once, (B,T,D) -> (B,T,D)."""
        x = x + self.attention(self.attention_norm(x), rope, mask)
        return x + self.feed_forward(self.ffn_norm(x))

    def decode(self, x: Tensor, rope: Tensor, cache: KVCache, layer: int, slots: range) -> Tensor:
        """A group of slots, (B,G,D) -> (B,G,D)."""
        x = x + self.attention.decode(self.attention_norm(x), rope, cache, layer, slots)
        return x + self.feed_forward(self.ffn_norm(x))
