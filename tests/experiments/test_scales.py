"""Scales: the paper's values are in imagenet256, and the small scales keep what must be kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mirai.experiments.grid import load_grid
from mirai.experiments.scale import Scale, load_scale

ROOT = Path(__file__).parents[2]
SCALES = [
    "folder-cats" if path.stem == "folder" else path.stem
    for path in sorted((ROOT / "experiments/scales").glob("*.yaml"))
]
SMALL = [name for name in SCALES if name != "imagenet256"]
IMAGENET_STEPS = 1_281_167 // 256  # steps of an epoch: the last, incomplete batch is dropped
GRID = 4  # side of the spatial feature map, mirai/evaluation/network.py


@pytest.fixture
def scale(request: pytest.FixtureRequest, project: Path) -> Scale:
    return load_scale(request.param)


def over(names: list[str]) -> pytest.MarkDecorator:
    """The test for each of these scales."""
    return pytest.mark.parametrize("scale", names, indirect=True)


def steps_per_epoch(scale: Scale) -> int:
    if scale.training.epoch_images is None:
        assert scale.data.name == "imagenet", "a small scale has a virtual epoch"
        return IMAGENET_STEPS
    return scale.training.epoch_images // scale.training.batch_size


@over(SCALES)
def test_warm_up_lasts_as_many_ema_time_constants_as_in_the_paper(
    scale: Scale, request: pytest.FixtureRequest, write_grid: Callable[..., str]
) -> None:
    """7.5 there (reading 9.8). Far fewer, and Mirai-E would align to its own initialisation."""
    name = request.node.callspec.params["scale"]
    foresight = load_grid(write_grid({"arm": "mirai-e"}), name).rows[0].runs[0].foresight
    assert foresight is not None
    assert foresight.schedule is not None
    warmup_steps = foresight.schedule.warmup_epochs * steps_per_epoch(scale)
    assert 5 <= warmup_steps * (1 - scale.training.ema_decay) <= 10


def test_an_epoch_of_imagenet_has_5004_steps() -> None:
    assert IMAGENET_STEPS == 5004


@over(SCALES)
def test_layer_8_is_layer_8_of_12(scale: Scale) -> None:
    assert scale.sizes["B"].model.num_layers == 12


@over(SCALES)
def test_a_virtual_epoch_is_a_whole_number_of_batches(scale: Scale) -> None:
    images = scale.training.epoch_images
    assert images is None or images % scale.training.batch_size == 0


@over(SCALES)
def test_the_ladder_rises_and_holds_the_epochs_that_the_paper_shares(scale: Scale) -> None:
    assert list(scale.ladder) == sorted(set(scale.ladder))
    assert {15, 40, 80} <= set(scale.ladder)


@over(SMALL)
def test_a_stand_in_never_carries_the_name_of_what_it_stands_for(scale: Scale) -> None:
    for encoder in scale.encoders.values():
        assert encoder.training is not None
        assert not any(name in encoder.name.lower() for name in ("dino", "mae-", "clip"))
    assert "inception" not in scale.evaluation.features.name.lower()


@over(SMALL)
def test_covariances_are_estimated_from_ten_times_as_many_samples_as_dimensions(scale: Scale) -> None:
    """Below that a Frechet distance measures the number of samples."""
    features = scale.evaluation.features
    assert features.width is not None
    assert features.spatial_channels is not None
    dimensions = max(features.width, GRID * GRID * features.spatial_channels)
    assert scale.sampling.num_samples >= 10 * dimensions
    assert scale.evaluation.num_reference >= 10 * dimensions


@over(SMALL)
def test_digits_and_cpu_scales_ask_for_no_more_images_than_there_are(scale: Scale) -> None:
    """1,500 of scikit-learn's 1,797 digits are for training of any kind, and are the reference."""
    if scale.data.source == "digits":
        assert scale.evaluation.num_reference <= 1500
    assert scale.evaluation.is_split_size <= scale.sampling.num_samples
    assert scale.sampling.num_samples % scale.evaluation.is_split_size == 0


@over(SMALL)
def test_an_encoder_and_the_feature_network_share_no_targets(scale: Scale) -> None:
    """A supervised encoder knows the classes; Frechet features must not be trained on them."""
    assert scale.evaluation.features.targets in ("factors", "moments")


@over(SCALES)
def test_tokens_form_a_square_grid_at_every_scale(scale: Scale) -> None:
    side, rest = divmod(scale.data.resolution, scale.tokenizer.downsampling)
    assert rest == 0
    assert side in (4, 8, 16)


