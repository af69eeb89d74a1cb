"""Training of a tokenizer: LlamaGen's VQGAN on pixel and codebook losses, with LPIPS and a discriminator if asked for."""

from __future__ import annotations

import math
import time
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from mirai.data.images import ImageSet
from mirai.errors import UserError
from mirai.experiments.recipe import Tokenizer, TokenizerTraining
from mirai.randomness import integer, stream
from mirai.tokenizer import discriminator, lpips
from mirai.tokenizer.learner import Learner, load_progress, save_progress
from mirai.tokenizer.passes import in_passes
from mirai.tokenizer.pictures import batches
from mirai.tokenizer.vqgan import VQGAN, to_float, unit_vectors

WARMUP = 0.1  # share of the steps in which the learning rate rises linearly; then half a cosine down to 0
RESTARTS_UNTIL = 0.7  # share of the steps after which the codebook settles without restarts
RESIDUAL_SCALE = 0.1  # of the last convolution of a res block at the start
LOG_EVERY = 20  # steps


def train_tokenizer(
    recipe: Tokenizer,
    images: ImageSet | np.ndarray,
    held_out: np.ndarray,
    *,
    perceptual: lpips.LPIPS | None = None,
    folder: Path | None = None,
    save_minutes: float = 10.0,
    device: str = "cpu",
    progress: bool = True,
) -> tuple[VQGAN, dict[str, float]]:
    """Train on `images` -> the model in eval mode, and its loss, PSNR and code use on `held_out`; arrays (n, S, S, 3) uint8.

    The defaults' beta2 of 0.99, warm-up and cosine reach a given PSNR in fewer steps than LlamaGen's 0.95 and constant
    rate. `perceptual` is given where the recipe weighs it. In `folder` a resume point is kept, written every
    `save_minutes`; the caller deletes it. A function of the recipe and the pixels alone, bit for bit on one CPU,
    interrupted or not. UserError if the loss is not finite or the images are too small for a network that judges them.
    """
    plan = recipe.training
    assert plan is not None, "a tokenizer with released weights is imported, not trained"
    assert (perceptual is not None) == (plan.perceptual_weight > 0)
    _refuse_small(recipe, plan, held_out.shape[1])
    model = _new_model(recipe, plan).to(device).to(memory_format=torch.channels_last)  # a fifth faster on a CPU
    learner, critic = Learner(model, plan), _new_critic(plan, device)
    used = torch.zeros(recipe.codebook_size, dtype=torch.bool, device=device)  # since the last restart
    state = learner.tensors() | {"used": used} | ({} if critic is None else critic.tensors("discriminator/"))
    fingerprint = None if isinstance(images, np.ndarray) else images.fingerprint()
    source = {} if fingerprint is None else asdict(fingerprint)
    first = 0 if folder is None else load_progress(folder, state, source)
    perceptual = perceptual and perceptual.to(device)

    loss, saved_at = math.nan, time.monotonic()
    bar = tqdm(total=plan.steps, initial=first, desc="tokenizer", disable=not progress)
    with bar, closing(batches(images, plan, first)) as pictures:
        for step, pixels in enumerate(pictures, first):
            batch = to_float(torch.from_numpy(pixels).to(device))
            if plan.restart_every and step % plan.restart_every == 0 and step < RESTARTS_UNTIL * plan.steps:
                _restart_dead_codes(model, used, batch, stream(plan.seed, "tokenizer-restart", step))
                used.zero_()

            judge = critic if plan.adversarial and step + 1 >= plan.adversarial.start_step else None
            terms, codes = _accumulate(learner, judge, perceptual, batch, plan)
            used[codes] = True
            rate = plan.learning_rate * _rate(step, plan)
            learner.step(rate)
            if judge is not None:
                judge.step(rate)

            bar.update()
            done = step + 1 == plan.steps
            save = folder is not None and not done and time.monotonic() - saved_at >= 60 * save_minutes
            if step % LOG_EVERY == 0 or save or done:
                loss = _finite_loss(terms, recipe, plan)
                bar.set_postfix({name: f"{term.item():.4f}" for name, term in terms.items()}, refresh=False)
            if folder is not None and save:
                save_progress(folder, step + 1, state, source)
                saved_at = time.monotonic()
    model.eval()
    return model, {"loss": loss, **measure_tokenizer(model, held_out)}


def _accumulate(
    learner: Learner, critic: Learner | None, perceptual: nn.Module | None, batch: Tensor, plan: TokenizerTraining
) -> tuple[dict[str, Tensor], Tensor]:
    """Gradients of a batch (B, 3, S, S), pass after pass, for the model and a discriminator -> weighed losses, codes used.

    LlamaGen steps the model before it turns to the discriminator; that one is shown the same reconstructions either way.
    """
    total: dict[str, Tensor] = {}
    codes = []
    for part in batch.split(plan.micro_batch or plan.batch_size):
        share = len(part) / len(batch)
        with torch.autocast(batch.device.type, torch.bfloat16):
            output = learner.network(part)
            images = output.images.float()
            terms = {
                "pixels": F.mse_loss(images, part),
                "codebook": output.codebook_loss,
                "commitment": plan.commitment * output.commitment_loss,
            }
            if perceptual is not None:
                terms["perceptual"] = plan.perceptual_weight * perceptual(images, part).mean()
            if critic is not None and plan.adversarial is not None:
                terms["adversarial"] = plan.adversarial.weight * discriminator.generator_loss(critic.network(images))
        (share * torch.stack([*terms.values()]).sum()).backward(inputs=learner.parameters)

        if critic is not None and plan.adversarial is not None:
            with torch.autocast(batch.device.type, torch.bfloat16):
                real, fake = critic.network(part), critic.network(images.detach())
                terms["discriminator"] = plan.adversarial.weight * discriminator.discriminator_loss(real, fake)
            (share * terms["discriminator"]).backward(inputs=critic.parameters)
        codes.append(output.codes.flatten())
        total = {name: total.get(name, 0.0) + share * term.detach() for name, term in terms.items()}
    return total, torch.cat(codes)


