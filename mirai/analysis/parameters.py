"""The networks of a run without their weights (torch's meta device): what they are made of can be counted at any size."""

from __future__ import annotations

import functools

import torch
from torch import nn

from mirai.experiments import paths
from mirai.experiments.recipe import Encoder, Run
from mirai.experiments.stages import state_stage
from mirai.foresight.encoders import SmallEncoder, TimmEncoder
from mirai.foresight.heads import TransformerHead, projection_head, token_head
from mirai.foresight.objective import CURRENT
from mirai.foresight.vit import SmallViT
from mirai.models.transformer import Transformer
from mirai.states import read_json

META = torch.device("meta")


def parameters(run: Run) -> int:
    """Of the AR model: what sampling needs."""
    return count(bare_model(run))


def encoder_parameters(run: Run) -> int | None:
    """Of the whole encoder, whichever of its layers is read; None without one."""
    encoder = bare_encoder(run)
    return None if encoder is None else count(encoder.vit)


def head_parameters(run: Run) -> int | None:
    """Of one projection head; None without one."""
    heads = bare_heads(run)
    return count(heads[0]) if heads else None


def count(module: nn.Module) -> int:
    """Trained numbers of a module, fixed position tables not among them."""
    return sum(parameter.numel() for parameter in module.parameters())


def bare_model(run: Run) -> Transformer:
    """The AR model. Its attention is written out, so that a FLOP counter sees the products."""
    with META:
        return Transformer(
            run.model,
            num_classes=_num_classes(run),
            codebook_size=run.tokenizer.codebook_size,
            grid_side=run.grid_side,
            attention="explicit",
        )


def _num_classes(run: Run) -> int:
    if run.data.num_classes is not None:
        return run.data.num_classes
    codes = state_stage(run).codes_stage()
    return len(read_json(paths.manifest("codes", codes.key))["class_names"])


def bare_heads(run: Run) -> nn.ModuleList:
    """The projection heads, one per offset that has one; none for a baseline."""
    foresight, width = run.foresight, run.model.width
    if foresight is None:
        return nn.ModuleList()
    generator = torch.Generator()  # for values that nobody looks at
    if foresight.head is None:
        heads = [token_head(width, run.tokenizer.codebook_size) for offset in foresight.offsets if offset != CURRENT]
        return nn.ModuleList(heads).to(META)
    encoder = bare_encoder(run)
    target_width = width if encoder is None else encoder.width
    head = (
        projection_head(width, foresight.head.width, target_width, generator)
        if foresight.head.kind == "mlp"
        else TransformerHead(width, target_width, generator)
    )
    return nn.ModuleList([head] * len(foresight.offsets)).to(META)  # equal ones: a list of one module is counted once


def bare_encoder(run: Run) -> SmallEncoder | TimmEncoder | None:
    """Mirai-I's encoder."""
    if run.foresight is None or run.foresight.encoder is None:
        return None
    return _encoder(run.foresight.encoder, run.data.resolution, run.tokenizer.downsampling)


@functools.cache
def _encoder(encoder: Encoder, resolution: int, patch: int) -> SmallEncoder | TimmEncoder:
    if encoder.training is not None:
        sizes = encoder.training
        vit = SmallViT(resolution, patch, sizes.width, sizes.num_layers, sizes.num_heads, torch.Generator())
        return SmallEncoder(vit.to(META), encoder.layer, encoder.block_size)
    import timm  # takes seconds, and only these encoders need it

    assert encoder.timm is not None
    assert encoder.image_size is not None
    with META:
        timm_vit = timm.create_model(encoder.timm, pretrained=False, num_classes=0, img_size=encoder.image_size)
        return TimmEncoder(timm_vit, encoder.image_size, encoder.layer, encoder.block_size)
