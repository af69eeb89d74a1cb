"""Transformers out of published states, and out of the files that LlamaGen and PAR released."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from mirai.errors import UserError
from mirai.experiments import recipe
from mirai.models.layers import AttentionKernel
from mirai.models.transformer import Transformer
from mirai.released import Checkpoint, check_strictly
from mirai.states import load_tensors, read_json

# Tables and caches that some programs keep among the weights; computed here, and never read from a file.
BUFFERS = ("freqs_cis", "causal_mask", "k_cache", "v_cache")


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


def transformer_tensors(
    checkpoint: Checkpoint, sizes: Mapping[str, recipe.Model]
) -> tuple[str, recipe.Model, dict[str, Tensor]]:
    """Name of the size, recipe and weights of a released LlamaGen or PAR file, buffers left out.

    The number of heads is in no tensor: width and depth find the size in `sizes`. UserError for a tokenizer, a model
    conditioned on text, a size that is none of these, and keys or shapes that are not exactly the model's.
    """
    file = checkpoint.file
    tensors = {name: value for name, value in checkpoint.tensors.items() if name.rsplit(".", 1)[-1] not in BUFFERS}
    if "quantize.embedding.weight" in tensors:
        raise UserError(f"{file} holds a VQ tokenizer, no transformer; `mirai import vq {file}` takes it")
    if "cls_embedding.uncond_embedding" in tensors:
        raise UserError(f"{file} holds a model conditioned on text; only class-conditional ones are known here")
    table = tensors.get("tok_embeddings.weight")
    classes = tensors.get("cls_embedding.embedding_table.weight")
    if table is None or classes is None:
        raise UserError(
            f"{file} holds no LlamaGen transformer: its weights are called {', '.join([*tensors][:4])}, ..."
        )
    depth = 1 + max((int(name.split(".")[1]) for name in tensors if name.startswith("layers.")), default=-1)
    shape = (depth, table.shape[1])
    known = {name: (model.num_layers, model.width) for name, model in sizes.items()}
    size = next((name for name, own in known.items() if own == shape), None)
    if size is None:
        listed = ", ".join(f"{name} {layers} x {width}" for name, (layers, width) in known.items())
        raise UserError(
            f"{file} has {depth} layers of width {shape[1]}, which is no known size (layers x width: {listed})"
        )
    special = tensors.get("spe_tok_embeddings.special_embeddings.weight")
    group = 1 if special is None else len(special) + 1
    orders = {size: order for order, size in recipe.GROUP_SIZES.items()}
    if group not in orders:
        raise UserError(f"{file} has {group - 1} special tokens; PAR's files have 3 (4x) or 15 (16x)")
    model = sizes[size].model_copy(update={"token_order": orders[group]})
    with torch.device("meta"):  # shapes alone: whatever side the grid has, the weights are the same
        skeleton = Transformer(model, num_classes=len(classes) - 1, codebook_size=len(table), grid_side=16)
    check_strictly(skeleton, tensors, file, f"LlamaGen's transformer of size {size}")
    return size, model, tensors
