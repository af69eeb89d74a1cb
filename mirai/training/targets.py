"""Where a phase's foresight targets come from: an EMA, a frozen encoder's view of the same pixels, or the tokens."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mirai.data.codes import CodeStore
from mirai.experiments.recipe import Foresight
from mirai.foresight.ema_teacher import EMATeacher
from mirai.foresight.encoders import ImageEncoder
from mirai.foresight.sources import Sources
from mirai.training.state import TrainState


class Targets:
    """Targets of one phase by cell, and their width."""

    def __init__(self, foresight: Foresight, state: TrainState, codes: CodeStore, sources: Sources) -> None:
        self.codes = codes
        self.encoder: ImageEncoder | None = None
        self.teacher: EMATeacher | None = None
        if foresight.source == "encoder":
            self.encoder = sources.encoder(foresight)
            self.width = self.encoder.width
        elif foresight.source in ("ema", "pretrained"):
            layer = foresight.teacher_layer or foresight.layer
            assert layer is not None
            ema = state.ema if foresight.source == "ema" else sources.teacher(foresight)
            self.teacher = EMATeacher(ema, layer, consumed=foresight.ema_slot_shift == 1)
            self.width = state.model.model.width
        else:
            self.width = state.model.codebook_size

    def __call__(self, tokens: Tensor, labels: Tensor, images: np.ndarray, views: np.ndarray) -> Tensor:
        """Tokens (B,N), true labels (B,), and which image and view each row is -> features (B,N,C) or tokens (B,N)."""
        if self.teacher is not None:
            return self.teacher(tokens, labels)
        if self.encoder is not None:
            pixels = torch.from_numpy(self.codes.pixels(images, views)).to(tokens.device)  # (B,S,S,3) uint8
            return self.encoder(pixels.permute(0, 3, 1, 2).float() / 255)
        return tokens
