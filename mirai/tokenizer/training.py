"""Training of a small tokenizer: LlamaGen's VQGAN on pixel and codebook losses alone (no perceptual loss, no discriminator)."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from mirai.errors import UserError
from mirai.experiments.recipe import Tokenizer
from mirai.randomness import integer, stream
from mirai.tokenizer.vqgan import VQGAN, to_float, unit_vectors

WARMUP = 0.1  # share of the steps in which the learning rate rises linearly; then half a cosine down to 0
RESTARTS_UNTIL = 0.7  # share of the steps after which the codebook settles without restarts
RESIDUAL_SCALE = 0.1  # of the last convolution of a res block at the start


def train_tokenizer(
    recipe: Tokenizer, images: np.ndarray, held_out: np.ndarray, *, device: str = "cpu", progress: bool = True
) -> tuple[VQGAN, dict[str, float]]:
    """Train on `images` (n, S, S, 3) uint8 -> the model in eval mode, and its loss, PSNR and code use on `held_out`.

    Adam and clipping as in LlamaGen; beta2 0.99 for 0.95 and a warm-up and a cosine for its constant rate reach a given
    PSNR in fewer steps. A function of the recipe and the pixels alone, bit for bit on one CPU. UserError if it diverges.
    """
    plan = recipe.training
    assert plan is not None, "a tokenizer with released weights is imported, not trained"
    model = _new_model(recipe, plan.seed).to(device).to(memory_format=torch.channels_last)  # a fifth faster on a CPU
    optimizer = torch.optim.Adam(model.parameters(), lr=plan.learning_rate, betas=(0.9, 0.99), fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, plan.steps))
    used = torch.zeros(recipe.codebook_size, dtype=torch.bool, device=device)  # since the last restart
    loss = torch.zeros(())
    bar = tqdm(range(plan.steps), desc="tokenizer", disable=not progress)
    for step in bar:
        rows = stream(plan.seed, "tokenizer-batch", step).integers(len(images), size=plan.batch_size)
        batch = to_float(torch.from_numpy(images[rows]).to(device))
        if step % plan.restart_every == 0 and step < RESTARTS_UNTIL * plan.steps:
            _restart_dead_codes(model, used, batch, stream(plan.seed, "tokenizer-restart", step))
            used.zero_()

        with torch.autocast(batch.device.type, torch.bfloat16):
            output = model(batch)
        used[output.codes] = True
        loss = (
            F.mse_loss(output.images.float(), batch) + output.codebook_loss + plan.commitment * output.commitment_loss
        )
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 20 == 0:
            bar.set_postfix(loss=f"{loss.item():.4f}", refresh=False)
    if not math.isfinite(loss.item()):
        raise UserError(
            f"tokenizer '{recipe.name}' diverged at learning_rate {plan.learning_rate}; write a lower one into its training"
        )
    model.eval()
    return model, {"loss": loss.item(), **measure_tokenizer(model, held_out)}


@torch.inference_mode()
def measure_tokenizer(model: VQGAN, images: np.ndarray, *, batch_size: int = 100) -> dict[str, float]:
    """PSNR in dB (of the squared error averaged over all pixels) and share of codes used on `images` (n, S, S, 3) uint8."""
    device = model.quantize.embedding.weight.device
    squared_error, codes_used = 0.0, set[int]()
    for start in range(0, len(images), batch_size):
        batch = to_float(torch.from_numpy(images[start : start + batch_size]).to(device))
        codes = model.encode(batch)
        squared_error += F.mse_loss(model.decode(codes).clamp(-1, 1), batch, reduction="sum").item()
        codes_used.update(codes.unique().tolist())
    peak_squared = 2.0**2  # of pixels in [-1, 1]
    psnr = 10 * math.log10(peak_squared * images.size / squared_error)
    return {"psnr": psnr, "codes_used": len(codes_used) / model.quantize.embedding.num_embeddings}


def _new_model(recipe: Tokenizer, seed: int) -> VQGAN:
    """A model that starts as a near-linear map of each patch on its own; the global generator is put back as it was.

    PyTorch's default mixes neighbours at random in every layer and image means in every attention block, which takes
    hundreds of steps to undo (on the demo's scenes 100 steps then end at a PSNR below 13 dB, instead of 17).
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(integer(seed, "tokenizer-weights"))
        model = VQGAN(recipe)
        for name, layer in model.named_modules():
            if isinstance(layer, nn.Conv2d):
                _init_delta_orthogonal(layer)
                if name.endswith((".conv2", ".proj_out")):  # the last layer of a residual branch
                    layer.weight.data.mul_(RESIDUAL_SCALE if name.endswith(".conv2") else 0)
    return model


def _init_delta_orthogonal(layer: nn.Conv2d) -> None:
    """Xiao et al. 2018: orthogonal over channels at the kernel's centre, zero around; at stride 2 over the 2x2 block kept."""
    centre = layer.kernel_size[0] // 2
    taps = slice(0, 2) if layer.stride == (2, 2) else slice(centre, centre + 1)
    kernel = torch.zeros_like(layer.weight)
    kernel[:, :, taps, taps] = nn.init.orthogonal_(torch.empty_like(kernel[:, :, taps, taps]))
    assert layer.bias is not None
    layer.weight.data.copy_(kernel)
    layer.bias.data.zero_()


def _rate(step: int, steps: int) -> float:
    """Learning rate at a step, relative to its peak."""
    warmup = max(1, round(WARMUP * steps))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 + 0.5 * math.cos(math.pi * (step - warmup) / max(1, steps - warmup))


@torch.no_grad()
def _restart_dead_codes(model: VQGAN, used: Tensor, batch: Tensor, rng: np.random.Generator) -> None:
    """Replace unused codebook rows by random latents of the batch. Before the first step no row is used: an initialisation."""
    latents = unit_vectors(model.latents(batch)).flatten(0, 1)  # (B*N, C)
    dead = (~used).nonzero().squeeze(1)
    chosen = rng.choice(len(latents), size=len(dead), replace=len(dead) > len(latents))
    model.quantize.embedding.weight[dead] = latents[torch.from_numpy(chosen).to(latents.device)]
