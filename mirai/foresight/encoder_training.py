"""Training of the small encoders: masked auto-encoding, classification, or none at all (the random control).

A training is a function of its recipe, the images and the labels. Letters: B batch, N patches, M patches kept by the
mask, D width, P side of a patch.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from mirai.errors import UserError
from mirai.experiments.recipe import EncoderTraining
from mirai.foresight.layers import xavier_linear
from mirai.foresight.vit import Block, SmallViT, patches_of, sine_cosine_positions, unit_range
from mirai.randomness import stream, torch_generator

AUTOCAST = torch.bfloat16  # on a CPU with AVX512-BF16 half the time of float32
HELD_OUT = 0.1  # of the images, for the linear probe only
PROBE_FITTED, PROBE_SCORED = 1500, 500  # images of the linear probe at most, drawn from either side of the split
RIDGE = 1e-2  # of the probe, on standardised features
WARMUP_STEPS = 50
LOG_EVERY = 20  # steps
DECODER_WIDTH, DECODER_HEADS = 64, 4  # of MAE's decoder, which is thrown away and only has to be light


def train_encoder(
    training: EncoderTraining,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    patch: int,
    num_classes: int,
    device: str = "cpu",
    progress: bool = True,
) -> tuple[SmallViT, dict[str, Any]]:
    """Train a SmallViT on images (n, S, S, 3) uint8 with labels (n,) -> the ViT in eval mode, and a report.

    The last tenth of the images is held out. Report: the mean loss of the last steps, and the accuracy of a linear
    probe of the class on mean-pooled tokens of every block ("1", "2", ...) and of the final norm ("final").
    """
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous().to(device)  # (n, 3, S, S)
    classes = torch.from_numpy(labels).long().to(device)
    num_trained = len(pixels) - int(HELD_OUT * len(pixels))
    generator = torch_generator(training.seed, "encoder-init")
    vit = SmallViT(pixels.shape[-1], patch, training.width, training.num_layers, training.num_heads, generator)
    loss = None
    if training.objective != "none":
        learner: MaskedAutoEncoder | Classifier
        if training.objective == "mae":
            learner = MaskedAutoEncoder(vit, training.mask_ratio, generator)
        else:
            learner = Classifier(vit, num_classes, generator)
        loss = _optimise(learner.to(device), training, pixels[:num_trained], classes[:num_trained], progress)
    vit.to(device).eval().requires_grad_(False)
    return vit, {"loss": loss, "probe_accuracy": linear_probe(vit, pixels, classes, num_trained, num_classes)}


class MaskedAutoEncoder(nn.Module):
    """MAE: the ViT sees the kept patches, a light decoder predicts the normalised pixels of the others."""

    positions: Tensor

    def __init__(self, vit: SmallViT, mask_ratio: float, generator: torch.Generator) -> None:
        super().__init__()
        self.vit = vit
        num_tokens = vit.grid_side**2
        self.num_kept = max(1, num_tokens - round(mask_ratio * num_tokens))
        self.register_buffer("positions", sine_cosine_positions(vit.grid_side, DECODER_WIDTH))
        self.embedding = xavier_linear(vit.width, DECODER_WIDTH, generator)
        self.mask_token = nn.Parameter(0.02 * torch.randn(DECODER_WIDTH, generator=generator))
        self.block = Block(DECODER_WIDTH, DECODER_HEADS, generator)
        self.norm = nn.LayerNorm(DECODER_WIDTH)
        self.pixels = xavier_linear(DECODER_WIDTH, 3 * vit.patch**2, generator)

    def forward(self, images: Tensor, classes: Tensor, generator: torch.Generator) -> Tensor:
        """Images (B, 3, S, S) -> mean squared error of the masked patches; `classes` are not looked at."""
        x = self.vit.embed(images)
        order = torch.rand(x.shape[:2], generator=generator, device=x.device).argsort(dim=1)  # (B, N)
        kept = order[:, : self.num_kept, None]  # (B, M, 1)
        x = x.take_along_dim(kept, dim=1)
        for block in self.vit.blocks:
            x = block(x)
        x = self.embedding(self.vit.norm(x))
        y = self.mask_token.to(x.dtype).expand(*order.shape, -1).scatter(1, kept.expand_as(x), x)
        y = self.pixels(self.norm(self.block(y + self.positions)))
        target = F.layer_norm(patches_of(unit_range(images), self.vit.patch), y.shape[-1:])
        error = (y.float() - target).square().mean(-1)  # (B, N)
        return error.take_along_dim(order[:, self.num_kept :], dim=1).mean()


class Classifier(nn.Module):
    """The class from the mean of the ViT's tokens."""

    def __init__(self, vit: SmallViT, num_classes: int, generator: torch.Generator) -> None:
        super().__init__()
        self.vit = vit
        self.head = xavier_linear(vit.width, num_classes, generator)

    def forward(self, images: Tensor, classes: Tensor, generator: torch.Generator) -> Tensor:
        """Images (B, 3, S, S), classes (B,) -> cross-entropy; nothing random is drawn."""
        return F.cross_entropy(self.head(self.vit(images).mean(1)).float(), classes)


