"""A feature network that costs nothing: fixed random features of small images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

SIDE = 4  # of its images
WIDTHS = (4, 3, 5)  # pooled, spatial, logits


class RandomProjection(nn.Module):
    """uint8 images (B, 3, 4, 4) -> features that are never negative."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        weight = torch.randn(3 * SIDE * SIDE, sum(WIDTHS), generator=generator)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.images_seen = 0

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        self.images_seen += len(images)
        return (images.flatten(1).float() / 255 @ self.weight).relu().split(WIDTHS, dim=1)
