"""The made-up weights behind tests/golden: every tensor is a function of its state_dict key and shape (golden/README.md).

Tests write `from golden_weights import ...`: tests/ is on pytest's path.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

GOLDEN = Path(__file__).parent / "golden"
STAYS_ZERO = ("num_batches_tracked", "codebook_used")


def golden_tensor(key: str, shape: Sequence[int], gain: float = 1.0) -> np.ndarray | None:
    """Float32 array of one state_dict entry, bit for bit; None where the entry stays zero."""
    last = key.rsplit(".", 1)[-1]
    if last in STAYS_ZERO:
        return None
    seed = int.from_bytes(hashlib.sha256(f"mirai-shared{key}".encode()).digest()[:4], "little")
    normal = np.random.RandomState(seed).standard_normal(tuple(shape)).astype(np.float32)
    if last == "running_var":
        return np.float32(0.5) + np.abs(normal)
    if last != "running_mean" and len(shape) == 1 and last == "weight":
        return np.float32(1) + np.float32(0.1) * normal
    if last == "running_mean" or len(shape) == 1:
        return np.float32(0.1) * normal
    scale = 0.02 if "embed" in key else gain / np.sqrt(np.prod(shape[1:]))
    return np.float32(scale) * normal


def load_golden(module: nn.Module, gain: float = 1.0) -> None:
    """Fill a module's state_dict in place with the golden weights of its own keys and shapes."""
    with torch.no_grad():
        for key, tensor in module.state_dict().items():
            values = golden_tensor(key, tensor.shape, gain)
            if values is None:
                tensor.zero_()
            else:
                tensor.copy_(torch.from_numpy(values))


def worst(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest absolute difference, which golden/README.md bounds."""
    return (a - b).detach().abs().max().item()
