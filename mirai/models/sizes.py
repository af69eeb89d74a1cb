"""The sizes of LlamaGen (class-conditional GPT), as recipe values. Pure Python: planning reads it without torch."""

from __future__ import annotations

from mirai.experiments import recipe

LLAMAGEN_SIZES: dict[str, recipe.Model] = {
    "B": recipe.Model(num_layers=12, num_heads=12, width=768),  # 111M parameters with 16384 codes and 1000 classes
    "L": recipe.Model(num_layers=24, num_heads=16, width=1024),  # 343M
    "XL": recipe.Model(num_layers=36, num_heads=20, width=1280),  # 775M
    "XXL": recipe.Model(num_layers=48, num_heads=24, width=1536),  # 1.4B
    "3B": recipe.Model(num_layers=24, num_heads=32, width=3200),  # 3.1B
}
