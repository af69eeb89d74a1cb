"""LlamaGen's class-conditional transformer and PAR's, which differ in their token order, with the references' state_dict.

What goes in and out of training is by raster cell; sampling runs `prefill` and then `decode_step` over the groups of the
order, and `by_cell` at the end. Dropout, in train mode, is the only use of torch's global generator.
Letters: B batch, N tokens of an image, P tokens of a full group, G of any group, T slots, V codes, D width.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import cast

import torch
from torch import Tensor, nn

from mirai.experiments import recipe
from mirai.models.cache import KVCache
from mirai.models.layers import (
    NORM_EPS,
    AttentionKernel,
    Block,
    Dropout,
    Embedding,
    Linear,
    at_least_float32,
    rope_table,
)
from mirai.models.order import TokenOrder
from mirai.randomness import torch_generator

INIT_STD = 0.02


class ClassEmbedding(nn.Module):
    """One row per class and a last one for "no class"."""

    def __init__(self, num_classes: int, width: int) -> None:
        super().__init__()
        self.embedding_table = Embedding(num_classes + 1, width)

    def forward(self, labels: Tensor) -> Tensor:
        """Labels (B,) -> (B,1,D)."""
        return self.embedding_table(labels)[:, None]


class SpecialEmbedding(nn.Module):
    """PAR's learned inputs beside the last of the first P tokens: with them P slots predict the first full group."""

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.special_embeddings = Embedding(count, width)

    def forward(self, batch: int) -> Tensor:
        """-> (B,P-1,D)."""
        return self.special_embeddings.weight.expand(batch, -1, -1)


def drop_labels(labels: Tensor, dropped: Tensor, null_class: int) -> Tensor:
    """Labels (B,) with the null class where `dropped` (B,) is true: these rows teach guidance's unconditional half."""
    return torch.where(dropped, null_class, labels)