def _optimise(learner: nn.Module, training: EncoderTraining, pixels: Tensor, classes: Tensor, progress: bool) -> float:
    """AdamW, linear warm-up, cosine to zero, batches drawn with replacement -> mean loss of the last tenth of steps."""
    optimiser = torch.optim.AdamW(learner.parameters(), lr=training.learning_rate, betas=(0.9, 0.95), weight_decay=0.05)
    losses: list[Tensor] = []  # left on the device: looking at one waits for its step
    bar = tqdm(range(training.steps), desc="encoder", disable=not progress)
    for step in bar:
        warmup = min(1.0, (step + 1) / WARMUP_STEPS)
        cosine = (1 + math.cos(math.pi * step / training.steps)) / 2
        for group in optimiser.param_groups:
            group["lr"] = training.learning_rate * warmup * cosine
        batch = stream(training.seed, "encoder-batch", step).integers(0, len(pixels), training.batch_size)
        rows = torch.from_numpy(batch).to(pixels.device)
        generator = torch_generator(training.seed, "encoder-mask", step, device=pixels.device.type)
        with torch.autocast(pixels.device.type, AUTOCAST):
            loss = learner(pixels[rows], classes[rows], generator)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        losses.append(loss.detach())
        if step % LOG_EVERY == 0:
            bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    last = float(np.mean(torch.stack(losses[-math.ceil(training.steps / 10) :]).tolist()))
    if not math.isfinite(last):
        raise UserError(f"encoder training diverged: its loss is {last}; lower encoder.training.learning_rate")
    return last


@torch.no_grad()
def linear_probe(
    vit: SmallViT, pixels: Tensor, classes: Tensor, num_trained: int, num_classes: int
) -> dict[str, float]:
    """Share of held-out images whose class a ridge regression on mean-pooled tokens names, per block and final norm.

    Empty without held-out images.
    """
    first, last = max(0, num_trained - PROBE_FITTED), min(len(pixels), num_trained + PROBE_SCORED)
    if last == num_trained:
        return {}
    pooled: dict[str, list[Tensor]] = {}
    with torch.autocast(pixels.device.type, AUTOCAST):
        for images in pixels[first:last].split(256):
            x = vit.embed(images)
            for depth, block in enumerate(vit.blocks, start=1):
                x = block(x)
                pooled.setdefault(str(depth), []).append(x.mean(1))
            pooled.setdefault("final", []).append(vit.norm(x).mean(1))
    target = F.one_hot(classes[first:last], num_classes).double()
    return {
        name: _ridge_accuracy(torch.cat(parts).double(), target, num_trained - first) for name, parts in pooled.items()
    }


def _ridge_accuracy(features: Tensor, target: Tensor, num_fitted: int) -> float:
    """Ridge regression of one-hot targets (n, V) on features (n, D), fitted on the first rows, scored on the others."""
    fitted = features[:num_fitted]
    features = (features - fitted.mean(0)) / fitted.std(0).clamp_min(1e-6)
    features = F.pad(features, (0, 1), value=1.0)  # the intercept
    x, y = features[:num_fitted], target[:num_fitted]
    penalty = RIDGE * num_fitted * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    weights = torch.linalg.solve(x.T @ x + penalty, x.T @ y)
    hits = (features[num_fitted:] @ weights).argmax(1) == target[num_fitted:].argmax(1)
    return float(hits.double().mean())
