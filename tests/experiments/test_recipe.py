"""Recipes are immutable, and impossible values are refused in one sentence before anything is computed."""

from __future__ import annotations

import json
from typing import Any, Literal

import pytest
from pydantic import ValidationError

from mirai.errors import UserError
from mirai.experiments.grid import load_grid
from mirai.experiments.offsets import grid_offsets, scan_offsets, written_later
from mirai.experiments.recipe import Head, Run, Training
from mirai.experiments.scale import Scale, load_scale
from mirai.experiments.yaml_input import validate
from mirai.foresight.neighbourhoods import targets_of
from mirai.models.order import TokenOrder


@pytest.fixture
def scale(project: object) -> dict[str, Any]:
    """The content of the demo scale, as YAML would give it."""
    content: dict[str, Any] = load_scale("demo").model_dump(mode="json")
    return content


def told(content: dict[str, Any], **changes: Any) -> str:
    """What is told of a scale with some values changed; keys are paths with double underscores."""
    for path, value in changes.items():
        *parents, last = path.split("__")
        place = content
        for parent in parents:
            place = place[parent]
        place[last] = value
    with pytest.raises(UserError) as caught:
        validate(Scale, content, "scale.yaml")
    return str(caught.value)


def test_a_recipe_cannot_be_changed() -> None:
    training = Training(batch_size=8)
    with pytest.raises(ValidationError, match="frozen"):
        training.batch_size = 16


def test_equal_recipes_are_equal_values_and_one_member_of_a_set() -> None:
    assert len({Training(batch_size=8), Training(batch_size=8), Training(batch_size=8, seed=1)}) == 2


def test_python_callers_get_no_silent_conversion_either() -> None:
    with pytest.raises(ValidationError):
        Head(width="2048")  # type: ignore[arg-type]


def test_a_tokenizer_has_exactly_one_origin(scale: dict[str, Any]) -> None:
    sentence = "a tokenizer has either `weights` (released ones, by name) or `training`, not both"
    assert told(scale, tokenizer__weights="vq_ds16_c2i").endswith(sentence)
    assert told(scale, tokenizer__weights=None, tokenizer__training=None).endswith(sentence)


def test_a_mistake_inside_a_scale_names_file_key_and_value(scale: dict[str, Any]) -> None:
    assert told(scale, tokenizer__codebook_size=65537) == (
        "scale.yaml: key 'tokenizer.codebook_size' has value 65537: input should be less than or equal to 65536"
    )


def test_heads_must_leave_room_for_two_dimensional_rotations(scale: dict[str, Any]) -> None:
    assert told(scale, sizes__B__model__width=64, sizes__B__model__num_heads=3).endswith(
        "width 64 over 3 heads must give a head width divisible by 4 (2D RoPE)"
    )
    assert told(scale, sizes__B__model__num_heads=32).endswith("divisible by 4 (2D RoPE)")


def test_an_encoder_has_exactly_one_origin_and_only_timm_resizes(scale: dict[str, Any]) -> None:
    one_origin = "an encoder has either `timm` (a model name) or `training`, not both"
    assert told(scale, encoders__mae__timm="vit_tiny").endswith(one_origin)
    assert told(scale, encoders__mae__timm="vit_tiny", encoders__mae__training=None).endswith(
        "`image_size` goes with `timm`, and only there: what is trained here takes images as they are"
    )


def test_a_size_of_an_encoder_trained_here_is_refused(scale: dict[str, Any]) -> None:
    assert "`image_size` goes with `timm`" in told(scale, encoders__mae__image_size=64)


def test_an_encoder_block_above_its_depth_is_refused(scale: dict[str, Any]) -> None:
    assert told(scale, encoders__mae__layer=5, encoders__mae__training__num_layers=4).endswith(
        "encoder layer 5 is above the encoder's depth 4"
    )


def test_an_encoder_width_must_divide_into_heads(scale: dict[str, Any]) -> None:
    assert told(scale, encoders__mae__training__num_heads=5, encoders__mae__training__width=96).endswith(
        "width 96 is no multiple of 5 heads"
    )


