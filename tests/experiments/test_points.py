"""What a setting of the ablation axes comes to at a scale, and what a scale is too small for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from mirai.errors import UserError
from mirai.experiments.grid import Row, load_grid
from mirai.experiments.offsets import grid_offsets
from mirai.experiments.recipe import Foresight, Run
from mirai.experiments.scale import load_scale

WriteGrid = Callable[..., str]


def row_of(write_grid: WriteGrid, scale: str, **axes: Any) -> Row:
    """The row with these axes, beside one that every scale has."""
    return load_grid(write_grid({}, axes), scale).rows[1]


def run_of(write_grid: WriteGrid, scale: str, **axes: Any) -> Run:
    row = row_of(write_grid, scale, **axes)
    assert row.unavailable is None
    return row.runs[0]


def foresight_of(write_grid: WriteGrid, scale: str = "imagenet256", **axes: Any) -> Foresight:
    foresight = run_of(write_grid, scale, **axes).foresight
    assert foresight is not None
    return foresight


def test_384_px_give_24x24_tokens_as_many_patches_and_are_scored_at_256(write_grid: WriteGrid) -> None:
    run = run_of(write_grid, "imagenet256", arm="mirai-i", resolution=384)
    assert run.foresight is not None
    assert run.foresight.encoder is not None
    assert (run.data.resolution, run.grid_side, run.evaluation.image_size) == (384, 24, 256)
    assert run.foresight.encoder.image_size == 24 * 14


def test_256_px_are_what_a_row_without_a_resolution_has(write_grid: WriteGrid) -> None:
    first, second = load_grid(write_grid({"arm": "mirai-i"}, {"arm": "mirai-i", "resolution": 256}), "imagenet256").rows
    assert first.runs == second.runs


@pytest.mark.parametrize("scale", ["digits", "demo"])
def test_a_small_scale_has_a_second_resolution_scored_at_the_first(scale: str, write_grid: WriteGrid) -> None:
    small, large = (load_scale(scale).resolutions[resolution] for resolution in (256, 384))
    name = write_grid({"resolution": 256}, {"resolution": 384}, columns=["resolution"])
    rows = load_grid(name, scale).rows
    assert [row.axes["resolution"] for row in rows] == [small, large]
    assert [row.runs[0].data.resolution for row in rows] == [small, large]
    assert rows[1].runs[0].evaluation.image_size == small
    assert rows[1].runs[0].grid_side == rows[0].runs[0].grid_side * large // small


def test_a_resolution_that_no_scale_knows_is_refused(write_grid: WriteGrid) -> None:
    with pytest.raises(UserError, match="resolution 512 is known at no scale; known are 256, 384"):
        load_grid(write_grid({"resolution": 512}), "digits")


def test_a_pretrained_teacher_is_a_finished_baseline_that_needs_no_warm_up(write_grid: WriteGrid) -> None:
    foresight = foresight_of(write_grid, arm="mirai-e", ema="pretrained")
    assert (foresight.source, foresight.layer, foresight.offsets) == ("pretrained", 8, grid_offsets(3))
    assert foresight.teacher is not None
    assert (foresight.teacher.epochs, foresight.teacher.seed) == (300, 0)
    assert foresight.schedule is not None
    assert foresight.schedule.warmup_epochs == 0
    other = foresight_of(write_grid, arm="mirai-e", ema="pretrained", ema_epochs=80, ema_seed=2, warmup_epochs=5)
    assert other.teacher is not None
    assert other.schedule is not None
    assert (other.teacher.epochs, other.teacher.seed, other.schedule.warmup_epochs) == (80, 2, 5)


def test_an_online_teacher_is_what_mirai_e_has(write_grid: WriteGrid) -> None:
    first, second = load_grid(write_grid({"arm": "mirai-e"}, {"arm": "mirai-e", "ema": "online"}), "demo").rows
    assert first.runs == second.runs


def test_a_schedule_keeps_the_arms_warm_up_unless_the_row_says_otherwise(write_grid: WriteGrid) -> None:
    step = {"kind": "step", "values": [2.0, 0.5]}
    rows: list[dict[str, Any]] = [
        {"schedule": step},
        {"schedule": step, "warmup_epochs": 4},
        {"warmup_epochs": 4},
    ]
    found = [foresight_of(write_grid, "demo", arm="mirai-e", **row).schedule for row in rows]
    assert [schedule and (schedule.values, schedule.warmup_epochs) for schedule in found] == [
        ((2.0, 0.5), 15),
        ((2.0, 0.5), 4),
        ((2.0, 1.0), 4),
    ]


@pytest.mark.parametrize("below", ["row", "vary", "defaults"])
def test_a_warm_up_inside_a_schedule_is_refused_since_it_is_an_axis(below: str, write_grid: WriteGrid) -> None:
    schedule = {"kind": "constant", "values": [1.0], "warmup_epochs": 3}
    row = {"row": {"schedule": schedule}, "vary": {"vary": {"schedule": [schedule]}}, "defaults": {}}[below]
    keys = {"defaults": {"schedule": schedule}} if below == "defaults" else {}
    with pytest.raises(
        UserError, match="the warm-up is an axis of its own: write warmup_epochs beside schedule, not in"
    ):
        load_grid(write_grid({"arm": "mirai-e", **row}, **keys), "demo")


def test_a_head_keeps_the_scales_width(write_grid: WriteGrid) -> None:
    assert foresight_of(write_grid, "demo", arm="mirai-e").head == load_scale("demo").head
    head = foresight_of(write_grid, "demo", arm="mirai-e", head="transformer").head
    assert head is not None
    assert head.kind == "transformer"


def test_seams_and_token_order_reach_the_run(write_grid: WriteGrid) -> None:
    for seams in ("mask", "keep"):
        run = run_of(write_grid, "demo", arm="mirai-e", token_order="par-4x", seams=seams)
        assert run.model.token_order == "par-4x"
        assert run.foresight is not None
        assert run.foresight.seams == seams


def test_a_learning_rate_schedule_wins_over_the_sizes(write_grid: WriteGrid) -> None:
    axes = [{"size": "XL"}, {"size": "XL", "lr_schedule": "constant"}, {"lr_schedule": "cosine"}]
    found = [run_of(write_grid, "imagenet256", **row).training.lr_schedule for row in axes]
    assert found == ["cosine", "constant", "cosine"]


def test_an_encoder_can_be_written_out_and_is_printed_by_its_name(write_grid: WriteGrid) -> None:
    encoder = {"name": "CLIP-B", "timm": "vit_base_patch16_clip_224.openai", "image_size": 256, "layer": 11}
    name = write_grid({"arm": "mirai-i", "encoder": encoder}, columns=["encoder"])
    (row,) = load_grid(name, "imagenet256").rows
    assert row.axes == {"encoder": "CLIP-B"}
    found = row.runs[0].foresight
    assert found is not None
    assert found.encoder is not None
    assert found.encoder.model_dump(exclude_defaults=True) == encoder


def test_a_written_out_encoder_is_checked_like_a_scales(write_grid: WriteGrid) -> None:
    with pytest.raises(
        UserError, match=r"own\.yaml line 5: .* an encoder has either `timm` \(a model name\) or `train"
    ):
        load_grid(write_grid({"arm": "mirai-i", "encoder": {"name": "none"}}), "imagenet256")


def test_encoder_layer_is_a_raw_block_or_the_final_norm(write_grid: WriteGrid) -> None:
    layers = {}
    for layer in (1, "final", None):
        encoder = foresight_of(write_grid, "digits", arm="mirai-i", encoder="mae", encoder_layer=layer).encoder
        assert encoder is not None
        layers[layer] = encoder.layer
    assert layers == {1: 1, "final": None, None: load_scale("digits").encoders["mae"].layer}


def test_a_block_size_reaches_the_encoder(write_grid: WriteGrid) -> None:
    encoder = foresight_of(write_grid, arm="mirai-i", block_size=64).encoder
    assert encoder is not None
    assert encoder.block_size == 64


TOO_SMALL: list[tuple[dict[str, Any], str]] = [
    ({"arm": "mirai-e", "num_tokens": 40}, "num_tokens 40 is more than the 16 tokens of an image"),
    ({"arm": "mirai-e", "offsets": [[5, 0]]}, "offset (5, 0) leaves the 4x4 token grid everywhere"),
    ({"arm": "output-level", "layout": "1D", "num_tokens": 17}, "num_tokens 17 is more than the 16 tokens of an image"),
    ({"token_order": "par-16x"}, "token_order par-16x cuts the grid into 4x4 equal regions of several tokens"),
    ({"arm": "mirai-i", "block_size": 64}, "block_size 64 is more than the 16 tokens of an image"),
    ({"arm": "mirai-i", "encoder_layer": 3}, "encoder layer 3 is above the encoder's depth 2"),
]


@pytest.mark.parametrize(("axes", "reason"), TOO_SMALL)
def test_what_fits_the_paper_and_not_a_small_grid_is_a_row_that_says_so(
    axes: dict[str, Any], reason: str, write_grid: WriteGrid
) -> None:
    row = row_of(write_grid, "digits", **axes)
    assert row.unavailable is not None
    assert reason in row.unavailable
    assert (row.runs, row.baselines, row.sweep) == ((), (), ())
    assert row_of(write_grid, "imagenet256", **axes).runs


def test_a_timm_encoder_whose_patches_fit_the_paper_only_is_a_row_that_says_so(write_grid: WriteGrid) -> None:
    encoder = {"name": "MAE-H", "timm": "vit_huge_patch14_224.mae", "image_size": 224, "layer": 20}
    row = row_of(write_grid, "digits", arm="mirai-i", encoder=encoder)
    assert row.unavailable == (
        "encoder MAE-H has patches of 14 pixels, which at image_size 224 are not the 4x4 tokens of an image; "
        "image_size 56 fits"
    )
    assert row_of(write_grid, "imagenet256", arm="mirai-i", encoder=encoder).runs


@pytest.mark.parametrize(
    "name", ["vit_so400m_patch14_siglip_224", "vit_small_patch16_36x1_224", "vit_giant_patch14_clip_224"]
)
def test_an_encoder_whose_name_does_not_tell_is_left_to_its_weights(name: str, write_grid: WriteGrid) -> None:
    encoder = {"name": "other", "timm": name, "image_size": 100, "layer": 50}
    assert row_of(write_grid, "imagenet256", arm="mirai-i", encoder=encoder).runs


def test_nine_tokens_fit_four_by_four(write_grid: WriteGrid) -> None:
    for layout in ("1D", "2D"):
        assert len(foresight_of(write_grid, "digits", arm="mirai-e", num_tokens=9, layout=layout).offsets) == 9


@pytest.mark.parametrize("scale", ["digits", "imagenet256"])
@pytest.mark.parametrize(
    ("axes", "sentence"),
    [
        ({"arm": "mirai-e", "offsets": [[16, 0]]}, "offset (16, 0) leaves the"),
        ({"arm": "mirai-e", "num_tokens": 10**9}, "num_tokens 1000000000 is more than the"),
        ({"arm": "mirai-e", "num_tokens": 10**9, "layout": "1D"}, "num_tokens 1000000000 is more than the"),
        ({"arm": "mirai-e", "num_tokens": 3, "offsets": [[0, 1]]}, "give num_tokens or offsets, not both"),
        ({"arm": "mirai-e", "teacher_layer": 13}, "teacher_layer 13 (in twelfths of the depth) is no block of a model"),
        ({"arm": "mirai-i", "block_size": 257}, "block_size 257 is more than the 256 tokens of an image"),
        ({"arm": "mirai-e", "ema": "online", "ema_epochs": 9}, "ema_epochs has an effect with `ema: pretrained` only"),
        ({"arm": "mirai-e", "ema_seed": 1}, "ema_seed has an effect with `ema: pretrained` only"),
        ({"arm": "mirai-e", "seams": "mask"}, "seams has an effect with a token_order of PAR only"),
        ({"arm": "mirai-e", "token_order": "raster", "seams": "keep"}, "seams has an effect with a token_order of PAR"),
        ({"arm": "mirai-e", "epochs": 10}, "warmup_epochs 15 leaves no epoch of 10 for foresight"),
        (
            {"arm": "mirai-e", "epochs": 30},
            "a step schedule over 30 epochs, warmup_epochs 15 of them, never has its value 2",
        ),
        (
            {"arm": "mirai-e", "epochs": 45, "schedule": {"kind": "thirds", "values": [2.0, 1.0, 0.5]}},
            "a thirds schedule over 45 epochs, warmup_epochs 15 of them, never has its value 2",
        ),
        (
            {"arm": "mirai-i", "epochs": 2, "schedule": {"kind": "thirds", "values": [2.0, 1.0, 0.5]}},
            "a thirds schedule over 2 epochs, warmup_epochs 0 of them, never has its value 0.5",
        ),
        (
            {"arm": "mirai-i", "token_order": "par-4x", "block_size": 4},
            "block_size cuts the raster scan, and bounds no future of token_order par-4x; remove one",
        ),
        ({"arm": "mirai-i", "encoder_layer": 13}, "encoder layer 13 is above the encoder's depth"),
        (
            {"arm": "mirai-i", "encoder": {"name": "A", "timm": "vit_base_patch16_224.mae", "image_size": 225}},
            "encoder A has patches of 16 pixels, which at image_size 225 are not the ",
        ),
    ],
)
def test_what_makes_no_sense_anywhere_is_refused_at_every_scale(
    axes: dict[str, Any], sentence: str, scale: str, write_grid: WriteGrid
) -> None:
    with pytest.raises(UserError) as caught:
        load_grid(write_grid({}, axes), scale)
    told = str(caught.value)
    assert told.startswith("experiments/own.yaml line ")
    assert f": row 'row 1': {sentence}" in told
