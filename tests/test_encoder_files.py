"""A timm encoder from its file to a training: where the file is looked for, and that it stays the same one."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
import yaml
from safetensors.torch import load_file, save_file

from mirai import store
from mirai.errors import UserError
from mirai.experiments import paths
from mirai.experiments.plan import Planned
from mirai.experiments.recipe import Encoder, EncoderTraining, Foresight, Head
from mirai.experiments.site import load_site
from mirai.experiments.stages import EncoderStage, Phase, StateStage
from mirai.make import make
from mirai.states import is_published, read_json, sha256
from tests.training import tiny

NAME = "test_vit.r160_in1k"  # timm's smallest ViT: patches of 16 pixels


def training(image_size: int = 64, layer: int | None = None) -> tuple[StateStage, EncoderStage]:
    """One epoch of Mirai-I on 4x4 tokens, and its encoder."""
    encoder = Encoder(name="tiny", timm=NAME, image_size=image_size, layer=layer)
    foresight = Foresight(source="encoder", offsets=((0, 0),), layer=1, head=Head(width=8), encoder=encoder)
    state = tiny.stage((Phase(epochs=1, foresight=foresight, coefficient=2.0),))
    stage = state.encoder_stage(state.timeline[0])
    assert stage is not None
    return state, stage


@pytest.fixture
def weights(project: Path) -> Path:
    """A file with random weights that config/site.yaml names."""
    with torch.random.fork_rng(devices=[]):
        tensors = timm.create_model(NAME).state_dict()
    path = project / "vit.safetensors"
    save_file(tensors, path)
    (project / "config").mkdir()
    paths.SITE.write_text(yaml.safe_dump({"weights": {NAME: str(path)}}))
    return path


def test_a_training_looks_through_the_file_that_its_encoder_was_checked_with(weights: Path) -> None:
    state, encoder = training()
    tiny.make_codes()
    assert make(Planned(encoder, "demo"))
    manifest = read_json(paths.manifest("encoder", encoder.key))
    assert (manifest["timm"], manifest["sha256"], manifest["num_tokens"]) == (NAME, sha256(weights), 16)

    tensors = load_file(weights)
    save_file(tensors | {"norm.bias": tensors["norm.bias"] + 1}, weights)
    with pytest.raises(
        UserError, match=r"vit\.safetensors is not the file of test_vit\.r160_in1k that .*encoder\.json"
    ):
        make(Planned(state, "demo"))
    assert not paths.manifest("state", state.key).exists()

    save_file(tensors, weights)
    assert make(Planned(state, "demo"))
    assert is_published(paths.manifest("state", state.key))


@pytest.mark.usefixtures("weights")
@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (
            {"image_size": 128},
            "encoder tiny gives 8x8 patches at image_size 128, but the image has 4x4 tokens; image_size 64 fits",
        ),
        ({"layer": 7}, "encoder tiny: layer 7 is above its depth 6"),
    ],
)
def test_a_use_that_does_not_suit_an_encoder_is_refused_before_step_0_and_poisons_no_key(
    wrong: dict[str, int], sentence: str
) -> None:
    """Grid and layer are no part of an encoder's key: a stage that minded them would fail for who mends them, too."""
    state, encoder = training(**wrong)
    assert make(Planned(encoder, "demo"))
    tiny.make_codes()
    with pytest.raises(UserError, match=f"^{sentence}$"):
        make(Planned(state, "demo"))
    assert not (paths.folder("state", state.key) / "log.jsonl").exists()
    mended, same = training(layer=6)
    assert (same.key == encoder.key) is ("layer" in wrong)
    make(Planned(same, "demo"))
    assert make(Planned(mended, "demo"))


@pytest.mark.usefixtures("project")
def test_what_is_read_of_an_encoder_is_not_in_its_recipe() -> None:
    assert training(layer=6)[1] == training(layer=7)[1] == training()[1]


def test_a_model_without_a_final_norm_of_its_patches_is_refused_before_step_0(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, encoder = training()
    make(Planned(encoder, "demo"))
    manifest = paths.manifest("encoder", encoder.key)
    checked = read_json(manifest)
    assert (checked["depth"], checked["final_norm"]) == (6, True)
    monkeypatch.setattr(store, "read_json", lambda path: checked | {"final_norm": False})
    with pytest.raises(UserError, match=r"encoder tiny has no final norm of its patches, .*`layer`"):
        store.check_encoders(state, load_site())


def test_the_word_hub_asks_timms_hub(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths.SITE.write_text(yaml.safe_dump({"weights": {NAME: "hub"}}))
    asked: list[str] = []

    def cached(name: str) -> Path:
        asked.append(name)
        return weights

    monkeypatch.setattr(store, "hub_file", cached)
    _, encoder = training()
    assert store.encoder_source(encoder, load_site()) == weights
    assert asked == [NAME]


@pytest.mark.usefixtures("project")
def test_an_encoder_trained_here_is_in_the_store() -> None:
    sizes = {"width": 16, "num_layers": 1, "num_heads": 1, "num_images": 1, "steps": 0, "batch_size": 1}
    small = EncoderTraining(objective="none", learning_rate=1.0, **sizes)
    trained = EncoderStage(data=tiny.DATA, encoder=Encoder(name="ViT", training=small), patch=8)
    assert store.encoder_source(trained, load_site()) == paths.folder("encoder", trained.key)
