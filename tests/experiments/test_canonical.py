"""Equal recipes have equal keys, unequal ones have not: pairs by hand, then every field of every recipe type."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from typing import Any, get_args

import pytest
from pydantic import ValidationError

from mirai.experiments.canonical import canonical_run
from mirai.experiments.grid import load_grid
from mirai.experiments.recipe import Recipe, Run
from mirai.experiments.stages import Stage, metrics_stage

RunOf = Callable[..., Run]


@pytest.fixture
def run_of(write_grid: Callable[..., str]) -> RunOf:
    """The canonical run of one row with these axes, at a scale."""

    def run(scale: str = "demo", tokenizer_training: dict[str, Any] | None = None, **axes: Any) -> Run:
        run = load_grid(write_grid(axes), scale).rows[0].runs[0]
        if tokenizer_training is None:
            return run
        tokenizer = run.tokenizer.model_dump(mode="json") | {"weights": None, "training": tokenizer_training}
        return changed(run, ("tokenizer",), tokenizer)

    return run


def changed(run: Run, path: tuple[str, ...], value: Any) -> Run:
    """The canonical form of the run with one value replaced, validated as a whole. Dots are keys of the JSON form."""
    content = run.model_dump(mode="json")
    place = content
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = value
    return canonical_run(Run.model_validate_json(json.dumps(content)))


def key(run: Run) -> str:
    return metrics_stage(run).key


def keys_by_kind(run: Run) -> dict[str, set[str]]:
    """Keys of all stages behind a run; trunks of its state are left to the state tree's tests."""
    found: dict[str, set[str]] = {}

    def visit(stage: Stage) -> None:
        found.setdefault(stage.kind, set()).add(stage.key)
        for needed in stage.needs():
            visit(needed)

    visit(metrics_stage(run))
    return found


# Two rows that mean the same. demo has 8x8 tokens, so N = 64.
EQUAL: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "lambda 0 is the baseline": (
        {"arm": "mirai-i", "schedule": {"kind": "constant", "values": [0.0]}},
        {"arm": "baseline"},
    ),
    "a step from 0 to 0 is the baseline": (
        {"arm": "mirai-e", "schedule": {"kind": "step", "values": [0.0, 0.0]}},
        {"arm": "baseline"},
    ),
    "a step from 2 to 2 is constant 2": (
        {"arm": "mirai-i", "schedule": {"kind": "step", "values": [2.0, 2.0]}},
        {"arm": "mirai-i", "schedule": {"kind": "constant", "values": [2.0]}},
    ),
    "thirds of 2 are constant 2": (
        {"arm": "mirai-i", "schedule": {"kind": "thirds", "values": [2.0, 2.0, 2.0]}},
        {"arm": "mirai-i"},
    ),
    "a cosine from 2 to 2 is constant 2": (
        {"arm": "mirai-i", "schedule": {"kind": "cosine", "values": [2.0, 2.0]}},
        {"arm": "mirai-i"},
    ),
    "K=1 in 1D is K=1 in 2D": (
        {"arm": "mirai-e", "layout": "1D", "num_tokens": 1},
        {"arm": "mirai-e", "layout": "2D", "num_tokens": 1},
    ),
    "K=3 in 2D is current, right, below": (
        {"arm": "mirai-e", "num_tokens": 3},
        {"arm": "mirai-e", "offsets": [[0, 0], [0, 1], [1, 0]]},
    ),
    "the order of offsets says nothing": (
        {"arm": "mirai-e", "offsets": [[1, 0], [0, 0], [0, 1]]},
        {"arm": "mirai-e", "offsets": [[0, 0], [0, 1], [1, 0]]},
    ),
    "K=4 in 1D is its offsets along the scan": (
        {"arm": "mirai-e", "layout": "1D", "num_tokens": 4},
        {"arm": "mirai-e", "layout": "1D", "offsets": [[0, 3], [0, 1], [0, 2], [0, 0]]},
    ),
    "a teacher layer equal to the aligned one is none": (
        {"arm": "mirai-e", "align_layer": 6, "teacher_layer": 6},
        {"arm": "mirai-e", "align_layer": 6},
    ),
    "the current position has no borders": (
        {"arm": "mirai-i", "borders": "all"},
        {"arm": "mirai-i", "borders": "valid"},
    ),
    "a block of all N tokens is full attention": (
        {"arm": "mirai-i", "block_size": 64},
        {"arm": "mirai-i"},
    ),
    "defaults may be spelt out": (
        {
            "arm": "mirai-i",
            "size": "B",
            "epochs": 80,
            "align_layer": 8,
            "num_tokens": 1,
            "schedule": {"kind": "constant", "values": [2.0]},
            "warmup_epochs": 0,
            "encoder": "base",
            "guidance": 1.5,
            "weights": "raw",
        },
        {"arm": "mirai-i"},
    ),
}


