"""Transformers out of published states."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch

from mirai.experiments import recipe
from mirai.models.layers import AttentionKernel
from mirai.models.transformer import Transformer
from mirai.states import load_tensors, read_json


def load_model(
    manifest: Path,
    model: recipe.Model,
    *,
    codebook_size: int,
    grid_side: int,
    weights: Literal["raw", "ema"] = "raw",
    attention: AttentionKernel = "flash",
    device: str | torch.device = "cpu",
) -> Transformer:
    """The model of a state's weights.json, raw or averaged, in eval mode; UserError if the file is damaged."""
    tensors = load_tensors(manifest.parent, read_json(manifest)["payloads"]["weights"])
    prefix = {"raw": "model/", "ema": "ema/"}[weights]
    tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    num_classes = len(tensors["cls_embedding.embedding_table.weight"]) - 1  # one row more: the null class
    transformer = Transformer(
        model, num_classes=num_classes, codebook_size=codebook_size, grid_side=grid_side, attention=attention
    )
    transformer.load_state_dict(tensors)
    return transformer.to(device).eval()
