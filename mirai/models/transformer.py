"""LlamaGen's class-conditional transformer, with the reference's state_dict.

Slots: 0 holds the class, s >= 1 holds token x_s (1-based) and predicts x_{s+1}. Training runs forward on
[class, x_1 .. x_{N-1}]; sampling runs `prefill` and then `decode_step` slot by slot. Dropout, in train mode, is the
only use of torch's global generator. Letters: B batch, N tokens of an image, T slots, V codes, D width.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from mirai.experiments import recipe
from mirai.models.cache import KVCache
from mirai.models.layers import (
    CLASS_CELL,
    NORM_EPS,
    AttentionKernel,
    Block,
    Dropout,
    Embedding,
    Linear,
    at_least_float32,
    rope_table,
)
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


def drop_labels(labels: Tensor, dropped: Tensor, null_class: int) -> Tensor:
    """Labels (B,) with the null class where `dropped` (B,) is true: these rows teach guidance's unconditional half."""
    return torch.where(dropped, null_class, labels)


class Transformer(nn.Module):
    """The model of LlamaGen; all weights are zero (norms one) until `init_weights` or `load_state_dict`."""

    cells: Tensor

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
        self.token_dropout = Dropout(model.token_dropout)
        ffn_hidden = -(-(8 * model.width // 3) // model.ffn_multiple) * model.ffn_multiple  # 2/3 * 4D, rounded up
        dropouts = (model.attention_dropout, model.ffn_dropout)
        self.layers = nn.ModuleList(
            Block(model.width, model.num_heads, ffn_hidden, dropouts, attention) for _ in range(model.num_layers)
        )
        self.norm = nn.RMSNorm(model.width, eps=NORM_EPS)
        self.output = Linear(model.width, codebook_size)
        cells = torch.arange(CLASS_CELL, self.num_tokens)  # slot -> raster cell of the token it holds, N+1 slots
        self.register_buffer("cells", cells, persistent=False)  # integers: casting the model leaves positions exact

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

    def _rope(self, slots: slice) -> Tensor:
        dtype = torch.promote_types(self.norm.weight.dtype, torch.float32)
        return rope_table(self.cells[slots], self.grid_side, self.model.width // self.model.num_heads, dtype)

    def _embed(self, tokens: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (B,T-1), labels (B,) -> input of the first block (B,T,D), rope table of its slots."""
        x = self.token_dropout(torch.cat([self.cls_embedding(labels), self.tok_embeddings(tokens)], dim=1))
        assert x.shape[1] <= len(self.cells), "more tokens than the grid has"
        return x, self._rope(slice(x.shape[1]))

    def _logits(self, x: Tensor) -> Tensor:
        return at_least_float32(self.output(self.norm(x)))

    def forward(self, tokens: Tensor, labels: Tensor, tap: int | None = None) -> tuple[Tensor, Tensor | None]:
        """Teacher-forced pass: tokens (B,N-1), labels (B,) -> float32 logits (B,N,V) of all N tokens.

        Dropped labels are already the null class. `tap=l` also returns the residual stream after block l (1-based),
        raw, (B,N,D) (reading 9.6).
        """
        assert tap is None or 1 <= tap <= len(self.layers)
        x, rope = self._embed(tokens, labels)
        tapped = None
        for depth, layer in enumerate(self.layers, start=1):
            x = layer(x, rope)
            if depth == tap:
                tapped = x
        return self._logits(x), tapped

    def hidden_states(self, tokens: Tensor, labels: Tensor, layer: int) -> Tensor:
        """Residual stream after block `layer` (1-based), nothing above it computed: tokens (B,T-1) -> (B,T,D).

        With all N tokens there are N+1 slots, and slot s has consumed x_1..x_s (reading 9.2).
        """
        assert 1 <= layer <= len(self.layers)
        x, rope = self._embed(tokens, labels)
        for block in self.layers[:layer]:
            x = block(x, rope)
        return x

    def new_cache(self, batch: int) -> KVCache:
        """A cache for sampling `batch` images (twice that under guidance); x_N is never fed back: N slots."""
        heads, weight = self.model.num_heads, self.norm.weight
        shape = (len(self.layers), self.num_tokens, batch, heads, self.model.width // heads)
        return KVCache(weight.new_empty(shape), weight.new_empty(shape))

    def prefill(self, labels: Tensor, cache: KVCache) -> Tensor:
        """Start a batch of samples: labels (B,) -> logits (B,V) of x_1."""
        return self._decode(self.cls_embedding(labels), 0, cache)

    def decode_step(self, tokens: Tensor, position: int, cache: KVCache) -> Tensor:
        """Feed x_position (B,), 1-based, after all tokens before it -> logits (B,V) of x_{position+1}."""
        return self._decode(self.tok_embeddings(tokens)[:, None], position, cache)

    def _decode(self, x: Tensor, slot: int, cache: KVCache) -> Tensor:
        """One slot (B,1,D) through all blocks -> (B,V)."""
        rope = self._rope(slice(slot, slot + 1))
        for index, layer in enumerate(self.layers):
            x = cast(Block, layer).decode(x, rope, cache, index, slot)
        return self._logits(x)[:, 0]