@pytest.mark.parametrize("name", EQUAL)
def test_rows_that_mean_the_same_are_one_run(name: str, run_of: RunOf) -> None:
    first, second = EQUAL[name]
    assert key(run_of(**first)) == key(run_of(**second))


def test_a_run_whose_lambda_is_always_0_is_the_baseline_run_itself(run_of: RunOf) -> None:
    dark = run_of(arm="mirai-i", schedule={"kind": "thirds", "values": [0.0, 0.0, 0.0]})
    assert dark == run_of()


def test_what_warm_up_swallows_of_a_schedule_is_not_in_the_key(run_of: RunOf) -> None:
    """A grid may not say it; a run may."""
    run, place = run_of(arm="mirai-e"), ("foresight", "schedule")
    swallowed, constant, dark = (
        changed(run, place, {"kind": kind, "values": values, "warmup_epochs": 40})
        for kind, values in (("step", [2.0, 1.0]), ("constant", [1.0]), ("step", [2.0, 0.0]))
    )
    assert key(swallowed) == key(constant)
    assert key(dark) == key(run_of())


UNEQUAL: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "K=3 in 1D is not K=3 in 2D": (
        {"arm": "mirai-e", "layout": "1D", "num_tokens": 3},
        {"arm": "mirai-e", "layout": "2D", "num_tokens": 3},
    ),
    "the scan wraps where the grid ends, so the same offsets differ by layout": (
        {"arm": "mirai-e", "layout": "1D", "offsets": [[0, 0], [0, 1]]},
        {"arm": "mirai-e", "layout": "2D", "offsets": [[0, 0], [0, 1]]},
    ),
    "borders matter as soon as a neighbour is looked at": (
        {"arm": "mirai-e", "borders": "all"},
        {"arm": "mirai-e", "borders": "valid"},
    ),
    "a block of N - 1 tokens is not full attention": (
        {"arm": "mirai-i", "block_size": 63},
        {"arm": "mirai-i"},
    ),
    "a lambda of 0 at the end still had one before": (
        {"arm": "mirai-e", "schedule": {"kind": "step", "values": [2.0, 0.0]}},
        {"arm": "baseline"},
    ),
    "a step and a cosine between the same values differ": (
        {"arm": "mirai-i", "schedule": {"kind": "step", "values": [2.0, 1.0]}},
        {"arm": "mirai-i", "schedule": {"kind": "cosine", "values": [2.0, 1.0]}},
    ),
    "the three arms differ": ({"arm": "mirai-i", "offsets": [[0, 0]]}, {"arm": "mirai-e", "offsets": [[0, 0]]}),
    "output level is not internal": ({"arm": "output-level"}, {"arm": "mirai-e"}),
}


@pytest.mark.parametrize("name", UNEQUAL)
def test_rows_that_differ_are_two_runs(name: str, run_of: RunOf) -> None:
    first, second = UNEQUAL[name]
    assert key(run_of(**first)) != key(run_of(**second))


def test_data_that_are_not_generated_have_neither_size_nor_seed(run_of: RunOf) -> None:
    digits, scenes = run_of("digits"), run_of("demo")
    for field, value in (("seed", 1), ("num_images", 99)):
        assert key(changed(digits, ("data", field), value)) == key(digits)
        assert key(changed(scenes, ("data", field), value)) != key(scenes)


