"""Files of made-up weights in the layout of the released ones behind LPIPS."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mirai.tokenizer.lpips import LPIPS, open_lpips


@pytest.fixture(scope="session")
def lpips_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """torchvision's VGG16, in the old format of its release, and LPIPS' channel weights."""
    folder = tmp_path_factory.mktemp("lpips")
    generator = torch.Generator().manual_seed(0)
    vgg: dict[str, Tensor] = {"classifier.0.weight": torch.zeros(2, 2)}
    for index, layer in enumerate(LPIPS().features):
        if isinstance(layer, nn.Conv2d):
            fan_in = layer.weight[0].numel()
            vgg[f"features.{index}.weight"] = (2 / fan_in) ** 0.5 * torch.randn(layer.weight.shape, generator=generator)
            vgg[f"features.{index}.bias"] = 0.1 * torch.randn(layer.bias.shape, generator=generator)
    torch.save(vgg, folder / "vgg16.pth", _use_new_zipfile_serialization=False)
    channels = (64, 128, 256, 512, 512)
    linear = {
        f"lin{stage}.model.1.weight": torch.rand(1, width, 1, 1, generator=generator)
        for stage, width in enumerate(channels)
    }
    torch.save(linear, folder / "lpips.pth")
    return folder / "vgg16.pth", folder / "lpips.pth"


@pytest.fixture(scope="session")
def lpips(lpips_files: tuple[Path, Path]) -> LPIPS:
    return open_lpips(*lpips_files)
