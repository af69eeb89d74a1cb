"""Keys and values of the slots decoded so far, allocated once for a whole batch of samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class KVCache:
    """One buffer of keys and one of values for all blocks; slots are filled from 0 upwards and never cleared."""

    keys: Tensor  # (L,B,H,slots,head width)
    values: Tensor  # (L,B,H,slots,head width)

    @classmethod
    def allocate(
        cls, layers: int, batch: int, heads: int, slots: int, head_width: int, dtype: torch.dtype, device: torch.device
    ) -> Self:
        """An empty cache."""
        shape = (layers, batch, heads, slots, head_width)
        return cls(torch.empty(shape, dtype=dtype, device=device), torch.empty(shape, dtype=dtype, device=device))

    def extend(self, layer: int, slot: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store key and value (B,H,1,head width) of one slot -> those of all slots up to it, (B,H,slot+1,head width)."""
        self.keys[layer, :, :, slot] = key[:, :, 0]
        self.values[layer, :, :, slot] = value[:, :, 0]
        return self.keys[layer, :, :, : slot + 1], self.values[layer, :, :, : slot + 1]
