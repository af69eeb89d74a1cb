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


def training(image_size: int = 64) -> tuple[StateStage, EncoderStage]:
    """One epoch of Mirai-I on 4x4 tokens, and its encoder."""
    encoder = Encoder(name="tiny", timm=NAME, image_size=image_size)
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
def test_an_encoder_of_another_grid_is_refused_when_it_is_checked_and_before_it_trains() -> None:
    state, encoder = training(image_size=128)
    sentence = "encoder tiny gives 8x8 patches at image_size 128, but the image has 4x4 tokens; image_size 64 fits"
    with pytest.raises(UserError, match=sentence):
        make(Planned(encoder, "demo"))
    make(Planned(encoder.model_copy(update={"patch": 4}), "demo"))  # of the same key: a scale with smaller tokens
    tiny.make_codes()
    with pytest.raises(UserError, match=sentence):
        make(Planned(state, "demo"))


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
