"""PAR as the same transformer in another order: golden numbers, who sees whom, and groups of one as the raster scan."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from golden_weights import GOLDEN, load_golden, worst
from torch import Tensor

from mirai.experiments import recipe
from mirai.experiments.scale import load_scale
from mirai.models.layers import rope_table
from mirai.models.order import TokenOrder
from mirai.models.transformer import Transformer
from mirai.sampling.generate import generate

Order = Literal["raster", "par-4x", "par-16x"]
FOLDER = GOLDEN / "par"
CONFIG = json.loads((FOLDER / "config.json").read_text())
LOGIT_TOLERANCE, GUIDED_TOLERANCE = 5e-5, {1: 5e-5, 2: 1e-4}  # golden/README.md; guided: by scale
ALL_ORDERS = [("raster", 4), ("par-4x", 4), ("par-4x", 8), ("par-16x", 8)]


def build(order: Order = "par-4x", side: int = 4, attention: Literal["flash", "explicit"] = "flash") -> Transformer:
    """A model of golden weights without dropout."""
    size = recipe.Model(
        num_layers=3, num_heads=4, width=64, token_dropout=0, attention_dropout=0, ffn_dropout=0, token_order=order
    )
    model = Transformer(size, num_classes=10, codebook_size=96, grid_side=side, attention=attention)
    load_golden(model)
    return model


def arrays(name: str) -> dict[str, Tensor]:
    with np.load(FOLDER / name) as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}


def random_tokens(side: int, images: int = 2) -> tuple[Tensor, Tensor]:
    tokens = torch.randint(96, (images, side**2), generator=torch.Generator().manual_seed(0))
    return tokens, torch.arange(10, 10 - images, -1)


@pytest.fixture(params=["flash", "explicit"])
def golden(request: pytest.FixtureRequest) -> Transformer:
    return build(attention=request.param)


# The reference


def test_state_dict_has_the_reference_keys_and_shapes_in_order() -> None:
    expected = json.loads((FOLDER / "state_dict_shapes.json").read_text())
    assert [(key, list(value.shape)) for key, value in build().state_dict().items()] == list(expected.items())


def test_embeddings_and_hidden_states_of_every_slot_and_layer_equal_the_reference(golden: Transformer) -> None:
    """All its N+3 slots, the last three of which predict nothing and are not computed in a forward pass."""
    data = arrays("teacher_forced.npz")
    embeddings, *hidden = golden._stream(data["raster_tokens"], data["labels"], 19)
    assert worst(embeddings, data["embeddings"]) == 0
    assert worst(torch.stack(hidden), data["hidden"]) < LOGIT_TOLERANCE


def test_logits_and_tapped_states_equal_the_reference_by_cell(golden: Transformer) -> None:
    data = arrays("teacher_forced.npz")
    place = data["raster_to_sequence"]
    for layer in (1, 2, 3):
        logits, tapped = golden(data["raster_tokens"], data["labels"], tap=layer)
        assert worst(logits, data["logits"][:, place]) < LOGIT_TOLERANCE
        assert worst(tapped, data["hidden"][layer - 1][:, place]) < LOGIT_TOLERANCE
        states = golden.hidden_states(data["raster_tokens"], data["labels"], layer, consumed=False)
        assert torch.equal(states, tapped)


def test_rope_table_equals_the_reference_with_zero_class_and_special_rows() -> None:
    model = build()
    table = torch.view_as_real(rope_table(model.cells, 4, 16, torch.float32))
    assert worst(table, arrays("teacher_forced.npz")["rope_table"]) < 1e-6
    assert not table[[0, 5, 6, 7]].any()


def test_loss_and_gradient_norms_equal_the_reference(golden: Transformer) -> None:
    data = arrays("teacher_forced.npz")
    logits, _ = golden(data["raster_tokens"], data["labels"])
    loss = F.cross_entropy(logits.flatten(0, 1), data["raster_tokens"].flatten())
    loss.backward()
    assert abs(loss.item() - float(data["loss_f64"])) < 1e-5
    norms = {name: parameter.grad.norm().item() for name, parameter in golden.named_parameters()}
    assert norms == pytest.approx(CONFIG["grad_l2_norms"], rel=1e-4)


@pytest.mark.parametrize("guidance", [2, 1])
def test_cached_decoding_of_forced_tokens_equals_the_reference(golden: Transformer, guidance: int) -> None:
    data = arrays("generate.npz")
    expected, labels = data[f"forced_logits_cfg{guidance}"], data["labels"]
    logits = decoded(golden, data["forced_tokens"].repeat(2, 1), torch.cat([labels, torch.full_like(labels, 10)]))
    conditional, unconditional = logits.chunk(2)
    assert worst(unconditional + guidance * (conditional - unconditional), expected) < GUIDED_TOLERANCE[guidance]


REFERENCE_TOTALS = {"B": 110_888_448, "L": 342_910_976, "XL": 774_699_520, "XXL": 1_410_972_672, "3B": 3_096_659_200}


def of_size(size: str, order: Order) -> Transformer:
    """A model of the paper's scale on the meta device."""
    model = load_scale("imagenet256").sizes[size].model.model_copy(update={"token_order": order})
    with torch.device("meta"):
        return Transformer(model, num_classes=1000, codebook_size=16384, grid_side=16)