def test_a_random_encoder_has_no_training(run_of: RunOf) -> None:
    place = ("foresight", "encoder", "training")
    random, trained = run_of(arm="mirai-i", encoder="random"), run_of(arm="mirai-i", encoder="mae")
    for field, value in (("steps", 7), ("learning_rate", 0.5), ("batch_size", 7), ("mask_ratio", 0.5)):
        assert key(changed(random, (*place, field), value)) == key(random)
        assert key(changed(trained, (*place, field), value)) != key(trained)
    assert key(changed(random, (*place, "seed"), 7)) != key(random), "its weights are drawn from the seed"


def test_samples_resized_to_the_size_they_have_are_not_resized(run_of: RunOf) -> None:
    run = run_of("imagenet256")
    for size, same in ((256, True), (128, False)):
        assert (key(changed(run, ("evaluation", "image_size"), size)) == key(run)) == same


def test_a_block_of_more_than_all_tokens_is_full_attention(run_of: RunOf) -> None:
    run = run_of(arm="mirai-i")
    assert changed(run, ("foresight", "encoder", "block_size"), 65) == run


def test_a_run_scored_at_its_last_epoch_is_the_run(run_of: RunOf) -> None:
    run = run_of(epochs=80)
    assert changed(run, ("at_epoch",), 80) == run
    assert changed(run, ("at_epoch",), 79) != run


def test_a_run_scored_on_its_way_is_the_shorter_run_where_nothing_looks_ahead(run_of: RunOf) -> None:
    """Mirai-E's lambda steps down at half of all epochs, so that its 80 epochs are no part of its 300."""
    for arm, same in (("baseline", True), ("mirai-i", True), ("mirai-e", False)):
        on_its_way = changed(run_of(arm=arm, epochs=300), ("at_epoch",), 80)
        assert (key(on_its_way) == key(run_of(arm=arm, epochs=80))) == same


def test_seams_are_kept_or_masked_only_where_a_target_lies_behind_one(run_of: RunOf) -> None:
    """8 x 8 tokens as 2 x 2 regions of 4 x 4: four columns on is another member of the group written at once."""
    for axes, same in (
        ({}, True),
        ({"layout": "1D"}, True),
        ({"token_order": "par-4x"}, False),
        ({"token_order": "par-4x", "layout": "1D"}, False),
        ({"token_order": "par-4x", "num_tokens": 1}, True),
        ({"token_order": "par-4x", "offsets": [[0, 4], [4, 0]]}, True),
        ({"token_order": "par-4x", "offsets": [[0, 5]]}, True),
        ({"token_order": "par-4x", "offsets": [[0, 3]]}, False),
    ):
        run = run_of(arm="mirai-e", **axes)
        assert (changed(run, ("foresight", "seams"), "keep") == run) == same, axes


def test_a_transformer_head_has_the_width_of_the_model(run_of: RunOf) -> None:
    mlp, transformer = run_of(arm="mirai-i"), run_of(arm="mirai-i", head="transformer")
    assert changed(transformer, ("foresight", "head", "width"), 7) == transformer
    assert key(changed(mlp, ("foresight", "head", "width"), 7)) != key(mlp) != key(transformer)


def test_resized_samples_are_compared_with_the_data_sets_own_images_of_that_size(run_of: RunOf) -> None:
    small = run_of("demo")
    large = changed(changed(small, ("data", "resolution"), 48), ("evaluation", "image_size"), 32)
    as_decoded = changed(large, ("evaluation", "image_size"), None)
    reference = metrics_stage(small).reference_stage()
    assert metrics_stage(large).reference_stage().key == reference.key
    assert metrics_stage(large).reference_stage().features_stage().key == reference.features_stage().key
    assert metrics_stage(as_decoded).reference_stage().key != reference.key
    assert len({key(run) for run in (small, large, as_decoded)}) == 3


