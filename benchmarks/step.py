"""A training step of the demo's model (forward, backward, clip, AdamW, EMA), by attention kernel, precision and dropout."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import nn

from benchmarks.turns import compare
from mirai.experiments.scale import load_scale
from mirai.models.layers import Dropout
from mirai.models.transformer import Transformer
from mirai.training.loss import TrainingLoss
from mirai.training.state import TrainState


def main() -> None:
    """Compare all variants with the scale's own choice."""
    scale = load_scale("demo")
    own = (scale.numerics.attention, scale.training.dtype)
    others = [pair for pair in itertools.product(("explicit", "flash"), ("bfloat16", "float32")) if pair != own]
    variants = {f"{kernel} attention, {dtype}": _step(kernel, dtype) for kernel, dtype in (own, *others)}
    variants[f"{own[0]} attention, {own[1]}, torch's dropout"] = _step(*own, torch_dropout=True)
    compare("Training step, 12 layers, one thread", variants, rounds=12)


def _step(kernel: str, dtype: str, *, torch_dropout: bool = False) -> Callable[[], object]:
    scale = load_scale("demo")
    batch, side = scale.training.batch_size, scale.data.resolution // scale.tokenizer.downsampling
    codes = scale.tokenizer.codebook_size
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(codes, (batch, side * side), generator=generator)
    labels = torch.randint(10, (batch,), generator=generator)
    model = Transformer(scale.sizes["B"].model, num_classes=10, codebook_size=codes, grid_side=side, attention=kernel)
    model.init_weights(0)
    if torch_dropout:
        for module in model.modules():
            for name, child in module.named_children():
                if isinstance(child, Dropout):
                    setattr(module, name, nn.Dropout(child.p))
    state = TrainState(model.train(), scale.training)
    loss = TrainingLoss(model, None, None)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            value, _ = loss(tokens, labels, None, 0.0)
        state.optimizer.zero_grad()
        value.backward()
        state.clip_gradients()
        state.optimizer.step()
        state.update_ema()

    return step
