"""Images through a finished tokenizer: in float32 proper, and as many at once as a GPU's memory holds."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from mirai.numerics import full_float32
from mirai.tokenizer.vqgan import VQGAN, to_float

PASS_PIXELS = 2**21  # 32 images at 256 px, for which VQ-16's decoder takes 5.6 GB


def in_passes(function: Callable[[Tensor], Tensor], batch: Tensor, pixels: int) -> Tensor:
    """function(batch), pass after pass over its rows; `pixels` are those of one row's image."""
    with full_float32():
        return torch.cat([function(part) for part in batch.split(max(1, PASS_PIXELS // pixels))])


@torch.inference_mode()
def encode_pixels(model: VQGAN, images: np.ndarray) -> np.ndarray:
    """Codes (n, N) int64, in raster order, of pixels (n, S, S, 3) uint8; computed on the model's device."""
    device = model.quantize.embedding.weight.device

    def encoded(part: Tensor) -> Tensor:
        return model.encode(to_float(part.to(device)))

    codes: np.ndarray = in_passes(encoded, torch.from_numpy(images), images.shape[1] * images.shape[2]).cpu().numpy()
    return codes
