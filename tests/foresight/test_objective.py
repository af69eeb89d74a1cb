"""Heads, losses and the objective, with REPA's golden numbers."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_weights import GOLDEN, golden_tensor
from torch import Tensor, nn

from mirai.errors import UserError
from mirai.experiments.offsets import grid_offsets, scan_offsets
from mirai.experiments.recipe import Foresight, Head
from mirai.foresight import losses
from mirai.foresight.heads import TransformerHead, projection_head, token_head
from mirai.foresight.losses import cosine, pair_mean, token_cross_entropy, unit
from mirai.foresight.neighbourhoods import targets_of
from mirai.foresight.objective import ForesightObjective
from mirai.models.order import TokenOrder

B, SIDE, D, C, V = 3, 4, 16, 12, 20
N = SIDE**2


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=generator(seed))


def internal(k: int = 3, borders: str = "valid") -> ForesightObjective:
    foresight = Foresight(source="ema", offsets=grid_offsets(k), borders=borders, head=Head(width=24))
    return ForesightObjective(foresight, D, C, SIDE, generator())


def output_level(offsets: tuple[tuple[int, int], ...], layout: str) -> ForesightObjective:
    foresight = Foresight(level="output", source=None, layout=layout, offsets=offsets, layer=None, head=None)
    return ForesightObjective(foresight, D, V, SIDE, generator())


def test_a_head_has_the_papers_number_of_parameters() -> None:
    with torch.device("meta"):
        head = projection_head(768, 2048, 768, torch.Generator())
    assert sum(parameter.numel() for parameter in head.parameters()) == 7_344_896


def test_a_head_starts_xavier_uniform_with_zero_biases() -> None:
    head = projection_head(64, 128, 32, generator())
    for layer in (head[0], head[2], head[4]):
        bound = (6 / sum(layer.weight.shape)) ** 0.5
        assert 0.95 * bound < layer.weight.abs().max() <= bound
        assert not layer.bias.any()


def test_a_transformer_head_has_the_papers_number_of_parameters() -> None:
    """Table 9: 7.68M. Two LayerNorms, attention, MLP of ratio 4, and the map to C."""
    with torch.device("meta"):
        head = TransformerHead(768, 768, torch.Generator())
    count = 2 * 2 * 768 + 4 * (768**2 + 768) + (2 * 4 * 768**2 + 5 * 768) + (768**2 + 768)
    assert sum(parameter.numel() for parameter in head.parameters()) == count == 7_678_464


def test_a_transformer_head_mixes_all_cells_and_an_mlp_none() -> None:
    """A change at the last cell reaches the first one: attention is not masked."""
    hidden = normal(1, N, D)
    other = hidden.clone()
    other[:, -1, 0] += 1
    for head, reached in ((TransformerHead(D, C, generator()), N), (projection_head(D, 24, C, generator()), 1)):
        assert head(hidden).shape == (1, N, C)
        assert (head(hidden) - head(other)).abs().amax(dim=(0, 2)).count_nonzero() == reached


def test_a_causal_transformer_head_sees_no_cell_that_the_model_writes_later() -> None:
    """In raster order and in PAR's; the same weights as without a mask."""
    hidden = normal(1, N, D).requires_grad_()
    for positions in (None, TokenOrder(SIDE, 4).positions()):
        foresight = Foresight(source="ema", offsets=((0, 0),), head=Head(kind="causal-transformer"))
        objective = ForesightObjective(foresight, D, C, SIDE, generator(), positions)
        (head,) = objective.heads
        order = torch.arange(N) if positions is None else positions
        for cell in range(N):
            (gradient,) = torch.autograd.grad(head(hidden)[0, cell].sum(), hidden)
            seen = gradient[0].abs().sum(dim=-1) > 0
            assert torch.equal(seen, order <= order[cell])
        unmasked = TransformerHead(D, C, generator())
        assert {*objective.heads[0].state_dict()} == {*unmasked.state_dict()}