def test_scenes_say_how_many_they_are(scale: dict[str, Any]) -> None:
    assert told(scale, data__num_images=None).endswith("scenes are generated, so `num_images` must say how many")


def test_a_data_name_that_could_not_be_a_folder_is_refused(scale: dict[str, Any]) -> None:
    for name in ("My Cats", "a/b", "", "-a"):
        assert told(scale, data__name=name).startswith(f"scale.yaml: key 'data.name' has value '{name}': ")


def test_a_size_whose_encoder_does_not_exist_is_refused(scale: dict[str, Any]) -> None:
    assert told(scale, sizes__B__encoder="dinov2") == (
        f"scale.yaml: sizes.B.encoder is 'dinov2'; encoders are {', '.join(scale['encoders'])}"
    )


def test_a_trained_feature_network_is_described_and_inception_is_not(scale: dict[str, Any]) -> None:
    assert "states targets, width" in told(scale, evaluation__features__width=None)
    scale["evaluation"]["features"]["width"] = 64
    assert "inception none of them" in told(scale, evaluation__features__kind="inception")


def test_one_half_of_the_samples_has_no_spread(scale: dict[str, Any]) -> None:
    assert told(scale, evaluation__halves=1) == (
        "scale.yaml: key 'evaluation.halves' has value 1: one half has no spread; 0 for none, or at least 2"
    )


@pytest.mark.parametrize(
    ("schedule", "sentence"),
    [
        ({"kind": "step", "values": [2.0]}, "a step schedule takes 2 value(s) of lambda, none negative; got (2.0,)"),
        ({"kind": "thirds", "values": [2.0, 1.0]}, "a thirds schedule takes 3 value(s)"),
        ({"kind": "constant", "values": [-1.0]}, "a constant schedule takes 1 value(s) of lambda, none negative"),
        ({"kind": "linear", "values": [1.0]}, "input should be 'constant', 'step', 'thirds' or 'cosine'"),
    ],
)
def test_a_schedule_has_as_many_values_as_its_kind_takes(write_grid: Any, schedule: Any, sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        load_grid(write_grid({"arm": "mirai-e", "schedule": schedule}), "demo")
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("axes", "sentence"),
    [
        ({"offsets": [[-1, 0]]}, "offset (-1, 0) is not foresight: it must not lie before the current position"),
        ({"offsets": [[0, -1]]}, "offset (0, -1) is not foresight: it must not lie before the current position"),
        ({"offsets": [[1, 0]], "layout": "1D"}, "offset (1, 0) is not foresight"),
        ({"offsets": []}, "`offsets` must name at least one position and none twice; got ()"),
        ({"offsets": [[0, 0], [0, 0]]}, "`offsets` must name at least one position and none twice"),
        ({"offsets": [[16, 0]]}, "offset (16, 0) leaves the 16x16 token grid everywhere"),
        ({"offsets": [[1, -16]]}, "offset (1, -16) leaves the 16x16 token grid everywhere"),
        ({"offsets": [[0, 256]], "layout": "1D"}, "offset (0, 256) leaves the 16x16 token grid everywhere"),
        ({"num_tokens": 257, "layout": "1D"}, "num_tokens 257 is more than the 256 tokens of an image"),
        ({"offsets": [[8, -15]], "token_order": "par-4x"}, "offset (8, -15) is nowhere foresight in order par-4x"),
        ({"align_layer": 13}, "align_layer 13 (in twelfths of the depth) is no block of a model with 12 layers"),
        ({"num_tokens": 3, "offsets": [[0, 0]]}, "give num_tokens or offsets, not both"),
        ({"epochs": 15}, "warmup_epochs 15 leaves no epoch of 15 for foresight"),
        ({"warmup_epochs": 80}, "warmup_epochs 80 leaves no epoch of 80 for foresight"),
    ],
)
def test_an_impossible_foresight_is_refused_in_one_sentence(
    write_grid: Any, axes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UserError) as caught:
        load_grid(write_grid({"arm": "mirai-e", **axes}), "imagenet256")
    assert str(caught.value).startswith(f"experiments/own.yaml line 3: row 'row 0': {sentence}")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"foresight": {"layer": 13}}, "foresight layer 13 is above the model's depth 12"),
        ({"foresight": {"teacher_layer": 13}}, "foresight teacher_layer 13 is above the model's depth 12"),
        ({"foresight": {"layer": None}}, "foresight at the internal level needs a `layer` to align and a `head`"),
        ({"foresight": {"head": None}}, "foresight at the internal level needs a `layer` to align and a `head`"),
        ({"foresight": {"source": "pretrained"}}, "`teacher` is given exactly when `source` is 'pretrained'"),
        ({"foresight": {"teacher": {"epochs": 5}}}, "`teacher` is given exactly when `source` is 'pretrained'"),
        ({"foresight": {"source": "encoder"}}, "`encoder` is given exactly when `source` is 'encoder'"),
        ({"foresight": {"source": None}}, "output-level foresight predicts tokens: `source` is null there"),
        ({"foresight": {"schedule": None}}, "foresight without a `schedule` has no lambda"),
        ({"at_epoch": 81}, "at_epoch 81 is after the last of 80 epochs"),
    ],
)
def test_an_impossible_run_is_refused_in_one_sentence(write_grid: Any, change: dict[str, Any], sentence: str) -> None:
    content = load_grid(write_grid({"arm": "mirai-e", "epochs": 80}), "demo").rows[0].runs[0].model_dump(mode="json")
    foresight = content["foresight"] | change.get("foresight", {})
    with pytest.raises(ValidationError) as caught:
        Run.model_validate_json(json.dumps(content | change | {"foresight": foresight}))
    assert f"Value error, {sentence}" in str(caught.value)


