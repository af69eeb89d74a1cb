from __future__ import annotations

import json
import math
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
from mirai.models.layers import Dropout, rope_table
from mirai.models.transformer import Transformer, drop_labels

FOLDER = GOLDEN / "llamagen_gpt"
CONFIG = json.loads((FOLDER / "config.json").read_text())
KERNELS = ("flash", "explicit")
LOGIT_TOLERANCE, GUIDED_TOLERANCE = 5e-5, {1: 5e-5, 2: 1e-4}  # golden/README.md; guided: by scale
GOLDEN_MODEL = recipe.Model(
    num_layers=3, num_heads=4, width=64, token_dropout=0.0, attention_dropout=0.0, ffn_dropout=0.0
)


def build(model: recipe.Model = GOLDEN_MODEL, attention: Literal["flash", "explicit"] = "flash") -> Transformer:
    return Transformer(model, num_classes=10, codebook_size=96, grid_side=4, attention=attention)


def arrays(name: str) -> dict[str, Tensor]:
    with np.load(FOLDER / name) as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}


@pytest.fixture(params=KERNELS)
def golden(request: pytest.FixtureRequest) -> Transformer:
    model = build(attention=request.param)
    load_golden(model)
    return model


def test_state_dict_has_the_reference_keys_and_shapes_in_order() -> None:
    expected = json.loads((FOLDER / "state_dict_shapes.json").read_text())
    assert [(key, list(value.shape)) for key, value in build().state_dict().items()] == list(expected.items())


def test_logits_and_hidden_states_of_every_layer_equal_the_reference(golden: Transformer) -> None:
    data = arrays("teacher_forced.npz")
    for layer in (1, 2, 3):
        logits, tapped = golden(data["tokens"], data["labels"], tap=layer)
        assert worst(logits, data["logits"]) < LOGIT_TOLERANCE
        assert worst(tapped, data["hidden"][layer - 1]) < LOGIT_TOLERANCE
        truncated = golden.hidden_states(data["tokens"], data["labels"], layer, consumed=False)
        assert torch.equal(truncated, tapped)
    assert golden(data["tokens"], data["labels"])[1] is None


def test_inputs_of_the_first_block_equal_the_reference() -> None:
    model, data = build(), arrays("teacher_forced.npz")
    load_golden(model)
    assert worst(next(model._stream(data["tokens"], data["labels"], 16)), data["embeddings"]) == 0


def test_rope_table_equals_the_reference_with_a_zero_class_row() -> None:
    model = build()
    table = torch.view_as_real(rope_table(model.cells, 4, 16, torch.float32))
    assert worst(table, arrays("teacher_forced.npz")["rope_table"]) < 1e-6
    assert not table[0].any()


def test_loss_and_gradient_norms_equal_the_reference(golden: Transformer) -> None:
    data = arrays("teacher_forced.npz")
    logits, _ = golden(data["tokens"], data["labels"])
    loss = F.cross_entropy(logits.flatten(0, 1), data["tokens"].flatten())
    loss.backward()
    assert abs(loss.item() - float(data["loss_f64"])) < 1e-5
    norms = {name: parameter.grad.norm().item() for name, parameter in golden.named_parameters()}
    assert norms == pytest.approx(CONFIG["grad_l2_norms"], rel=1e-4)


@pytest.mark.parametrize("guidance", [2, 1])
def test_cached_decoding_of_forced_tokens_equals_the_reference(golden: Transformer, guidance: int) -> None:
    data = arrays("generate.npz")
    tokens, expected = data["forced_tokens"], data[f"forced_logits_cfg{guidance}"]
    labels = torch.cat([data["labels"], torch.full_like(data["labels"], golden.null_class)])
    cache = golden.new_cache(len(labels))
    for position in range(golden.num_tokens):
        if position == 0:
            logits = golden.prefill(labels, cache)
        else:
            before = tokens[:, position - 1 : position].repeat(2, 1)
            logits = golden.decode_step(before, range(position, position + 1), cache)
        conditional, unconditional = logits[:, 0].chunk(2)
        guided = unconditional + guidance * (conditional - unconditional)
        assert worst(guided, expected[:, position]) < GUIDED_TOLERANCE[guidance]