# Another value for every field of every recipe type; the first that is possible in a run is taken. A new field
# belongs here, and, where it has no effect, in VOID.
OTHER: dict[str, list[Any]] = {
    "Data.name": ["other"],
    "Data.source": ["digits", "scenes"],
    "Data.resolution": [64, 512],
    "Data.num_classes": [7],
    "Data.num_images": [7],
    "Data.seed": [7],
    "Data.crop_range": [1.2],
    "Data.views": [1],
    "Data.corrupt_images": ["skip", "refuse"],
    "Adversarial.weight": [0.7],
    "Adversarial.start_step": [7],
    "TokenizerTraining.steps": [7, 77777],
    "TokenizerTraining.batch_size": [7, 64],
    "TokenizerTraining.micro_batch": [4],
    "TokenizerTraining.lr_schedule": ["constant", "cosine"],
    "TokenizerTraining.betas": [[0.7, 0.8]],
    "TokenizerTraining.augment": [True, False],
    "TokenizerTraining.init": ["pytorch", "near-linear"],
    "TokenizerTraining.perceptual_weight": [0.7],
    "TokenizerTraining.learning_rate": [0.7],
    "TokenizerTraining.num_images": [7],
    "TokenizerTraining.commitment": [0.7],
    "TokenizerTraining.restart_every": [7],
    "TokenizerTraining.seed": [7],
    "Tokenizer.name": ["other"],
    "Tokenizer.channels": [7],
    "Tokenizer.multipliers": [[2, 2, 4], [1, 2, 2, 2, 4]],
    "Tokenizer.res_blocks": [7],
    "Tokenizer.z_channels": [7],
    "Tokenizer.codebook_size": [77],
    "Tokenizer.codebook_dim": [7],
    "Tokenizer.group_norm_groups": [4],
    "Tokenizer.weights": ["other"],
    "Model.num_layers": [16],
    "Model.num_heads": [8],
    "Model.width": [1536],
    "Model.ffn_multiple": [7],
    "Model.token_dropout": [0.7],
    "Model.attention_dropout": [0.7],
    "Model.ffn_dropout": [0.7],
    "Model.class_dropout": [0.7],
    "Model.token_order": ["par-4x"],
    "EncoderTraining.objective": ["supervised", "mae"],
    "EncoderTraining.width": [32],
    "EncoderTraining.num_layers": [7],
    "EncoderTraining.num_heads": [8],
    "EncoderTraining.steps": [7],
    "EncoderTraining.batch_size": [7],
    "EncoderTraining.learning_rate": [0.7],
    "EncoderTraining.num_images": [7],
    "EncoderTraining.mask_ratio": [0.7],
    "EncoderTraining.seed": [7],
    "Encoder.name": ["other"],
    "Encoder.timm": ["other"],
    "Encoder.image_size": [448],
    "Encoder.layer": [1],
    "Encoder.block_size": [4],
    "Schedule.kind": ["cosine"],
    "Schedule.values": [[3.0], [3.0, 1.0]],
    "Schedule.warmup_epochs": [7],
    "Head.kind": ["transformer", "causal-transformer", "mlp"],
    "Head.width": [7],
    "Teacher.epochs": [7],
    "Teacher.seed": [7],
    "Foresight.layout": ["1D"],
    "Foresight.offsets": [[[0, 2]]],
    "Foresight.layer": [7],
    "Foresight.teacher_layer": [7],
    "Foresight.ema_slot_shift": [0],
    "Foresight.borders": ["all"],
    "Foresight.seams": ["keep"],
    "Training.batch_size": [16],
    "Training.epoch_images": [1024],
    "Training.learning_rate": [0.7],
    "Training.lr_schedule": ["cosine"],
    "Training.betas": [[0.7, 0.8]],
    "Training.weight_decay": [0.7],
    "Training.clip_norm": [0.7],
    "Training.ema_decay": [0.7],
    "Training.dtype": ["float32"],
    "Training.seed": [7],
    "Sampling.num_samples": [7],
    "Sampling.batch_size": [7],
    "Sampling.guidance": [1.7],
    "Sampling.temperature": [0.7],
    "Sampling.top_k": [7],
    "Sampling.top_p": [0.7],
    "Sampling.weights": ["ema"],
    "Sampling.labels": ["balanced"],
    "Sampling.dtype": ["bfloat16", "float32"],
    "Sampling.seed": [7],
    "FeatureNetwork.name": ["other"],
    "FeatureNetwork.targets": ["moments"],
    "FeatureNetwork.width": [7],
    "FeatureNetwork.spatial_channels": [7],
    "FeatureNetwork.steps": [7],
    "FeatureNetwork.batch_size": [7],
    "FeatureNetwork.learning_rate": [0.7],
    "FeatureNetwork.num_images": [7],
    "FeatureNetwork.seed": [7],
    "Evaluation.reference": ["other"],
    "Evaluation.num_reference": [77],
    "Evaluation.image_size": [128],
    "Evaluation.is_split_size": [77],
    "Evaluation.neighbours": [7],
    "Evaluation.halves": [7],
    "Run.epochs": [120],
    "Run.at_epoch": [40],
}
# Fields that cannot change alone: they follow from which of the others are given.
BOUND = {"Foresight.level", "Foresight.source", "FeatureNetwork.kind"}

