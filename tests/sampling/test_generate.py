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

FOLDER = GOLDEN / "llamagen_gpt"
CONFIG = json.loads((FOLDER / "config.json").read_text())


def golden_model(attention: str = "flash") -> Transformer:
    model = recipe.Model(num_layers=3, num_heads=4, width=64)
    transformer = Transformer(model, num_classes=10, codebook_size=96, grid_side=4, attention=attention)  # type: ignore[arg-type]
    load_golden(transformer)
    return transformer.eval()


def uniforms(samples: int, seed: int = 0, tokens: int = 16) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).random((samples, tokens)))


def draw(logits: Tensor, u: float, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> int:
    u_row = torch.tensor([u], dtype=torch.float64)
    return int(sample_tokens(logits[None], u_row, temperature=temperature, top_k=top_k, top_p=top_p))


@pytest.mark.parametrize("attention", ["flash", "explicit"])
@pytest.mark.parametrize("guidance", [2, 1])
def test_greedy_generation_equals_the_reference(attention: str, guidance: int) -> None:
    with np.load(FOLDER / "generate.npz") as file:
        labels, expected = torch.from_numpy(file["labels"]), torch.from_numpy(file[f"tokens_cfg{guidance}"])
    codes = generate(golden_model(attention), labels, uniforms(len(labels)), guidance=float(guidance), top_k=1)
    assert torch.equal(codes, expected)


def test_a_sample_depends_only_on_its_own_label_and_numbers() -> None:
    model, labels, numbers = golden_model().double(), torch.tensor([3, 1, 4, 1, 5, 9, 2, 6]), uniforms(8)
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


def test_guidance_one_samples_the_conditional_model_without_a_second_half() -> None:
    model, labels, numbers = golden_model().double(), torch.tensor([0, 7]), uniforms(2)
    batches = []
    hook = model.cls_embedding.register_forward_hook(lambda _, inputs, __: batches.append(len(inputs[0])))
    codes = generate(model, labels, numbers, guidance=1.0)
    hook.remove()
    assert batches == [2]
    logits, _ = model(codes[:, :-1], labels)  # teacher-forced on its own output
    for position in range(16):
        redrawn = sample_tokens(logits[:, position].detach(), numbers[:, position], temperature=1.0, top_k=0, top_p=1.0)
        assert torch.equal(redrawn, codes[:, position])


def test_guidance_moves_away_from_the_unconditional_logits() -> None:
    assert guide(torch.tensor([[3.0, 1.0], [1.0, 2.0]]), 2.0).tolist() == [[5.0, 0.0]]


def test_progress_counts_every_token() -> None:
    counts: list[int] = []
    generate(golden_model(), torch.tensor([1]), uniforms(1), guidance=2.0, progress=counts.append)
    assert sum(counts) == 16


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