@pytest.mark.parametrize("size", ["B", "L", "XL"])
def test_real_sizes_have_the_reference_state_dict(size: str, project: Path) -> None:
    expected: dict[str, Any] = json.loads((FOLDER / "real_sizes.json").read_text())[f"GPT-{size}"]
    model = of_size(size, "par-4x")
    assert {key: list(value.shape) for key, value in model.state_dict().items()} == expected["keys"]
    assert sum(parameter.numel() for parameter in model.parameters()) == expected["total"]


@pytest.mark.parametrize(("order", "specials"), [("par-4x", 3), ("par-16x", 15)])
@pytest.mark.parametrize("size", REFERENCE_TOTALS)
def test_par_adds_its_special_embeddings_to_every_size_and_nothing_else(
    size: str, order: Order, specials: int, project: Path
) -> None:
    model = of_size(size, order)
    total = sum(parameter.numel() for parameter in model.parameters())
    assert total == REFERENCE_TOTALS[size] + specials * model.model.width


# Who sees whom


def group_of_cells(model: Transformer) -> Tensor:
    """Number of the group that each cell's token is written in (N,)."""
    groups = [number for number, group in enumerate(model.order.groups) for _ in group]
    return model.by_cell(torch.tensor([groups]))[0]


def changed_cells(model: Transformer, cell: int, consumed: bool | None) -> Tensor:
    """Cells whose logits (None) or states after block 2 change, at all, with the token of one cell (N,)."""
    tokens, labels = random_tokens(model.grid_side)
    other = tokens.clone()
    other[:, cell] = (other[:, cell] + 1) % 96
    if consumed is None:
        results = [model(given, labels)[0] for given in (tokens, other)]
    else:
        results = [model.hidden_states(given, labels, 2, consumed) for given in (tokens, other)]
    return (results[0] != results[1]).any(dim=2).all(dim=0)


@pytest.mark.parametrize("attention", ["flash", "explicit"])
@pytest.mark.parametrize(("order", "side"), ALL_ORDERS)
def test_a_token_changes_the_predictions_of_strictly_later_groups_and_no_others(
    order: Order, side: int, attention: Literal["flash", "explicit"]
) -> None:
    model = build(order, side, attention)
    group = group_of_cells(model)
    for cell in range(0, side**2, 3):
        later = group > group[cell]
        assert torch.equal(changed_cells(model, cell, None), later)
        assert torch.equal(changed_cells(model, cell, False), later)


@pytest.mark.parametrize(("order", "side"), ALL_ORDERS)
def test_a_token_changes_the_consuming_states_of_its_own_and_later_groups_and_no_others(
    order: Order, side: int
) -> None:
    model = build(order, side)
    group = group_of_cells(model)
    for cell in range(0, side**2, 3):
        assert torch.equal(changed_cells(model, cell, True), group >= group[cell])


