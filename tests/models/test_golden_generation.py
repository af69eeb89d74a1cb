"""Greedy generation of both references: not the tokens alone (tests/sampling), but what each was picked from, and how."""

from __future__ import annotations

import json
from typing import Any, Literal

import numpy as np
import pytest
import torch
from golden_weights import GOLDEN, load_golden
from torch import Tensor

from mirai.experiments import recipe
from mirai.models.transformer import Transformer
from mirai.sampling.generate import generate, sample_tokens

Order = Literal["raster", "par-4x"]
REFERENCES: list[tuple[str, Order]] = [("llamagen_gpt", "raster"), ("par", "par-4x")]
TOLERANCE = {1: 5e-5, 2: 1e-4}  # golden/README.md


def golden(order: Order, attention: Literal["flash", "explicit"] = "flash") -> Transformer:
    model = recipe.Model(num_layers=3, num_heads=4, width=64, token_order=order)
    transformer = Transformer(model, num_classes=10, codebook_size=96, grid_side=4, attention=attention)
    load_golden(transformer)
    return transformer.eval()


def config(folder: str) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((GOLDEN / folder / "config.json").read_text())
    return result


@pytest.mark.parametrize("attention", ["flash", "explicit"])
@pytest.mark.parametrize("guidance", [2, 1])
@pytest.mark.parametrize(("folder", "order"), REFERENCES)
def test_logits_margins_and_forward_passes_of_greedy_generation_equal_the_reference(
    folder: str,
    order: Order,
    guidance: int,
    attention: Literal["flash", "explicit"],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = np.load(GOLDEN / folder / "generate.npz")
    picked_from: list[Tensor] = []
    passes: list[list[int]] = []
    decode = Transformer._decode

    def noted_pass(model: Transformer, x: Tensor, slots: range, cache: Any) -> Tensor:
        passes.append([*slots])
        return decode(model, x, slots, cache)

    def noted_logits(logits: Tensor, *arguments: Any, **options: Any) -> Tensor:
        picked_from.append(logits.view(4, -1, 96))  # of four images, group by group
        return sample_tokens(logits, *arguments, **options)

    monkeypatch.setattr(Transformer, "_decode", noted_pass)
    monkeypatch.setattr("mirai.sampling.generate.sample_tokens", noted_logits)
    half = torch.full((4, 16), 0.5, dtype=torch.float64)
    generate(golden(order, attention), torch.from_numpy(data["labels"]), half, guidance=guidance, top_k=1)
    logits = torch.cat(picked_from, dim=1)
    best, second = logits.topk(2).values.unbind(-1)
    for ours, name in ((logits, f"logits_cfg{guidance}"), (best - second, f"top2_margin_cfg{guidance}")):
        np.testing.assert_allclose(ours, data[name], rtol=0, atol=TOLERANCE[guidance])
    expected = config(folder)["forward_passes"]
    assert passes == expected[f"cfg{guidance}_input_pos"]
    assert len(passes) == expected[f"cfg{guidance}"]


@pytest.mark.parametrize(("folder", "order"), REFERENCES)
def test_the_golden_models_have_the_references_number_of_parameters(folder: str, order: Order) -> None:
    parameters = golden(order).parameters()
    assert sum(parameter.numel() for parameter in parameters) == config(folder)["num_parameters"]