def test_a_transformer_head_is_a_block_of_four_heads_and_a_linear_map() -> None:
    """Against torch's own layers: LN, self-attention, residual, LN, GELU MLP of ratio 4, residual, linear (Sec. B)."""
    head = TransformerHead(D, C, generator())
    block, linear = head
    for parameter in head.parameters():
        nn.init.normal_(parameter, std=0.3, generator=generator(5))
    attention = nn.MultiheadAttention(D, 4, batch_first=True)
    attention.load_state_dict(
        {
            "in_proj_weight": block.qkv.weight,
            "in_proj_bias": block.qkv.bias,
            "out_proj.weight": block.out.weight,
            "out_proj.bias": block.out.bias,
        }
    )
    hidden = normal(B, N, D)
    normed = block.norm_attention(hidden)
    x = hidden + attention(normed, normed, normed, need_weights=False)[0]
    x = x + block.down(nn.functional.gelu(block.up(block.norm_mlp(x))))
    torch.testing.assert_close(head(hidden), linear(x), rtol=1e-4, atol=1e-4)


def test_an_objective_has_one_transformer_head_per_offset_whose_gradient_reaches_the_student() -> None:
    foresight = Foresight(source="ema", offsets=grid_offsets(3), head=Head(kind="transformer"))
    objective = ForesightObjective(foresight, D, C, SIDE, generator())
    assert len(objective.heads) == 3
    hidden = normal(B, N, D).requires_grad_()
    loss, _ = objective.loss(hidden, normal(B, N, C, seed=2))
    loss.backward()
    assert hidden.grad.abs().sum() > 0
    biases_and_norms = {name for name, parameter in objective.named_parameters() if parameter.ndim < 2}
    assert all(name.endswith("bias") or "norm" in name for name in biases_and_norms)


def test_heads_draw_from_their_own_stream_only() -> None:
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    first, again = internal(), internal()
    assert torch.equal(torch.random.get_rng_state(), before)
    for ours, theirs in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert not torch.equal(first.heads[0][0].weight, first.heads[1][0].weight)


def test_head_and_loss_give_repas_numbers() -> None:
    folder = GOLDEN / "repa_projector_loss"
    config = json.loads((folder / "config.json").read_text())
    arrays = {name: torch.from_numpy(array) for name, array in np.load(folder / "repa.npz").items()}
    head = projection_head(config["hidden"], config["projector_dim"], config["z_dim"], torch.Generator())
    weights = {key: golden_tensor(f"projectors.0.{key}", value.shape) for key, value in head.state_dict().items()}
    head.load_state_dict({key: torch.from_numpy(weight) for key, weight in weights.items()})
    x = arrays["x"].requires_grad_()
    projected = head(x)
    values = cosine(projected, unit(arrays["target"]))
    loss = -pair_mean(values[..., None], torch.ones(config["tokens"], 1, dtype=torch.bool), "valid")
    loss.backward()
    close = {"atol": 1e-5, "rtol": 0}
    torch.testing.assert_close(projected, arrays["projected"], **close)
    torch.testing.assert_close(values, arrays["cosine"], **close)
    torch.testing.assert_close(loss.item(), config["proj_loss"], **close)
    torch.testing.assert_close(x.grad, arrays["grad_x"], **close)
    for key, parameter in head.named_parameters():
        torch.testing.assert_close(
            parameter.grad.norm().item(), config["grad_l2_norms"][f"projectors.0.{key}"], **close
        )


def test_identical_vectors_have_cosine_1_whatever_their_length() -> None:
    features = normal(B, N, C)
    torch.testing.assert_close(cosine(5 * features, unit(features)), torch.ones(B, N))


def test_the_cosine_of_half_precision_inputs_is_computed_in_float32() -> None:
    features = normal(B, N, C).bfloat16()
    value = cosine(features, unit(features))
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, torch.ones(B, N))


def test_a_zero_vector_gives_a_finite_loss() -> None:
    assert cosine(torch.zeros(1, C), unit(torch.zeros(1, C))).item() == 0


def test_identical_features_at_every_offset_give_loss_minus_1() -> None:
    objective = internal()
    objective.heads = nn.ModuleList(nn.Identity() for _ in objective.offsets)
    features = normal(B, 1, C).expand(B, N, C)
    loss, terms = objective.loss(features, features)
    assert loss.item() == pytest.approx(-1, abs=1e-6)
    assert terms["cosine(1, 0)"].item() == pytest.approx(1, abs=1e-6)