NAMES = {"Tokenizer.name", "Encoder.name", "FeatureNetwork.name"}  # what a table prints
RASTER = {"Foresight.seams"}  # of a scan without regions
NO_EMA = {"Foresight.ema_slot_shift", "Foresight.teacher_layer"}  # of a foresight that is no EMA's
# Runs that between them can have every field, and the fields without effect in each.
RUNS: dict[str, tuple[str, dict[str, Any], set[str]]] = {
    "mae": (
        "demo",
        {"arm": "mirai-i", "encoder": "mae", "block_size": 8, "offsets": [[0, 0], [0, 1]]},
        NAMES | NO_EMA | RASTER | {"Data.corrupt_images", "Data.crop_range"},
    ),
    "ema": (
        "demo",
        {"arm": "mirai-e", "offsets": [[0, 0], [0, 1]]},
        NAMES - {"Encoder.name"} | RASTER | {"Data.corrupt_images", "Data.crop_range"},
    ),
    "pretrained": (
        "demo",
        {"arm": "mirai-e", "ema": "pretrained", "head": "transformer", "token_order": "par-4x"},
        NAMES - {"Encoder.name"} | {"Head.width", "Data.corrupt_images", "Data.crop_range"},
    ),
    "timm": (
        "imagenet256",
        {"arm": "mirai-i"},
        # a folder is as large as it is, Inception's weights are given, K = 1 has neither layout nor borders
        NAMES
        | NO_EMA
        | RASTER
        | {"Data.num_images", "Data.seed", "FeatureNetwork.seed", "Foresight.layout", "Foresight.borders"},
    ),
    "own VQ-16": (
        "imagenet256",
        {
            "arm": "mirai-i",
            "tokenizer_training": {
                "steps": 400360,
                "batch_size": 128,
                "micro_batch": 16,
                "learning_rate": 1e-4,
                "num_images": 1281167,
                "adversarial": {},
            },
        },
        NAMES
        | NO_EMA
        | RASTER
        | {"Data.num_images", "Data.seed", "FeatureNetwork.seed", "Foresight.layout", "Foresight.borders"},
    ),
    "output": (
        "demo",
        {"arm": "output-level"},
        NAMES - {"Encoder.name"} | NO_EMA | RASTER | {"Foresight.layer", "Data.corrupt_images", "Data.crop_range"},
    ),
}


def nested(annotation: Any) -> type[Recipe] | None:
    """The recipe type that a field holds, if it does: its own fields then count in its place."""
    options = get_args(annotation) or (annotation,)
    return next((kind for kind in options if isinstance(kind, type) and issubclass(kind, Recipe)), None)


