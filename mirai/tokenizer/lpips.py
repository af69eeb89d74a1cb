"""LPIPS (Zhang et al. 2018) with VGG16: how different two images look, as the released weights judge."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirai.errors import UserError
from mirai.released import load_strictly, read_checkpoint

STAGES = ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))  # VGG16: convolutions and their width; halved in between
SMALLEST_SIDE = 16  # of an image that leaves one cell of the last stage
# ImageNet's mean and deviation, of values in [-1, 1], as LPIPS rounds them.
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


class LPIPS(nn.Module):
    """Frozen. Features after the last ReLU of each stage, at unit length, squared differences, weighed by channel.

    LlamaGen drops half of the channels at random while it trains, which changes no expectation; here all are used.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        taps, width = [], 3
        for stage, (convolutions, channels) in enumerate(STAGES):
            layers += [nn.MaxPool2d(2)] if stage else []
            for _ in range(convolutions):
                layers += [nn.Conv2d(width, channels, 3, padding=1), nn.ReLU(inplace=True)]
                width = channels
            taps.append(len(layers) - 1)
        self.taps = taps
        self.features = nn.Sequential(*layers)  # numbered as torchvision does
        self.channel_weights = nn.ParameterList(torch.empty(channels, 1, 1) for _, channels in STAGES)
        self.register_buffer("shift", torch.tensor(SHIFT).view(3, 1, 1))
        self.register_buffer("scale", torch.tensor(SCALE).view(3, 1, 1))
        self.requires_grad_(False)

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        """Distances (B,) of images (B, 3, S, S), which get gradients, to targets, which get none; both in [-1, 1]."""
        with torch.no_grad():
            wanted = self._directions(targets)
        total = images.new_zeros(len(images))
        for weights, direction, target in zip(self.channel_weights, self._directions(images), wanted, strict=True):
            total = total + (weights * (direction - target).square()).sum(dim=1).mean(dim=(1, 2))
        return total

    def _directions(self, images: Tensor) -> list[Tensor]:
        hidden, found = (images - self.shift) / self.scale, []
        for index, layer in enumerate(self.features):
            hidden = layer(hidden)
            if index in self.taps:
                found.append(F.normalize(hidden.float(), dim=1, eps=1e-10))
        return found


def open_lpips(vgg16: Path, weights: Path) -> LPIPS:
    """LPIPS from torchvision's VGG16 file and the channel weights released with LPIPS (v0.1, vgg.pth).

    UserError if a file is missing or damaged, or holds another network's weights.
    """
    with torch.random.fork_rng(devices=[]):  # the initialisation is overwritten
        lpips = LPIPS()
    holder = nn.ModuleDict({"features": lpips.features})
    kept = {name: value for name, value in read_checkpoint(vgg16).tensors.items() if not name.startswith("classifier.")}
    load_strictly(holder, kept, vgg16, "torchvision's VGG16")

    tensors = read_checkpoint(weights).tensors
    names = [f"lin{stage}.model.1.weight" for stage in range(len(STAGES))]
    expected = {name: (1, channels, 1, 1) for name, (_, channels) in zip(names, STAGES, strict=True)}
    if {name: tuple(tensor.shape) for name, tensor in tensors.items()} != expected:
        raise UserError(f"{weights} does not hold LPIPS' weights for VGG16, which are {', '.join(names)}")
    for name, parameter in zip(names, lpips.channel_weights, strict=True):
        parameter.copy_(tensors[name][0])
    return lpips
