"""The frozen networks behind foresight targets, as whoever trains is given them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from mirai.experiments.recipe import Foresight
from mirai.foresight.encoders import ImageEncoder


@dataclass(frozen=True)
class Sources:
    """How they are opened; where they lie is no affair of a training."""

    encoder: Callable[[Foresight], ImageEncoder]
    teacher: Callable[[Foresight], nn.Module]  # the EMA of a finished baseline, a model as the trained one