def test_every_head_is_compared_with_the_target_at_its_own_offset() -> None:
    objective = internal()
    hidden, targets = normal(B, N, D), normal(B, N, C, seed=2)
    pairs = [
        torch.cosine_similarity(head(hidden[image, cell]), targets[image, cell + step], dim=0)
        for image in range(B)
        for cell in range(N)
        for head, step, inside in zip(objective.heads, (0, 1, SIDE), (True, cell % SIDE < 3, cell < 12), strict=True)
        if inside
    ]
    loss, terms = objective.loss(hidden, targets)
    torch.testing.assert_close(loss, -torch.stack(pairs).mean())
    assert list(terms) == ["foresight", "cosine(0, 0)", "cosine(0, 1)", "cosine(1, 0)"]
    assert not any(term.requires_grad for term in terms.values())


def test_invalid_pairs_change_nothing_even_when_they_are_not_finite() -> None:
    _, valid = targets_of(grid_offsets(3), "2D", SIDE)
    values = normal(B, N, 3)
    spoilt = values.masked_fill(~valid, torch.nan)
    for borders in ("valid", "all"):
        assert torch.equal(pair_mean(values, valid, borders), pair_mean(spoilt, valid, borders))


def test_neighbours_that_the_model_writes_earlier_do_not_count() -> None:
    """Cell 1 is written before cell 0, so that the right neighbour of cell 0 is past."""
    foresight = Foresight(source="ema", offsets=((0, 1),), head=Head(width=24))
    objective = ForesightObjective(foresight, D, C, SIDE, generator(), torch.tensor([1, 0, *range(2, N)]))
    hidden, targets = normal(B, N, D), normal(B, N, C, seed=2)
    loss, _ = objective.loss(hidden, targets)
    cells = torch.tensor([cell for cell in range(1, N) if cell % SIDE < SIDE - 1])
    pairs = torch.cosine_similarity(objective.heads[0](hidden[:, cells]), targets[:, cells + 1], dim=-1)
    torch.testing.assert_close(loss, -pairs.mean())


def test_neighbours_that_the_model_writes_earlier_count_where_seams_are_kept() -> None:
    order = torch.tensor([1, 0, *range(2, N)])
    kept, masked, raster = (
        ForesightObjective(
            Foresight(source="ema", offsets=grid_offsets(3), seams=seams, head=Head(width=24)),
            *(D, C, SIDE, generator(), positions),
        )
        for seams, positions in (("keep", order), ("mask", order), ("mask", None))
    )
    assert torch.equal(kept.valid, raster.valid)
    assert torch.equal(kept.index, raster.index)
    assert masked.valid.sum() == raster.valid.sum() - 1


def test_an_offset_that_is_past_wherever_it_exists_is_refused() -> None:
    foresight = Foresight(source="ema", offsets=grid_offsets(3), head=Head(width=24))
    with pytest.raises(UserError, match=r"offset \(0, 1\) is nowhere foresight"):
        ForesightObjective(foresight, D, C, SIDE, generator(), torch.arange(N).flip(0))


def test_borders_say_by_what_the_sum_is_divided() -> None:
    _, valid = targets_of(grid_offsets(3), "2D", SIDE)
    ones = torch.ones(B, N, 3)
    assert pair_mean(ones, valid, "valid").item() == pytest.approx(1)
    assert pair_mean(ones, valid, "all").item() == pytest.approx(40 / 48)  # 16 + 12 + 12 pairs of 16 * 3


def test_more_offsets_do_not_scale_the_loss() -> None:
    for k in (1, 3, 9):
        _, valid = targets_of(grid_offsets(k), "2D", SIDE)
        assert pair_mean(torch.ones(B, N, k), valid, "valid").item() == pytest.approx(1)


def test_the_gradient_reaches_the_student_and_the_heads_but_not_the_targets() -> None:
    objective = internal()
    hidden, targets = normal(B, N, D).requires_grad_(), normal(B, N, C, seed=2).requires_grad_()
    objective.loss(hidden, targets)[0].backward()
    assert hidden.grad.abs().sum() > 0
    assert all(parameter.grad.abs().sum() > 0 for parameter in objective.parameters())
    assert targets.grad is None


