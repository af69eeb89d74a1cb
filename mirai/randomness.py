"""Random streams without memory: every draw is a function of (seed, purpose, indices); nothing is saved to resume."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def sequence(seed: int, purpose: str, *indices: int) -> np.random.SeedSequence:
    """The seed sequence of one purpose, e.g. ("view", step). Purposes are hashed, so their streams never meet."""
    # The count of indices keeps (3,) and (3, 0) apart: seed sequences ignore trailing zeros.
    return np.random.SeedSequence([seed, zlib.crc32(purpose.encode()), len(indices), *indices])


def stream(seed: int, purpose: str, *indices: int) -> np.random.Generator:
    """A numpy generator (Philox, whose stream numpy keeps stable) for one purpose and index."""
    return np.random.Generator(np.random.Philox(sequence(seed, purpose, *indices)))


def integer(seed: int, purpose: str, *indices: int) -> int:
    """A 63-bit integer, for seeding a torch generator."""
    return int(sequence(seed, purpose, *indices).generate_state(1, np.uint64)[0] >> 1)


def torch_generator(seed: int, purpose: str, *indices: int, device: str = "cpu") -> torch.Generator:
    """A torch generator for one purpose and index."""
    import torch

    return torch.Generator(device=device).manual_seed(integer(seed, purpose, *indices))
