"""A tokenizer on disk: weights.safetensors, published by tokenizer.json, which also holds the recipe that builds it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor
from tqdm import tqdm

from mirai import states
from mirai.errors import UserError
from mirai.experiments.recipe import Tokenizer
from mirai.released import load_strictly, read_checkpoint
from mirai.tokenizer.passes import in_passes
from mirai.tokenizer.vqgan import VQGAN, to_uint8

MANIFEST = "tokenizer.json"


def save_tokenizer(folder: Path, model: VQGAN, recipe: Tokenizer, report: Mapping[str, Any]) -> None:
    """Write the weights, then the manifest with the recipe and the report of the training, or where the weights are from."""
    weights = states.save_tensors(folder / "weights.safetensors", model.state_dict())
    content = {"recipe": recipe.model_dump(mode="json"), "report": dict(report)}
    states.publish(folder / MANIFEST, content, {"weights": weights})


def load_tokenizer(folder: Path) -> VQGAN:
    """The tokenizer of a folder, in eval mode; UserError if a file is missing, altered or of another version."""
    recipe, entry = _manifest(folder)
    return _with_weights(recipe, states.load_tensors(folder, entry), folder / entry["file"])


def tokenizer_recipe(folder: Path) -> Tokenizer:
    """What the tokenizer of a folder is, its weights unread."""
    return _manifest(folder)[0]


def weights_sha256(folder: Path) -> str:
    """What tells one tokenizer from another of the same structure."""
    digest: str = _manifest(folder)[1]["sha256"]
    return digest


def _manifest(folder: Path) -> tuple[Tokenizer, dict[str, Any]]:
    """Recipe, and the manifest's entry of the weights."""
    manifest = states.read_json(folder / MANIFEST)
    try:  # strict types read lists as tuples from JSON text only
        return Tokenizer.model_validate_json(json.dumps(manifest["recipe"])), manifest["payloads"]["weights"]
    except (KeyError, TypeError, ValidationError):
        raise UserError(
            f"{folder / MANIFEST} is no tokenizer of this version; delete {folder} and make it again"
        ) from None


def import_tokenizer(file: Path, recipe: Tokenizer, *, ema: bool = False) -> VQGAN:
    """LlamaGen's released weights (a .pt file) in a model of `recipe`, in eval mode.

    UserError if the file is damaged, is something else, or belongs to another structure.
    """
    return _with_weights(recipe, read_checkpoint(file, ema=ema).tensors, file)


@torch.inference_mode()
def decoded_batches(
    model: VQGAN, codes: np.ndarray, batch_size: int = 64, size: int | None = None
) -> Iterator[np.ndarray]:
    """Pixels (b, H, W, 3) uint8 of codes (n, N), batch after batch, decoded in float32, without TF32, on the model's device.

    `size`: side to which images of another one are resized before they are rounded, bicubically and without
    antialiasing, as LlamaGen's sampler brings 384 to 256.
    """

    def decoded(part: Tensor) -> Tensor:
        images = model.decode(part)
        if size not in (None, images.shape[-1]):
            images = F.interpolate(images, size=(size, size), mode="bicubic")
        return to_uint8(images)

    device, pixels = model.quantize.embedding.weight.device, codes.shape[1] * model.downsampling**2
    for start in range(0, len(codes), batch_size):
        batch = torch.from_numpy(codes[start : start + batch_size].astype(np.int64)).to(device)
        yield in_passes(decoded, batch, pixels).cpu().numpy()


def decode_images(
    model: VQGAN, codes: np.ndarray, batch_size: int = 64, progress: bool = False, size: int | None = None
) -> np.ndarray:
    """All pixels (n, H, W, 3) of `decoded_batches` at once."""
    side = size or math.isqrt(codes.shape[1]) * model.downsampling
    images = np.empty((len(codes), side, side, 3), np.uint8)
    starts = tqdm(range(0, len(codes), batch_size), desc="decode", disable=not progress)
    for start, batch in zip(starts, decoded_batches(model, codes, batch_size, size), strict=True):
        images[start : start + batch_size] = batch
    return images


def _with_weights(recipe: Tokenizer, weights: Mapping[str, Tensor], file: Path) -> VQGAN:
    with torch.random.fork_rng(devices=[]):  # the initialisation is overwritten, and must not move the global generator
        model = VQGAN(recipe)
    load_strictly(model, weights, file, f"tokenizer '{recipe.name}'")
    return model.eval()