def _finite_loss(terms: dict[str, Tensor], recipe: Tokenizer, plan: TokenizerTraining) -> float:
    """The model's loss; UserError if a part of it, or the discriminator's, is not finite."""
    if not all(math.isfinite(term.item()) for term in terms.values()):
        raise UserError(
            f"tokenizer '{recipe.name}' diverged at learning_rate {plan.learning_rate}; write a lower one into its training"
        )
    return float(sum((term for name, term in terms.items() if name != "discriminator"), torch.zeros(())))


def _refuse_small(recipe: Tokenizer, plan: TokenizerTraining, side: int) -> None:
    for name, asked, smallest in (
        ("perceptual_weight", plan.perceptual_weight > 0, lpips.SMALLEST_SIDE),
        ("adversarial", plan.adversarial is not None, discriminator.SMALLEST_SIDE),
    ):
        if asked and side < smallest:
            raise UserError(f"tokenizer '{recipe.name}': `{name}` needs images of {smallest} px or more, not {side}")


@torch.inference_mode()
def measure_tokenizer(model: VQGAN, images: np.ndarray, *, batch_size: int = 100) -> dict[str, float]:
    """PSNR in dB (of the squared error averaged over all pixels) and share of codes used on `images` (n, S, S, 3) uint8."""
    device, pixels = model.quantize.embedding.weight.device, images.shape[1] * images.shape[2]
    squared_error, codes_used = 0.0, set[int]()
    for start in range(0, len(images), batch_size):
        batch = to_float(torch.from_numpy(images[start : start + batch_size]).to(device))
        codes = in_passes(model.encode, batch, pixels)
        decoded = in_passes(model.decode, codes, pixels)
        squared_error += F.mse_loss(decoded.clamp(-1, 1), batch, reduction="sum").item()
        codes_used.update(codes.unique().tolist())
    peak_squared = 2.0**2  # of pixels in [-1, 1]
    psnr = 10 * math.log10(peak_squared * images.size / squared_error)
    return {"psnr": psnr, "codes_used": len(codes_used) / model.quantize.embedding.num_embeddings}


def _new_model(recipe: Tokenizer, plan: TokenizerTraining) -> VQGAN:
    """As PyTorch starts convolutions, or as a near-linear map of each patch on its own; the global generator stays put.

    PyTorch's default mixes neighbours at random in every layer and image means in every attention block, which takes
    hundreds of steps to undo (on the demo's scenes 100 steps then end at a PSNR below 13 dB, instead of 17).
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(integer(plan.seed, "tokenizer-weights"))
        model = VQGAN(recipe)
        if plan.init == "pytorch":  # as in LlamaGen, where rows too short would turn with the slightest step
            model.quantize.embedding.weight.data = model.quantize.rows().detach()
            return model
        for name, layer in model.named_modules():
            if isinstance(layer, nn.Conv2d):
                _init_delta_orthogonal(layer)
                if name.endswith((".conv2", ".proj_out")):  # the last layer of a residual branch
                    layer.weight.data.mul_(RESIDUAL_SCALE if name.endswith(".conv2") else 0)
    return model


def _new_critic(plan: TokenizerTraining, device: str) -> Learner | None:
    """LlamaGen steps the discriminator from the start with a loss of weight 0, which moves nothing but Adam's count."""
    if plan.adversarial is None:
        return None
    network = discriminator.new_discriminator(plan.seed).to(device).to(memory_format=torch.channels_last)
    return Learner(network, plan, done=plan.adversarial.start_step - 1)


def _init_delta_orthogonal(layer: nn.Conv2d) -> None:
    """Xiao et al. 2018: orthogonal over channels at the kernel's centre, zero around; at stride 2 over the 2x2 block kept."""
    centre = layer.kernel_size[0] // 2
    taps = slice(0, 2) if layer.stride == (2, 2) else slice(centre, centre + 1)
    kernel = torch.zeros_like(layer.weight)
    kernel[:, :, taps, taps] = nn.init.orthogonal_(torch.empty_like(kernel[:, :, taps, taps]))
    assert layer.bias is not None
    layer.weight.data.copy_(kernel)
    layer.bias.data.zero_()


def _rate(step: int, plan: TokenizerTraining) -> float:
    """Learning rate at a step, relative to its peak."""
    if plan.lr_schedule == "constant":
        return 1.0
    warmup = max(1, round(WARMUP * plan.steps))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 + 0.5 * math.cos(math.pi * (step - warmup) / max(1, plan.steps - warmup))


@torch.no_grad()
def _restart_dead_codes(model: VQGAN, used: Tensor, batch: Tensor, rng: np.random.Generator) -> None:
    """Replace unused codebook rows by random latents of the batch. Before the first step no row is used: an initialisation."""
    latents = unit_vectors(model.latents(batch)).flatten(0, 1)  # (B*N, C)
    dead = (~used).nonzero().squeeze(1)
    chosen = rng.choice(len(latents), size=len(dead), replace=len(dead) > len(latents))
    model.quantize.embedding.weight[dead] = latents[torch.from_numpy(chosen).to(latents.device)]