def test_the_objectives_state_is_its_heads_only() -> None:
    assert all(key.startswith("heads.") for key in internal().state_dict())


def test_biases_of_heads_have_one_axis_so_that_weight_decay_spares_them() -> None:
    assert all((parameter.ndim == 1) == name.endswith("bias") for name, parameter in internal().named_parameters())


@pytest.mark.parametrize("layout", ["1D", "2D"])
def test_output_level_loss_is_the_mean_cross_entropy_of_its_valid_pairs(layout: str) -> None:
    offsets = scan_offsets(3) if layout == "1D" else grid_offsets(3)
    objective = output_level(offsets, layout)
    for parameter in objective.parameters():
        nn.init.normal_(parameter, generator=generator(3))
    hidden, next_token = normal(B, N, D), normal(B, N, seed=2)
    tokens = torch.randint(V, (B, N), generator=generator(4))
    index, valid = targets_of(offsets, layout, SIDE)
    pairs = [next_token.flatten()]
    for k in (1, 2):
        logits = objective.heads[k - 1](hidden[:, valid[:, k]]).flatten(0, 1)
        targets = tokens[:, index[valid[:, k], k]].flatten()
        pairs.append(nn.functional.cross_entropy(logits, targets, reduction="none"))
    loss, terms = objective.loss(hidden, tokens, next_token)
    torch.testing.assert_close(loss, torch.cat(pairs).mean())
    torch.testing.assert_close(terms[f"cross-entropy{offsets[2]}"], pairs[2].mean())


def test_output_level_heads_start_at_the_loss_of_guessing() -> None:
    objective = output_level(grid_offsets(3), "2D")
    tokens = torch.randint(V, (B, N), generator=generator())
    loss, _ = objective.loss(normal(B, N, D), tokens, torch.full((B, N), np.log(V), dtype=torch.float32))
    assert loss.item() == pytest.approx(np.log(V))
    assert len(objective.heads) == 2  # the current position is the model's own head's


def test_cross_entropy_in_chunks_equals_the_whole_with_its_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    head = token_head(D, V)
    nn.init.normal_(head[1].weight, generator=generator())
    tokens = torch.randint(V, (B, N), generator=generator())
    results = []
    for rows in (7, 10_000):
        monkeypatch.setattr(losses, "ROWS_PER_CHUNK", rows)
        hidden = normal(B, N, D).requires_grad_()
        head.zero_grad()
        value = token_cross_entropy(head, hidden, tokens)
        value.square().sum().backward()
        results.append((value.detach(), hidden.grad, head[1].weight.grad.clone()))
    whole = nn.functional.cross_entropy(head(normal(B, N, D)).flatten(0, 1), tokens.flatten(), reduction="none")
    torch.testing.assert_close(results[0][0], whole.view(B, N).detach())
    for chunked, together in zip(*results, strict=True):
        torch.testing.assert_close(chunked, together)


def test_logits_of_all_tokens_are_never_kept_for_the_backward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """At 16,384 codes and 576 tokens those of one image and one head alone would be 38 MB."""
    monkeypatch.setattr(losses, "ROWS_PER_CHUNK", 4)
    objective = output_level(grid_offsets(3), "2D")
    kept: list[int] = []
    tokens = torch.randint(V, (B, N), generator=generator())
    hidden = normal(B, N, D).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()) or tensor, lambda x: x):
        loss, _ = objective.loss(hidden, tokens, torch.zeros(B, N))
    assert max(kept) < B * N * V
    assert not [count for count in kept if count == 4 * V], "chunks are computed again"
    loss.backward()
    assert hidden.grad is not None


def test_the_documented_example_runs_and_learns() -> None:
    page = Path(__file__).parents[2] / "docs" / "objective.md"
    (example,) = re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL)
    names: dict[str, object] = {}
    state = torch.random.get_rng_state()
    exec(example, names)
    torch.random.set_rng_state(state)
    assert names["terms"]["foresight"].item() < -0.2  # type: ignore[index]
