"""Keys and values of the slots decoded so far, allocated once for a whole batch of samples."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class KVCache:
    """One buffer of keys and one of values for all blocks; slots are filled from 0 upwards and never cleared.

    Slots come before the batch: what is written and what is read are then contiguous pieces of memory.
    """

    keys: Tensor  # (L,T,B,H,C), C head width
    values: Tensor  # (L,T,B,H,C)

    def extend(self, layer: int, slot: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store key and value (B,H,C) of one slot -> those of all slots up to it, (slot+1,B,H,C)."""
        self.keys[layer, slot] = key
        self.values[layer, slot] = value
        return self.keys[layer, : slot + 1], self.values[layer, : slot + 1]
