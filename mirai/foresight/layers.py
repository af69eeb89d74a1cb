"""The one kind of linear layer that is trained from scratch in this package."""

from __future__ import annotations

import torch
from torch import nn


def xavier_linear(width_in: int, width_out: int, generator: torch.Generator) -> nn.Linear:
    """Xavier-uniform weights from `generator`, zero bias.

    skip_init: nn.Linear's own initialisation would draw from the global generator.
    """
    linear = nn.utils.skip_init(nn.Linear, width_in, width_out)
    nn.init.xavier_uniform_(linear.weight, generator=generator)
    nn.init.zeros_(linear.bias)
    return linear
