"""Sampling as LlamaGen and PAR do it: prefill -> guide -> sample_tokens -> decode step, group by group of the order.

Each sample brings its own uniform numbers and is a function of them, its label and the weights: neither the batch it is
drawn in nor any generator's state matters. Letters: B samples, N tokens, G tokens of a group, V codes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from mirai.models.transformer import Transformer

MIN_TEMPERATURE = 1e-5  # LlamaGen's: temperature 0 is greedy


def guide(logits: Tensor, guidance: float) -> Tensor:
    """Classifier-free guidance: logits (2B,..) of [labels; nulls] -> u + s(c - u), (B,..)."""
    conditional, unconditional = logits.chunk(2)
    return unconditional + guidance * (conditional - unconditional)


def filter_logits(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """Logits (B,V) with all but the best codes at -inf. Top-k (0: off) keeps ties at the threshold; then top-p (1: off)
    keeps the most probable codes up to and including the first that takes their mass above p.
    """
    if top_k > 0:
        threshold = logits.topk(min(top_k, logits.shape[-1])).values[:, -1:]
        logits = logits.masked_fill(logits < threshold, -torch.inf)
    if top_p < 1:
        ordered, order = logits.sort(descending=True)
        above = ordered.softmax(-1).cumsum(-1) > top_p
        dropped = F.pad(above[:, :-1], (1, 0))  # a code falls when those before it are already above p
        logits = logits.masked_fill(dropped.scatter(-1, order, dropped), -torch.inf)
    return logits


def sample_tokens(logits: Tensor, uniforms: Tensor, *, temperature: float, top_k: int, top_p: float) -> Tensor:
    """Draw one code per row: logits (B,V), float64 uniforms (B,) in [0,1) -> codes (B,).

    The code is where the cumulated probabilities pass the sample's own uniform number, so it depends on nothing else.
    """
    probabilities = filter_logits(logits / max(temperature, MIN_TEMPERATURE), top_k, top_p).softmax(-1)
    cumulated = probabilities.cumsum(-1, dtype=torch.float64)
    # u < 1 keeps the target below the last value, whatever its rounding; right=True skips codes of probability 0.
    return torch.searchsorted(cumulated, uniforms[:, None] * cumulated[:, -1:], right=True)[:, 0]


@torch.no_grad()
def generate(
    model: Transformer,
    labels: Tensor,
    uniforms: Tensor,
    *,
    guidance: float,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    progress: Callable[[int], object] | None = None,
) -> Tensor:
    """Labels (B,), float64 uniforms (B,N) in [0,1) -> int64 codes (B,N) by raster cell.

    Computed in the weights' dtype, with logits in float32. Uniform n draws token n of the model's sequence; the tokens
    of a group are drawn independently. Guidance s runs [labels; nulls] as one batch of 2B and is off at s <= 1, as in
    LlamaGen. `progress(G)` is called after every group.
    """
    assert not model.training, "sampling without dropout: call model.eval() first"
    guided = guidance > 1
    if guided:
        labels = torch.cat([labels, torch.full_like(labels, model.null_class)])
    cache = model.new_cache(len(labels))
    written: list[Tensor] = []  # (B,G) each
    for group in model.order.groups:
        if not written:
            logits = model.prefill(labels, cache)  # (B|2B,G,V)
        else:
            tokens = written[-1]  # fed to both halves
            logits = model.decode_step(tokens.repeat(2, 1) if guided else tokens, group, cache)
        if guided:
            logits = guide(logits, guidance)
        numbers = uniforms[:, group.start : group.stop]
        codes = sample_tokens(
            logits.flatten(0, 1), numbers.flatten(), temperature=temperature, top_k=top_k, top_p=top_p
        )
        written.append(codes.view_as(numbers))
        if progress is not None:
            progress(len(group))
    return model.by_cell(torch.cat(written, dim=1))
