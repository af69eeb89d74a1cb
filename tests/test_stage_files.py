"""Released files in stages: they must be what is published under their name, and the same ones from stage to stage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from mirai.errors import UserError
from mirai.experiments import paths, recipe
from mirai.experiments.plan import Planned
from mirai.experiments.site import load_site
from mirai.experiments.stages import EncoderStage, FeaturesStage, ReferenceStage, Stage, TokenizerStage
from mirai.make import make
from mirai.states import is_published, publish, read_json, sha256
from mirai.store import open_features
from mirai.tokenizer.vqgan import VQGAN
from tests import tokenizers
from tests.evaluation.projection import RandomProjection
from tests.training import tiny

TINY = tokenizers.TINY.model_copy(update={"weights": "vq"})
JUDGED = TINY.model_copy(
    update={
        "weights": None,
        "training": recipe.TokenizerTraining(
            steps=1, batch_size=1, learning_rate=1e-3, num_images=1, perceptual_weight=1.0
        ),
    }
)
INCEPTION = recipe.FeatureNetwork(name="Inception", kind="inception")
FEATURES = FeaturesStage(data=tiny.DATA, features=INCEPTION)
REFERENCE = ReferenceStage(data=tiny.DATA, features=INCEPTION, reference="adm", num_reference=1)
ENCODER = EncoderStage(
    data=tiny.DATA, encoder=recipe.Encoder(name="tiny", timm="test_vit.r160_in1k", image_size=64), patch=8
)


class Stand(RandomProjection):
    """Takes Inception's place: knows its file."""

    def __init__(self, weights: Path) -> None:
        super().__init__()
        self.sha256 = sha256(weights)


Publish = Callable[..., None]


@pytest.fixture
def published(project: Path, monkeypatch: pytest.MonkeyPatch) -> Publish:
    """Give the site a file for each name, and the list of public files the sums that are said of some."""
    for module in ("make", "store"):
        monkeypatch.setattr(f"mirai.{module}.Inception", Stand)

    def write(sums: dict[str, str], **files: str) -> None:
        Path("config").mkdir(exist_ok=True)
        paths.SITE.write_text(yaml.safe_dump({"weights": files}))
        entry = {"address": "https://example.org/a", "licence": "MIT", "needed_by": "a test"}
        listed = {name: {**entry, "file": f"released-{name}", "sha256": found} for name, found in sums.items()}
        paths.DOWNLOADS.write_text(yaml.safe_dump({"files": listed}))

    return write


def saved_vq(name: str) -> str:
    with torch.random.fork_rng(devices=[]):
        torch.save({"model": VQGAN(TINY).state_dict()}, name)
    return sha256(Path(name))


def test_the_store_says_which_file_made_a_tokenizer(published: Publish) -> None:
    found = saved_vq("mine.pt")
    published({"vq": found}, vq="mine.pt")
    stage = TokenizerStage(data=tiny.DATA, tokenizer=TINY)
    assert make(Planned(stage, "digits"))
    report = read_json(paths.manifest("tokenizer", stage.key))["report"]
    assert report == {"released": {"file": "mine.pt", "sha256": found}}


@pytest.mark.parametrize(
    ("stage", "name"),
    [
        (TokenizerStage(data=tiny.DATA, tokenizer=TINY), "vq"),
        (TokenizerStage(data=tiny.DATA, tokenizer=JUDGED), "vgg16"),
        (TokenizerStage(data=tiny.DATA, tokenizer=JUDGED), "lpips_vgg"),
        (FEATURES, "inception"),
        (REFERENCE, "adm"),
        (ENCODER, "test_vit.r160_in1k"),
    ],
    ids=["tokenizer", "vgg16", "lpips", "features", "reference", "encoder"],
)
def test_a_stage_refuses_another_file_than_the_one_published_under_its_name(
    stage: Stage, name: str, published: Publish
) -> None:
    Path("file").write_bytes(b"another")
    if stage is not FEATURES:
        publish(paths.manifest("features", FEATURES.key), {"sha256": sha256(Path("file"))})
    names = ("vq", "vgg16", "lpips_vgg", "inception", "adm", "test_vit.r160_in1k")
    published({name: "0" * 64}, **dict.fromkeys(names, "file"))
    with pytest.raises(
        UserError, match=rf"^file is not the published released-{name}: its SHA-256 is .*mirai download .*`$"
    ):
        make(Planned(stage, "digits"))
    assert not is_published(paths.manifest(stage.kind, stage.key))


def test_every_stage_looks_through_the_inception_file_of_its_features_stage(published: Publish) -> None:
    Path("one").write_bytes(b"one")
    Path("two").write_bytes(b"two")
    published({}, inception="one")
    make(Planned(FEATURES, "digits"))
    manifest = paths.manifest("features", FEATURES.key)
    assert read_json(manifest)["sha256"] == sha256(Path("one"))
    assert isinstance(open_features(FEATURES, load_site(), "cpu"), Stand)
    published({}, inception="two")
    own = REFERENCE.model_copy(update={"reference": None})
    with pytest.raises(
        UserError, match=rf"^two is not the file of Inception that {manifest} was made with .*their keys$"
    ):
        make(Planned(own, "digits"))
    assert not paths.manifest("reference", own.key).exists()