class Transformer(nn.Module):
    """The model of LlamaGen and PAR; all weights are zero (norms one) until `init_weights` or `load_state_dict`."""

    cells: Tensor  # by slot
    sequence: Tensor  # cell by place in the sequence
    positions: Tensor  # place in the sequence by cell
    holders: Tensor  # slot that holds a cell's token, by cell
    mask: Tensor | None  # by slot and slot

    def __init__(
        self,
        model: recipe.Model,
        *,
        num_classes: int,
        codebook_size: int,
        grid_side: int,
        attention: AttentionKernel = "flash",
    ) -> None:
        super().__init__()
        self.model, self.num_classes, self.codebook_size, self.grid_side = model, num_classes, codebook_size, grid_side
        self.cls_embedding = ClassEmbedding(num_classes, model.width)
        self.tok_embeddings = Embedding(codebook_size, model.width)
        self.order = order = TokenOrder(grid_side, recipe.GROUP_SIZES[model.token_order])
        self.spe_tok_embeddings = None if order.is_raster else SpecialEmbedding(order.group_size - 1, model.width)
        self.token_dropout = Dropout(model.token_dropout)
        ffn_hidden = -(-(8 * model.width // 3) // model.ffn_multiple) * model.ffn_multiple  # 2/3 * 4D, rounded up
        dropouts = (model.attention_dropout, model.ffn_dropout)
        self.layers = nn.ModuleList(
            Block(model.width, model.num_heads, ffn_hidden, dropouts, attention) for _ in range(model.num_layers)
        )
        self.norm = nn.RMSNorm(model.width, eps=NORM_EPS)
        self.output = Linear(model.width, codebook_size)
        # Integers: casting the model leaves positions exact.
        self.register_buffer("cells", order.slot_cells(), persistent=False)
        self.register_buffer("sequence", order.cells(), persistent=False)
        self.register_buffer("positions", order.positions(), persistent=False)
        self.register_buffer("holders", order.slot_cells().argsort()[order.group_size :], persistent=False)
        self.register_buffer("mask", order.mask(), persistent=False)

    @property
    def num_tokens(self) -> int:
        """N."""
        return self.grid_side**2

    @property
    def null_class(self) -> int:
        """The label that means "no class"."""
        return self.num_classes

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """LlamaGen's initialisation: N(0, 0.02), norms 1, output head 0 (the first loss is ln V).

        Every tensor draws from a stream of its own, named after it, on the CPU: neither another parameter nor the
        device changes it.
        """
        for name, parameter in self.named_parameters():
            if parameter.ndim == 1:
                nn.init.ones_(parameter)
            elif name == "output.weight":
                nn.init.zeros_(parameter)
            else:
                generator = torch_generator(seed, f"model-init/{name}")
                parameter.copy_(torch.empty(parameter.shape).normal_(std=INIT_STD, generator=generator))

    def by_cell(self, x: Tensor) -> Tensor:
        """Tokens or states (B,N,..) in sequence order -> by raster cell."""
        return x if self.order.is_raster else x.index_select(1, self.positions)

    def _rope(self, slots: range) -> Tensor:
        dtype = torch.promote_types(self.norm.weight.dtype, torch.float32)
        cells = self.cells[slots.start : slots.stop]
        return rope_table(cells, self.grid_side, self.model.width // self.model.num_heads, dtype)

    def _embed(self, tokens: Tensor, labels: Tensor, slots: int) -> Tensor:
        """Tokens (B,N) by cell, labels (B,) -> inputs of the first `slots` slots (B,T,D)."""
        fed = tokens if self.order.is_raster else tokens[:, self.sequence]
        special = None if self.spe_tok_embeddings is None else self.spe_tok_embeddings(len(labels))
        embeddings = self.tok_embeddings(fed[:, : slots - self.order.group_size])  # P slots hold no token
        return self.token_dropout(self.order.arrange(self.cls_embedding(labels), embeddings, special))

    def _stream(self, tokens: Tensor, labels: Tensor, slots: int) -> Iterator[Tensor]:
        """The residual stream of the first `slots` slots (B,T,D): before the first block, and after each in turn."""
        rope = self._rope(range(slots))
        mask = None if self.mask is None else self.mask[:slots, :slots]
        x = self._embed(tokens, labels, slots)
        yield x
        for layer in self.layers:
            x = layer(x, rope, mask)
            yield x

    def _logits(self, x: Tensor) -> Tensor:
        return at_least_float32(self.output(self.norm(x)))

    def forward(self, tokens: Tensor, labels: Tensor, tap: int | None = None) -> tuple[Tensor, Tensor | None]:
        """Teacher-forced pass: tokens (B,N) by cell, labels (B,) -> float32 logits (B,N,V) by cell.

        The last P tokens are not fed: no slot that predicts may see them. Dropped labels are already the null class.
        `tap=l` also returns the residual stream after block l (1-based), raw, (B,N,D), of the slot that predicts the
        cell (reading 9.6).
        """
        assert tap is None or 1 <= tap <= len(self.layers)
        tapped = None
        for depth, x in enumerate(self._stream(tokens, labels, self.num_tokens)):
            if depth == tap:
                tapped = self.by_cell(x)
        return self._logits(self.by_cell(x)), tapped

    def hidden_states(self, tokens: Tensor, labels: Tensor, layer: int, consumed: bool) -> Tensor:
        """Residual stream after block `layer` (1-based), nothing above it computed: tokens (B,N) -> (B,N,D), by cell.

        Of the slot that predicts the cell's token, or, `consumed`, of the slot that holds it (reading 9.2): there all N
        tokens are fed, in N+P slots. In PAR that state has also seen the rest of its group.
        """
        assert 1 <= layer <= len(self.layers)
        slots = self.num_tokens + (self.order.group_size if consumed else 0)
        x = next(islice(self._stream(tokens, labels, slots), layer, None))
        if not consumed:
            return self.by_cell(x)
        return x[:, 1:] if self.order.is_raster else x.index_select(1, self.holders)

    def new_cache(self, batch: int) -> KVCache:
        """A cache for sampling `batch` images (twice that under guidance); the last P are never fed back: N slots."""
        heads, weight = self.model.num_heads, self.norm.weight
        shape = (len(self.layers), self.num_tokens, batch, heads, self.model.width // heads)
        return KVCache(weight.new_empty(shape), weight.new_empty(shape))

    def prefill(self, labels: Tensor, cache: KVCache) -> Tensor:
        """Start a batch of samples: labels (B,) -> logits (B,1,V) of the first token."""
        return self._decode(self.cls_embedding(labels), self.order.groups[0], cache)

    def decode_step(self, tokens: Tensor, group: range, cache: KVCache) -> Tensor:
        """Feed the tokens (B,.) of the group before -> logits (B,G,V) of the tokens `group` of the sequence."""
        x = self.tok_embeddings(tokens)
        if x.shape[1] < len(group):  # a single token before the first full group
            assert self.spe_tok_embeddings is not None
            x = torch.cat([x, self.spe_tok_embeddings(len(x))], dim=1)
        return self._decode(x, group, cache)

    def _decode(self, x: Tensor, slots: range, cache: KVCache) -> Tensor:
        """A group of slots (B,G,D) through all blocks -> (B,G,V)."""
        rope = self._rope(slots)
        for index, layer in enumerate(self.layers):
            x = cast(Block, layer).decode(x, rope, cache, index, slots)
        return self._logits(x)