def all_fields(kind: type[Recipe]) -> set[str]:
    """Names of all fields that a recipe of this type can have inside."""
    found: set[str] = set()
    for name, info in kind.model_fields.items():
        inner = nested(info.annotation)
        found |= {f"{kind.__name__}.{name}"} if inner is None else all_fields(inner)
    return found


def fields(recipe: Recipe, path: tuple[str, ...] = ()) -> Iterator[tuple[str, tuple[str, ...], Any]]:
    """Name, place and value of every field inside a recipe."""
    for name, info in type(recipe).model_fields.items():
        value = getattr(recipe, name)
        if isinstance(value, Recipe):
            yield from fields(value, (*path, name))
        elif not nested(info.annotation):
            yield f"{type(recipe).__name__}.{name}", (*path, name), value


def variations(run: Run) -> Iterator[tuple[str, str, Run]]:
    """Every field of a run that can change alone: its name, the part of the run it belongs to, and the changed run."""
    for field, path, current in fields(run):
        if field in BOUND:
            continue
        assert field in OTHER, f"new field {field}: give it another value in OTHER"
        for value in OTHER[field]:
            with contextlib.suppress(ValidationError):
                other = changed(run, path, value)
                if value != current:
                    yield field, path[0], other
                    break


@pytest.mark.parametrize("name", RUNS)
def test_changing_any_field_changes_the_key_unless_it_has_no_effect(name: str, run_of: RunOf) -> None:
    scale, axes, void = RUNS[name]
    run = run_of(scale, **axes)
    same = {field for field, _, other in variations(run) if key(other) == key(run)}
    assert same == void


def test_every_field_of_every_recipe_type_is_varied_in_some_run(run_of: RunOf) -> None:
    varied = {field for scale, axes, _ in RUNS.values() for field, _, _ in variations(run_of(scale, **axes))}
    assert all_fields(Run) - BOUND == varied


def test_the_canonical_form_of_a_canonical_run_is_itself(run_of: RunOf) -> None:
    for scale, axes, _ in RUNS.values():
        run = run_of(scale, **axes)
        assert canonical_run(run) == run


# Which stages a part of the run may touch: an edit there makes these anew and no others.
TOUCHES = {
    "model": {"state", "samples", "metrics"},
    "training": {"state", "samples", "metrics"},
    "epochs": {"state", "samples", "metrics"},
    "at_epoch": {"state", "samples", "metrics"},
    "foresight": {"encoder", "state", "samples", "metrics"},
    "sampling": {"samples", "metrics"},
    "evaluation": {"features", "reference", "metrics"},
    "tokenizer": {"tokenizer", "codes", "encoder", "state", "samples", "metrics"},  # the encoder, by its patch size
}


@pytest.mark.parametrize("name", RUNS)
def test_a_field_touches_only_the_stages_of_its_part_of_the_run(name: str, run_of: RunOf) -> None:
    scale, axes, _ = RUNS[name]
    run = run_of(scale, **axes)
    before = keys_by_kind(run)
    for field, part, other in variations(run):
        after = keys_by_kind(other)
        touched = {kind for kind in before if before[kind] != after.get(kind)}
        assert part == "data" or touched <= TOUCHES[part], field


def test_how_the_training_set_is_cut_leaves_the_networks_beside_it_alone(run_of: RunOf) -> None:
    run = run_of("demo", arm="mirai-i")
    before = keys_by_kind(run)
    for field, value in (("num_images", 7), ("seed", 7), ("views", 10)):
        after = keys_by_kind(changed(run, ("data", field), value))
        assert {kind for kind in before if before[kind] == after[kind]} == {
            "tokenizer",
            "encoder",
            "features",
            "reference",
        }


def test_other_pictures_make_every_stage_anew(run_of: RunOf) -> None:
    run = run_of("demo", arm="mirai-i")
    before = keys_by_kind(run)
    for field, value in (("name", "others"), ("resolution", 64), ("num_classes", 7)):
        after = keys_by_kind(changed(run, ("data", field), value))
        assert not [kind for kind in before if before[kind] == after[kind]], field