def test_the_consuming_state_of_a_cell_is_that_of_the_slot_that_holds_its_token() -> None:
    """Token n sits in slot n+1 for n < P and in slot n+P afterwards; of 19 slots the reference has all but the last's."""
    data, model = arrays("teacher_forced.npz"), build()
    states = model.hidden_states(data["raster_tokens"], data["labels"], 2, consumed=True)
    assert states.shape == (4, 16, 64)
    for token, cell in enumerate(data["sequence_to_raster"][:12].tolist()):  # the last group sees the last slot
        slot = token + 1 if token < 4 else token + 4
        assert worst(states[:, cell], data["hidden"][1][:, slot]) < LOGIT_TOLERANCE


# Decoding


def decoded(model: Transformer, sequence: Tensor, labels: Tensor) -> Tensor:
    """Tokens (B,N) of the sequence fed group by group through the cache -> logits (B,N,V) in sequence order."""
    cache = model.new_cache(len(labels))
    first, *groups = model.order.groups
    logits, before = [model.prefill(labels, cache)], first
    for group in groups:
        logits.append(model.decode_step(sequence[:, before.start : before.stop], group, cache))
        before = group
    return torch.cat(logits, dim=1)


@pytest.mark.parametrize("attention", ["flash", "explicit"])
@pytest.mark.parametrize(("order", "side"), ALL_ORDERS)
def test_cached_logits_equal_teacher_forced_logits(
    order: Order, side: int, attention: Literal["flash", "explicit"]
) -> None:
    model = build(order, side, attention).double()
    tokens, labels = random_tokens(side)
    forced, _ = model(tokens, labels)
    assert worst(model.by_cell(decoded(model, tokens[:, model.sequence], labels)), forced) < 1e-12


# Groups of one


def raster_results(attention: Literal["flash", "explicit"]) -> list[Tensor]:
    """Logits, gradients, states and samples of a model in raster order."""
    model = build("raster", attention=attention)
    tokens, labels = random_tokens(4)
    logits, tapped = model(tokens, labels, tap=2)
    F.cross_entropy(logits.flatten(0, 1), tokens.flatten()).backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.numel()]
    states = [model.hidden_states(tokens, labels, 2, consumed) for consumed in (True, False)]
    codes = generate(model.eval(), labels, torch.from_numpy(np.random.default_rng(0).random((2, 16))), guidance=2.0)
    return [logits, tapped, *gradients, *states, codes]


def test_groups_of_one_take_the_general_way_to_the_bits_of_the_raster_scan(monkeypatch: pytest.MonkeyPatch) -> None:
    """The raster scan's shortcuts (no mask, permutation or special embedding) are shortcuts and nothing else."""
    expected = raster_results("explicit")
    monkeypatch.setattr(TokenOrder, "is_raster", False)
    assert build("raster").mask is not None
    assert build("raster").spe_tok_embeddings is not None
    results = raster_results("explicit")
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(results, expected, strict=True))


def test_specials_start_like_other_embeddings_and_leave_them_as_in_the_raster_model() -> None:
    model, raster = build(), build("raster")
    model.init_weights(0)
    raster.init_weights(0)
    weights = model.state_dict()
    special = weights.pop("spe_tok_embeddings.special_embeddings.weight")
    assert special.shape == (3, 64)
    assert special.std().item() == pytest.approx(0.02, rel=0.2)
    assert all(torch.equal(weights[name], value) for name, value in raster.state_dict().items())


def test_specials_are_dropped_out_with_the_other_inputs() -> None:
    data, model = arrays("teacher_forced.npz"), build()
    model.token_dropout.p = 0.5
    torch.manual_seed(0)
    inputs = next(model._stream(data["raster_tokens"], data["labels"], 16))
    assert (inputs[:, 5:8] == 0).float().mean().item() == pytest.approx(0.5, abs=0.1)
