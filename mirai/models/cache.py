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

    def extend(self, layer: int, slots: range, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store key and value (B,H,G,C) of a group of slots -> those of all slots up to its last, (stop,B,H,C)."""
        self.keys[layer, slots.start : slots.stop] = key.permute(2, 0, 1, 3)
        self.values[layer, slots.start : slots.stop] = value.permute(2, 0, 1, 3)
        return self.keys[layer, : slots.stop], self.values[layer, : slots.stop]
