from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from golden_weights import GOLDEN, load_golden
from torch import Tensor

from mirai.experiments import recipe
from mirai.models.transformer import Transformer
from mirai.sampling.generate import filter_logits, generate, guide, sample_tokens

ORDERS = [("raster", 4), ("par-4x", 4), ("par-16x", 8)]


def golden_model(attention: str = "flash", order: str = "raster", side: int = 4) -> Transformer:
    model = recipe.Model(num_layers=3, num_heads=4, width=64, token_order=order)  # type: ignore[arg-type]
    transformer = Transformer(model, num_classes=10, codebook_size=96, grid_side=side, attention=attention)  # type: ignore[arg-type]
    load_golden(transformer)
    return transformer.eval()


def uniforms(samples: int, seed: int = 0, tokens: int = 16) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).random((samples, tokens)))


def draw(logits: Tensor, u: float, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> int:
    u_row = torch.tensor([u], dtype=torch.float64)
    return int(sample_tokens(logits[None], u_row, temperature=temperature, top_k=top_k, top_p=top_p))


@pytest.mark.parametrize("attention", ["flash", "explicit"])
@pytest.mark.parametrize("guidance", [2, 1])
@pytest.mark.parametrize(
    ("folder", "order", "array"), [("llamagen_gpt", "raster", "tokens"), ("par", "par-4x", "raster_tokens")]
)
def test_greedy_generation_equals_the_reference(
    attention: str, guidance: int, folder: str, order: str, array: str
) -> None:
    with np.load(GOLDEN / folder / "generate.npz") as file:
        labels, expected = torch.from_numpy(file["labels"]), torch.from_numpy(file[f"{array}_cfg{guidance}"])
    model = golden_model(attention, order)
    codes = generate(model, labels, uniforms(len(labels)), guidance=float(guidance), top_k=1)
    assert torch.equal(codes, expected)


@pytest.mark.parametrize(
    ("order", "side", "passes"),
    [("raster", 4, 16), ("par-4x", 4, 7), ("par-4x", 16, 67), ("par-4x", 24, 147), ("par-16x", 24, 51)],
)
def test_an_image_takes_one_forward_pass_a_group(order: str, side: int, passes: int) -> None:
    reference = json.loads((GOLDEN / "par" / "config.json").read_text())["forward_passes"]
    assert passes == reference["cfg2"] or (order, side) != ("par-4x", 4)
    size = recipe.Model(num_layers=1, num_heads=1, width=4, ffn_multiple=4, token_order=order)  # type: ignore[arg-type]
    model = Transformer(size, num_classes=2, codebook_size=8, grid_side=side).eval()
    rows: list[int] = []
    model.norm.register_forward_hook(lambda _, inputs, __: rows.append(len(inputs[0])))
    generate(model, torch.tensor([1]), uniforms(1, tokens=side**2), guidance=2.0)
    assert rows == [2] * passes  # label and null together


@pytest.mark.parametrize(("order", "side"), ORDERS)
def test_a_sample_depends_only_on_its_own_label_and_numbers(order: str, side: int) -> None:
    model, labels = golden_model(order=order, side=side).double(), torch.tensor([3, 1, 4, 1, 5, 9, 2, 6])
    numbers = uniforms(8, tokens=side**2)
    together = generate(model, labels, numbers, guidance=2.0)
    alone = torch.cat([generate(model, labels[i : i + 1], numbers[i : i + 1], guidance=2.0) for i in range(8)])
    threes = torch.cat([generate(model, labels[i : i + 3], numbers[i : i + 3], guidance=2.0) for i in (0, 3, 6)])
    assert torch.equal(together, alone)
    assert torch.equal(together, threes)
    assert len({tuple(row) for row in together.tolist()}) == 8


def test_generation_leaves_the_global_generator_alone() -> None:
    state = torch.random.get_rng_state()
    generate(golden_model(), torch.tensor([1]), uniforms(1), guidance=2.0)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize(("order", "side"), ORDERS)
def test_guidance_one_samples_the_conditional_model_without_a_second_half(order: str, side: int) -> None:
    """Token n of the sequence is drawn by number n from the logits that the model has for its cell."""
    model, labels = golden_model(order=order, side=side).double(), torch.tensor([0, 7])
    numbers = uniforms(2, tokens=side**2)
    batches = []
    hook = model.cls_embedding.register_forward_hook(lambda _, inputs, __: batches.append(len(inputs[0])))
    codes = generate(model, labels, numbers, guidance=1.0)
    hook.remove()
    assert batches == [2]
    logits, _ = model(codes, labels)  # teacher-forced on its own output
    for position, cell in enumerate(model.order.cells().tolist()):
        redrawn = sample_tokens(logits[:, cell].detach(), numbers[:, position], temperature=1.0, top_k=0, top_p=1.0)
        assert torch.equal(redrawn, codes[:, cell])


def test_guidance_moves_away_from_the_unconditional_logits() -> None:
    assert guide(torch.tensor([[3.0, 1.0], [1.0, 2.0]]), 2.0).tolist() == [[5.0, 0.0]]


@pytest.mark.parametrize(("order", "counts"), [("raster", [1] * 16), ("par-4x", [1, 1, 1, 1, 4, 4, 4])])
def test_progress_counts_every_token(order: str, counts: list[int]) -> None:
    told: list[int] = []
    generate(golden_model(order=order), torch.tensor([1]), uniforms(1), guidance=2.0, progress=told.append)
    assert told == counts


def test_tokens_follow_the_probabilities() -> None:
    probabilities = torch.tensor([0.1, 0.0, 0.6, 0.3])
    numbers = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    tokens = sample_tokens(probabilities.log().expand(1000, 4), numbers, temperature=1.0, top_k=0, top_p=1.0)
    assert tokens.bincount(minlength=4).tolist() == [100, 0, 600, 300]


def test_extreme_numbers_never_draw_a_code_of_probability_zero() -> None:
    edge = torch.tensor([-torch.inf, 1.0, 2.0, -torch.inf])
    assert draw(edge, 0.0) == 1
    assert draw(edge, float(np.nextafter(1.0, 0.0))) == 2
    for seed in range(200):  # whatever the rounding of the last cumulated value
        logits = torch.randn(50, generator=torch.Generator().manual_seed(seed))
        assert draw(logits, float(np.nextafter(1.0, 0.0)), top_k=3) in logits.topk(3).indices.tolist()


def test_temperature_zero_is_greedy_and_a_high_one_flattens() -> None:
    logits = torch.tensor([1.0, 1.1, 0.9])
    assert {draw(logits, u, temperature=0.0) for u in (0.0, 0.5, 0.999)} == {1}
    assert {draw(logits, u, temperature=1e6) for u in (0.1, 0.5, 0.9)} == {0, 1, 2}


def test_top_k_keeps_the_best_codes_and_ties() -> None:
    logits = torch.tensor([[3.0, 1.0, 2.0, 0.0]])
    assert filter_logits(logits, 2, 1.0).isfinite().tolist() == [[True, False, True, False]]
    assert filter_logits(logits, 100, 1.0).isfinite().all()
    assert filter_logits(logits, 0, 1.0) is logits
    tied = torch.tensor([[1.0, 2.0, 1.0, 0.0]])
    assert filter_logits(tied, 2, 1.0).isfinite().tolist() == [[True, True, True, False]]


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [
        (0.01, [0]),
        (0.45, [0]),
        (0.55, [0, 2]),
        (0.75, [0, 2]),
        (0.85, [0, 2, 1]),
        (0.9999, [0, 2, 1, 3]),
        (1.0, [0, 2, 1, 3]),
    ],
)
def test_top_p_keeps_codes_up_to_the_first_that_passes_the_mass(top_p: float, kept: list[int]) -> None:
    logits = torch.tensor([[0.5, 0.15, 0.3, 0.05]]).log()
    assert filter_logits(logits, 0, top_p)[0].isfinite().nonzero()[:, 0].tolist() == sorted(kept)


def test_top_p_counts_the_mass_left_by_top_k() -> None:
    logits = torch.tensor([[0.4, 0.1, 0.3, 0.2]]).log()
    # of the best two, 4/7 > 0.5 is the first code's share; of all four it is only 0.4
    assert filter_logits(logits, 2, 0.5)[0].isfinite().tolist() == [True, False, False, False]
    assert filter_logits(logits, 0, 0.5)[0].isfinite().tolist() == [True, False, True, False]
