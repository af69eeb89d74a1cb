"""Tokenizers small enough for tests, which are made up and belong to nobody."""

from __future__ import annotations

from mirai.experiments.recipe import Tokenizer, TokenizerTraining

TINY = Tokenizer(
    name="tiny",
    channels=4,
    multipliers=(1, 2),  # 2 pixels a token
    res_blocks=1,
    z_channels=8,
    codebook_size=16,
    codebook_dim=4,
    group_norm_groups=2,
    weights="made up",
)
WIDER = TINY.model_copy(update={"channels": 8, "multipliers": (1, 1), "group_norm_groups": 4})
TRAINED = Tokenizer(
    name="tiny",
    channels=4,
    multipliers=(1, 1, 1),  # 4 pixels a token
    res_blocks=1,
    z_channels=4,
    codebook_size=16,
    codebook_dim=4,
    group_norm_groups=2,
    training=TokenizerTraining(steps=1, batch_size=2, learning_rate=1e-3, num_images=20),
)
