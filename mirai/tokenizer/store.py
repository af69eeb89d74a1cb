"""A tokenizer on disk: weights.safetensors, published by tokenizer.json, which also holds the recipe that builds it."""

from __future__ import annotations

import argparse
import json
import math
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor
from tqdm import tqdm

from mirai import states
from mirai.errors import UserError
from mirai.experiments.recipe import Tokenizer
from mirai.tokenizer.vqgan import VQGAN, to_uint8

MANIFEST = "tokenizer.json"


def save_tokenizer(folder: Path, model: VQGAN, recipe: Tokenizer, report: Mapping[str, Any]) -> None:
    """Write the weights, then the manifest with the recipe and the report of the training (empty for released weights)."""
    weights = states.save_tensors(folder / "weights.safetensors", model.state_dict())
    content = {"recipe": recipe.model_dump(mode="json"), "report": dict(report)}
    states.publish(folder / MANIFEST, content, {"weights": weights})


def load_tokenizer(folder: Path) -> VQGAN:
    """The tokenizer of a folder, in eval mode; UserError if a file is missing, altered or of another version."""
    manifest = states.read_json(folder / MANIFEST)
    try:
        recipe = Tokenizer.model_validate_json(
            json.dumps(manifest["recipe"])
        )  # strict types read lists as tuples only so
        entry = manifest["payloads"]["weights"]
    except (KeyError, TypeError, ValidationError):
        raise UserError(
            f"{folder / MANIFEST} is no tokenizer of this version; delete {folder} and make it again"
        ) from None
    return _with_weights(recipe, states.load_tensors(folder, entry), folder / entry["file"])


def import_tokenizer(file: Path, recipe: Tokenizer) -> VQGAN:
    """LlamaGen's released weights (a .pt file with key `model`) in a model of `recipe`, in eval mode.

    No pickled code runs: only tensors and the argument list that LlamaGen stores beside them are read. UserError if the
    file is damaged, is something else, or belongs to another structure.
    """
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError):
        raise UserError(f"{file} is damaged or no file of plain tensors; download it again") from None
    if not isinstance(content, dict) or "model" not in content:
        raise UserError(f"{file} has no key 'model', under which LlamaGen's tokenizers keep their weights")
    return _with_weights(recipe, content["model"], file)


@torch.inference_mode()
def decode_images(model: VQGAN, codes: np.ndarray, batch_size: int = 64, progress: bool = False) -> np.ndarray:
    """Pixels (n, H, W, 3) uint8 of codes (n, N), decoded in float32 on the model's device."""
    device, side = model.quantize.embedding.weight.device, math.isqrt(codes.shape[1]) * model.downsampling
    images = np.empty((len(codes), side, side, 3), np.uint8)
    for start in tqdm(range(0, len(codes), batch_size), desc="decode", disable=not progress):
        batch = torch.from_numpy(codes[start : start + batch_size].astype(np.int64)).to(device)
        images[start : start + batch_size] = to_uint8(model.decode(batch)).cpu().numpy()
    return images


def _with_weights(recipe: Tokenizer, weights: Mapping[str, Tensor], file: Path) -> VQGAN:
    with torch.random.fork_rng(devices=[]):  # the initialisation is overwritten, and must not move the global generator
        model = VQGAN(recipe)
    try:
        model.load_state_dict(weights)
    except RuntimeError:
        raise UserError(
            f"{file} does not hold the weights of tokenizer '{recipe.name}': its keys or shapes differ from the recipe's"
        ) from None
    return model.eval()
