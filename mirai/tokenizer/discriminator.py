"""PatchGAN (Isola et al. 2017) as LlamaGen trains its tokenizers against it: logits per patch, hinge losses."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirai.randomness import integer

SMALLEST_SIDE = 24  # of an image that leaves one patch


def new_discriminator(seed: int) -> nn.Sequential:
    """Images (B, 3, S, S) -> logits (B, 1, h, w), high for real patches; the global generator is put back as it was.

    Three halvings from 64 channels on. Batch norm has the statistics of what it is given, at any time: it is never
    asked outside the training. Convolutions start at N(0, 0.02), scales of the norms at N(1, 0.02).
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(integer(seed, "tokenizer-discriminator"))
        network = nn.Sequential(
            nn.Conv2d(3, 64, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            *_normalised(64, 128, stride=2),
            *_normalised(128, 256, stride=2),
            *_normalised(256, 512, stride=1),
            nn.Conv2d(512, 1, 4, padding=1),
        )
        for layer in network:
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, 0.0, 0.02)
            elif isinstance(layer, nn.BatchNorm2d):
                nn.init.normal_(layer.weight, 1.0, 0.02)
    return network


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Hinge loss: logits of real patches are pushed above 1, those of fake ones below -1."""
    return 0.5 * (F.relu(1 - real.float()).mean() + F.relu(1 + fake.float()).mean())


def generator_loss(fake: Tensor) -> Tensor:
    """Logits of fake patches are pushed up, without end."""
    return -fake.float().mean()


def _normalised(before: int, after: int, stride: int) -> tuple[nn.Module, ...]:
    return (
        nn.Conv2d(before, after, 4, stride, padding=1, bias=False),
        nn.BatchNorm2d(after, track_running_stats=False),
        nn.LeakyReLU(0.2),
    )
