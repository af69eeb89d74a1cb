"""Sampling with the demo's model under guidance: keys and values kept or computed anew, raster or PAR, either kernel."""

from __future__ import annotations

from collections.abc import Callable

import torch

from benchmarks.turns import compare
from mirai.experiments.scale import load_scale
from mirai.models.layers import AttentionKernel
from mirai.models.transformer import Transformer
from mirai.sampling.generate import generate, guide, sample_tokens

BATCH, GUIDANCE = 50, 2.0


def main() -> None:
    """Compare ways to draw the same number of images."""
    raster, par = _model("raster", "explicit"), _model("par-4x", "explicit")
    variants: dict[str, Callable[[], object]] = {
        "raster, cached": lambda: _draw(raster),
        "raster, without a cache": lambda: _without_cache(raster),
        "raster, cached, flash attention": _drawing(_model("raster", "flash")),
        "PAR-4x, cached": lambda: _draw(par),
    }
    compare(f"Sampling of {BATCH} images of {raster.num_tokens} tokens, one thread", variants, rounds=4)


def _model(order: str, attention: AttentionKernel) -> Transformer:
    scale = load_scale("demo")
    recipe = scale.sizes["B"].model.model_copy(update={"token_order": order})
    side, codes = scale.data.resolution // scale.tokenizer.downsampling, scale.tokenizer.codebook_size
    model = Transformer(recipe, num_classes=10, codebook_size=codes, grid_side=side, attention=attention)
    model.init_weights(0)
    return model.eval()


def _inputs(model: Transformer) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(10, (BATCH,), generator=generator)
    return labels, torch.rand((BATCH, model.num_tokens), generator=generator, dtype=torch.float64)


def _draw(model: Transformer) -> torch.Tensor:
    return generate(model, *_inputs(model), guidance=GUIDANCE)


def _drawing(model: Transformer) -> Callable[[], torch.Tensor]:
    return lambda: _draw(model)


@torch.no_grad()
def _without_cache(model: Transformer) -> torch.Tensor:
    """The same codes by a whole forward pass per token."""
    labels, uniforms = _inputs(model)
    both = torch.cat([labels, torch.full_like(labels, model.null_class)])
    tokens = torch.zeros(BATCH, model.num_tokens, dtype=torch.long)
    for n in range(model.num_tokens):
        logits, _ = model(tokens.repeat(2, 1), both)
        chosen = guide(logits[:, n], GUIDANCE)
        tokens[:, n] = sample_tokens(chosen, uniforms[:, n], temperature=1.0, top_k=0, top_p=1.0)
    return tokens