def test_changing_a_token_leaves_earlier_logits_unchanged(golden: Transformer) -> None:
    data = arrays("teacher_forced.npz")
    tokens = data["tokens"]
    before, hidden_before = golden(tokens, data["labels"], tap=2)
    for position in (0, 7, 14):
        changed = tokens.clone()
        changed[:, position] = (changed[:, position] + 1) % 96
        after, hidden_after = golden(changed, data["labels"], tap=2)
        # x_{position+1} (1-based) sits in slot position+1: all slots before it are untouched, its own is not
        assert torch.equal(after[:, : position + 1], before[:, : position + 1])
        assert torch.equal(hidden_after[:, : position + 1], hidden_before[:, : position + 1])
        assert worst(hidden_after[:, position + 1], hidden_before[:, position + 1]) > 1e-2


def test_the_state_that_consumed_a_token_is_the_one_that_predicts_the_next(golden: Transformer) -> None:
    data = arrays("teacher_forced.npz")
    teacher = golden.eval().hidden_states(data["tokens"], data["labels"], 2, consumed=True)
    assert teacher.shape == (4, 16, 64)
    assert worst(teacher[:, :15], data["hidden"][1][:, 1:]) < LOGIT_TOLERANCE


def test_first_loss_is_exactly_the_log_of_the_codebook_size() -> None:
    model = build()
    model.init_weights(0)
    data = arrays("teacher_forced.npz")
    logits, _ = model(data["tokens"], data["labels"])
    assert F.cross_entropy(logits.flatten(0, 1), data["tokens"].flatten()).item() == pytest.approx(
        math.log(96), abs=1e-6
    )
    assert not logits.any()


def test_initial_weights_are_normal_and_depend_on_the_seed_and_their_name_only() -> None:
    model, deeper = build(), build(GOLDEN_MODEL.model_copy(update={"num_layers": 5}))
    state = torch.random.get_rng_state()
    model.init_weights(3)
    deeper.init_weights(3)
    assert torch.equal(torch.random.get_rng_state(), state)
    weights, more = model.state_dict(), deeper.state_dict()
    assert all(torch.equal(weights[key], more[key]) for key in weights)
    matrices = [value for key, value in weights.items() if value.ndim == 2 and key != "output.weight"]
    assert all(abs(value.std().item() / 0.02 - 1) < 0.1 for value in matrices)
    assert not torch.equal(weights["layers.0.feed_forward.w1.weight"], weights["layers.0.feed_forward.w3.weight"])
    model.init_weights(4)
    assert not torch.equal(model.tok_embeddings.weight, deeper.tok_embeddings.weight)


def test_construction_draws_nothing_from_the_global_generator() -> None:
    state = torch.random.get_rng_state()
    build()
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_label_and_the_null_class_reach_the_logits(golden: Transformer) -> None:
    tokens = arrays("teacher_forced.npz")["tokens"][:1].repeat(3, 1)
    logits, _ = golden(tokens, torch.tensor([0, 1, golden.null_class]))
    assert golden.null_class == 10
    assert len(golden.cls_embedding.embedding_table.weight) == 11
    assert all(worst(logits[a], logits[b]) > 1e-3 for a, b in ((0, 1), (0, 2), (1, 2)))


def test_dropped_labels_become_the_null_class() -> None:
    dropped = torch.tensor([False, True, False])
    assert drop_labels(torch.tensor([3, 4, 5]), dropped, 10).tolist() == [3, 10, 5]


@pytest.mark.parametrize("place", ["token_dropout", "attention_dropout", "ffn_dropout"])
def test_each_dropout_acts_in_train_mode_only(place: str) -> None:
    data = arrays("teacher_forced.npz")
    plain, model = build(), build(GOLDEN_MODEL.model_copy(update={place: 0.5}))
    load_golden(plain)
    load_golden(model)
    inputs = (data["tokens"], data["labels"])
    assert torch.equal(model.eval()(*inputs)[0], plain(*inputs)[0])
    assert worst(model.train()(*inputs)[0], plain(*inputs)[0]) > 0.1


