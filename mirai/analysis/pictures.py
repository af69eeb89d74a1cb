"""Pictures of chosen classes from one model: a trained state, or imported weights."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import torch

from mirai.analysis.figures import plain_grid
from mirai.errors import UserError
from mirai.experiments import paths
from mirai.experiments.plan import lookup
from mirai.experiments.recipe import Sampling
from mirai.experiments.scale import load_scale
from mirai.experiments.stages import StateStage
from mirai.models.transformer import Transformer
from mirai.sampling.generate import generate
from mirai.sampling.streams import uniforms
from mirai.states import is_published
from mirai.store import open_state, set_numerics
from mirai.tokenizer.store import decode_images, load_tokenizer


def open_trained(state_key: str, weights: Literal["raw", "ema"]) -> tuple[Transformer, Path]:
    """Model of a trained state, as its scale computes, and its tokenizer's folder; UserError if it is not trained."""
    planned = lookup(state_key)
    stage, numerics = planned.stage, load_scale(planned.scale).numerics
    if not isinstance(stage, StateStage):
        raise UserError(f"{state_key} is a {stage.kind} stage, not a state")
    if not is_published(paths.manifest("state", state_key)):
        raise UserError(f"state {state_key} is not trained yet; `mirai train {state_key}` or Snakemake does that")
    set_numerics(numerics)
    tokenizer = paths.folder("tokenizer", stage.codes_stage().tokenizer_stage().key)
    return open_state(stage, weights, numerics), tokenizer


def draw_classes(model: Transformer, tokenizer: Path, sampling: Sampling, classes: list[int], path: Path) -> None:
    """Draw the samples of a recipe, the classes in turn, into one PNG with a column per class."""
    wrong = [number for number in classes if not 0 <= number < model.num_classes]
    if wrong:
        raise UserError(f"--classes {wrong[0]}: classes go from 0 to {model.num_classes - 1}")
    device = model.norm.weight.device
    vqgan = load_tokenizer(tokenizer).to(device)
    indices = np.arange(sampling.num_samples)
    codes = generate(
        model,
        torch.tensor(classes, device=device).repeat(sampling.num_samples // len(classes)),
        torch.from_numpy(uniforms(sampling.seed, indices, model.num_tokens)).to(device),
        guidance=sampling.guidance,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
    )
    plain_grid(path, decode_images(vqgan, codes.cpu().numpy()), columns=len(classes))