@pytest.mark.parametrize("side", [4, 8])
@pytest.mark.parametrize("across", [1, 2, 4])
@pytest.mark.parametrize("layout", ["1D", "2D"])
def test_what_a_model_writes_later_is_known_without_torch(side: int, across: int, layout: Literal["1D", "2D"]) -> None:
    """The same pairs as in training, where the model's own order decides."""
    if side == across:
        return
    positions = TokenOrder(side, across**2).positions()
    for offset in scan_offsets(side * side) if layout == "1D" else grid_offsets(2 * side):
        index, inside = targets_of((offset,), layout, side)
        later = (positions[index] >= positions[:, None])[inside]
        assert list(written_later(offset, layout, side, across)) == later.tolist()


def test_the_last_position_of_a_scan_is_still_foresight(write_grid: Any) -> None:
    assert load_grid(write_grid({"arm": "mirai-e", "layout": "1D", "num_tokens": 64}), "demo").rows[0].runs


@pytest.mark.parametrize(("resolution", "order", "across", "side"), [(36, "par-4x", 2, 9), (16, "par-16x", 4, 4)])
def test_par_needs_equal_regions_of_several_tokens(
    project: Any, resolution: int, order: str, across: int, side: int
) -> None:
    run = load_grid("demo", "demo").rows[0].runs[0].model_dump()
    run["data"]["resolution"], run["model"]["token_order"] = resolution, order
    with pytest.raises(ValidationError) as caught:
        Run.model_validate(run)
    assert (
        f"token_order {order} cuts the grid into {across}x{across} equal regions of several tokens, "
        f"so {across} must be a proper divisor of its side, which is {side} tokens"
    ) in str(caught.value)


def test_a_resolution_must_be_whole_tokens(project: Any) -> None:
    path = project / "experiments/scales/demo.yaml"
    path.write_text(path.read_text().replace("resolution: 32", "resolution: 30").replace("256: 32", "256: 30"))
    with pytest.raises(UserError, match="resolution 30 is no multiple of the tokenizer's downsampling 4"):
        load_grid("demo", "demo")