def test_dropout_sits_on_embeddings_and_behind_both_output_maps() -> None:
    rates = {"token_dropout": 0.25, "attention_dropout": 0.5, "ffn_dropout": 0.75}
    model = build(GOLDEN_MODEL.model_copy(update=rates))
    load_golden(model)
    data = arrays("teacher_forced.npz")
    tokens = data["tokens"].repeat(16, 1)
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    block = model.layers[0]
    for name, module in (("attention_dropout", block.attention), ("ffn_dropout", block.feed_forward)):
        module.dropout.register_forward_hook(lambda _, x, out, name=name: seen.update({name: (x[0], out)}))
        module.register_forward_hook(lambda _, __, out, name=name: seen.update({f"{name} branch": (out, out)}))
    block.register_forward_hook(
        lambda _, inputs, __: seen.update({"token_dropout": (data["embeddings"].repeat(16, 1, 1), inputs[0])})
    )
    torch.manual_seed(0)
    model(tokens, data["labels"].repeat(16))
    for name, rate in rates.items():
        before, after = seen[name]
        kept = after != 0
        assert kept.double().mean().item() == pytest.approx(
            1 - rate, abs=0.01
        )  # 65,536 elements: deviation below 0.002
        assert torch.allclose(after[kept], before[kept] / (1 - rate), rtol=1e-5)
    for name in ("attention_dropout", "ffn_dropout"):
        assert torch.equal(seen[name][1], seen[f"{name} branch"][1])  # nothing behind the dropout but the residual sum


def test_dropout_depends_on_the_global_seed_only_and_differs_between_places() -> None:
    dropout, x = Dropout(0.1), torch.ones(50, 50)
    torch.manual_seed(1)
    first, second = dropout(x), dropout(x)
    torch.manual_seed(1)
    assert torch.equal(dropout(x), first)
    assert not torch.equal(first, second)
    assert dropout(x[:1, :3]).shape == (1, 3)


def test_a_half_precision_model_keeps_full_precision_positions_and_logits() -> None:
    model = build()
    load_golden(model)
    data = arrays("teacher_forced.npz")
    logits, _ = model.bfloat16()(data["tokens"], data["labels"])
    assert logits.dtype == torch.float32
    assert worst(logits, data["logits"]) < 0.3  # bfloat16 noise; rounded rotary angles would be off by units
    assert model.cells.tolist() == list(range(-1, 16))


def of_size(size: str) -> Transformer:
    """A model of the paper's scale on the meta device."""
    model = load_scale("imagenet256").sizes[size].model
    with torch.device("meta"):
        return Transformer(model, num_classes=1000, codebook_size=16384, grid_side=16)


REFERENCE_TOTALS = {"B": 110_888_448, "L": 342_910_976, "XL": 774_699_520, "XXL": 1_410_972_672, "3B": 3_096_659_200}


@pytest.mark.parametrize("size", REFERENCE_TOTALS)
def test_every_size_has_the_reference_number_of_parameters(size: str, project: Path) -> None:
    model = of_size(size)
    assert sum(parameter.numel() for parameter in model.parameters()) == REFERENCE_TOTALS[size]


@pytest.mark.parametrize("size", ["B", "L", "XL"])
def test_real_sizes_have_the_reference_state_dict(size: str, project: Path) -> None:
    expected: dict[str, Any] = json.loads((FOLDER / "real_sizes.json").read_text())[f"GPT-{size}"]
    model = of_size(size)
    assert {key: list(value.shape) for key, value in model.state_dict().items()} == expected["keys"]


def test_parameters_of_the_base_size_split_as_in_the_reference(project: Path) -> None:
    model = of_size("B")
    count = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    assert count["tok_embeddings"] == count["output"] == 12_582_912
    assert count["cls_embedding"] == 768_768
    assert count["layers"] == 12 * 7_079_424
    assert count["norm"] == 768
    assert sum(p.numel() for p in model.parameters() if p.ndim == 1) == 12 * 1536 + 768  # not decayed