def test_the_spatial_map_has_the_side_assumed_here() -> None:
    text = (ROOT / "mirai/evaluation/network.py").read_text()
    assert f"\nGRID = {GRID} " in text


def test_scales_that_need_no_gpu_say_so(project: Path) -> None:
    assert all(load_scale(name).numerics.device == "cpu" for name in SMALL if name != "pilot")
    assert load_scale("imagenet256").numerics.device == "cuda"


def test_the_papers_values_are_those_of_imagenet256(project: Path) -> None:
    """Sec. 3.1, A and B, Table 9, and LlamaGen where the paper follows it."""
    scale = load_scale("imagenet256")
    data, training, sampling = scale.data, scale.training, scale.sampling
    assert (data.resolution, data.num_classes, data.views, data.crop_range) == (256, 1000, 10, 1.1)
    assert (scale.tokenizer.downsampling, scale.tokenizer.codebook_size, scale.tokenizer.codebook_dim) == (16, 16384, 8)
    assert (training.batch_size, training.learning_rate, training.lr_schedule) == (256, 1e-4, "constant")
    assert (training.betas, training.weight_decay, training.clip_norm) == ((0.9, 0.95), 0.05, 1.0)
    assert (training.ema_decay, training.dtype, training.epoch_images) == (0.9999, "bfloat16", None)
    assert scale.ladder == (10, 15, 20, 40, 80, 100, 150, 200, 300, 400)
    assert scale.head.width == 2048
    assert (sampling.num_samples, sampling.temperature, sampling.top_k, sampling.top_p) == (50_000, 1.0, 0, 1.0)
    assert (sampling.weights, sampling.labels) == ("raw", "uniform")
    assert {name: size.guidance for name, size in scale.sizes.items() if name in ("B", "L", "XL")} == {
        "B": 2.0,
        "L": 1.75,
        "XL": 1.75,
    }
    assert [name for name, size in scale.sizes.items() if size.lr_schedule == "cosine"] == ["XL"]
    assert scale.evaluation.reference == "VIRTUAL_imagenet256_labeled"
    assert (scale.evaluation.features.kind, scale.evaluation.num_reference) == ("inception", 10_000)
    assert (scale.evaluation.is_split_size, scale.evaluation.neighbours) == (5000, 3)


def test_dropout_is_llamagens(project: Path) -> None:
    for size in load_scale("imagenet256").sizes.values():
        model = size.model
        dropouts = (model.token_dropout, model.attention_dropout, model.ffn_dropout, model.class_dropout)
        assert dropouts == (0.1, 0.1, 0.1, 0.1)
        assert model.ffn_multiple == 256


def test_encoder_patches_are_the_tokens_cells_at_imagenet256(project: Path) -> None:
    """A ViT of patch p at side s has (s / p)^2 tokens, one for each of 16 x 16 codes."""
    for encoder in load_scale("imagenet256").encoders.values():
        assert encoder.timm is not None
        assert encoder.image_size is not None
        patch = int(encoder.timm.split("_patch")[1][:2])
        assert encoder.image_size / patch == 16, encoder.name


def test_the_arms_have_the_papers_defaults(write_grid: Callable[..., str]) -> None:
    """Sec. 2.3 and 3.1, Tables 3 and 7; output level with Mirai-E's schedule (reading 9.14)."""
    arms = ("mirai-i", "mirai-e", "output-level")
    rows = load_grid(write_grid(*({"arm": arm} for arm in arms)), "imagenet256").rows
    implicit, explicit, output = (row.runs[0].foresight for row in rows)
    assert implicit is not None
    assert explicit is not None
    assert output is not None
    near = ((0, 0), (0, 1), (1, 0))
    assert (implicit.level, implicit.source, implicit.layer, implicit.offsets) == ("internal", "encoder", 8, ((0, 0),))
    assert (explicit.level, explicit.source, explicit.layer, explicit.offsets) == ("internal", "ema", 8, near)
    assert (output.level, output.source, output.layer, output.offsets) == ("output", None, None, near)
    schedules = [foresight.schedule for foresight in (implicit, explicit, output)]
    assert [(schedule.kind, schedule.values, schedule.warmup_epochs) for schedule in schedules if schedule] == [
        ("constant", (2.0,), 0),
        ("step", (2.0, 1.0), 15),
        ("step", (2.0, 1.0), 15),
    ]
    assert explicit.ema_slot_shift == 1
    assert explicit.borders == "valid"
