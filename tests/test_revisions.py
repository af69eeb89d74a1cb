"""Numbers of a short run per stage. They change only together with the stage's REVISION.

After a deliberate change: raise the revision in mirai/experiments/revisions.py, then `python -m tests.test_revisions`.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from mirai.data.images import centre_images, open_images
from mirai.evaluation.evaluate import evaluate_features
from mirai.evaluation.features import Features, extract
from mirai.evaluation.network import train_feature_network
from mirai.evaluation.reference import Reference, build_reference
from mirai.evaluation.statistics import feature_statistics
from mirai.experiments.recipe import Data, EncoderTraining, Evaluation, FeatureNetwork, Tokenizer, TokenizerTraining
from mirai.experiments.stages import REVISIONS
from mirai.foresight.encoder_training import train_encoder
from mirai.models.transformer import Transformer
from mirai.randomness import stream, torch_generator
from mirai.sampling.generate import generate
from mirai.sampling.streams import labels, uniforms
from mirai.tokenizer.training import train_tokenizer
from tests.training import tiny

pytestmark = pytest.mark.full

RECORD = Path(__file__).with_name("revisions.json")
FEATURES = FeatureNetwork(
    name="tiny",
    kind="trained",
    targets="moments",
    width=4,
    spatial_channels=1,
    steps=3,
    batch_size=16,
    learning_rate=1e-3,
    num_images=200,
)


def _images(count: int) -> tuple[np.ndarray, np.ndarray]:
    images = open_images(tiny.DATA, "features", count=count)
    return centre_images(images), images.labels


def _tokenizer() -> list[float]:
    recipe = Tokenizer(
        name="tiny",
        channels=8,
        multipliers=(1, 1),
        res_blocks=1,
        z_channels=8,
        codebook_size=16,
        codebook_dim=4,
        group_norm_groups=4,
        training=TokenizerTraining(steps=4, batch_size=8, learning_rate=1e-3, num_images=64, restart_every=2),
    )
    images, _ = _images(64)
    _, report = train_tokenizer(recipe, images, images[:16], progress=False)
    return [report["loss"], report["psnr"]]


def _codes() -> list[float]:
    """Views, crops and order of a ten-crop store: the made-up tokenizer adds up pixels, so that the numbers are exact."""
    data = Data(name="digits", source="digits", resolution=32, num_classes=10, views=10)
    images = open_images(data, "train", count=20)
    from mirai.data.crops import views

    crops = np.concatenate([views(images.square(index), 32, 10) for index in range(20)]).astype(np.int64)
    weights = np.arange(crops[0].size).reshape(crops[0].shape) % 251
    return [float((crops * weights).sum()), float(images.labels @ np.arange(20))]


def _encoder() -> list[float]:
    images, classes = _images(64)
    numbers = []
    for objective in ("mae", "supervised"):
        training = EncoderTraining(
            objective=objective,
            width=16,
            num_layers=1,
            num_heads=2,
            steps=3,
            batch_size=8,
            learning_rate=1e-3,
            num_images=64,
        )
        _, report = train_encoder(training, images, classes, patch=8, num_classes=10, progress=False)
        numbers.append(report["loss"])
    return numbers


def _features() -> list[float]:
    images, classes = _images(200)
    network, report = train_feature_network(FEATURES, images, classes, None, 10, progress=False)
    features = extract(network, images[:50], progress=False)
    return [report["r2_pooled"], *np.abs(features.pooled).mean(axis=0).tolist(), float(np.abs(features.logits).mean())]


def _reference() -> list[float]:
    images, classes = _images(400)
    network, _ = train_feature_network(FEATURES, images, classes, None, 10, progress=False)
    reference = build_reference(network, images, progress=False)
    return [*reference.pooled.mean.tolist(), float(np.trace(reference.spatial.covariance))]


def _state() -> list[float]:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        tiny.make_codes()
        kept = tiny.run(tiny.stage())
    names = ("model/output.weight", "ema/output.weight", "heads/heads.2.4.weight", "exp_avg_sq/model/output.weight")
    return [float(kept[name].double().norm()) for name in names]


def _samples() -> list[float]:
    model = Transformer(tiny.MODEL, num_classes=10, codebook_size=16, grid_side=4).double().eval()
    model.init_weights(0)
    torch.nn.init.normal_(model.output.weight, generator=torch_generator(0, "test"))
    chosen = torch.from_numpy(labels(0, range(8), 10, "uniform"))
    codes = generate(model, chosen, torch.from_numpy(uniforms(0, range(8), 16)), guidance=2.0, top_k=12, top_p=0.9)
    return [float((codes * torch.arange(1, 17)).sum()), float(chosen.sum())]


def _metrics() -> list[float]:
    rng = stream(0, "revisions")
    pooled, spatial = rng.standard_normal((600, 8)), rng.standard_normal((600, 8)) + 0.1
    reference = Reference(feature_statistics(pooled[:300]), feature_statistics(spatial[:300]), pooled[:300])
    features = Features(pooled[300:] * 1.1, spatial[300:], rng.standard_normal((300, 5)))
    recipe = Evaluation(features=FEATURES, num_reference=300, is_split_size=100, halves=3)
    result = evaluate_features(features, reference, recipe, progress=False)
    return [*(value for value in result.values() if isinstance(value, float)), *result["spread"].values()]


NUMBERS: dict[str, Callable[[], list[float]]] = {
    "tokenizer": _tokenizer,
    "codes": _codes,
    "encoder": _encoder,
    "features": _features,
    "reference": _reference,
    "state": _state,
    "samples": _samples,
    "metrics": _metrics,
}


def test_every_stage_has_its_numbers():
    assert NUMBERS.keys() == REVISIONS.keys() == json.loads(RECORD.read_text()).keys()


@pytest.mark.parametrize("kind", NUMBERS)
def test_numbers_change_only_with_the_revision(kind: str) -> None:
    torch.set_num_threads(1)
    record = json.loads(RECORD.read_text())[kind]
    assert record["revision"] == REVISIONS[kind], (
        f"run `python -m tests.test_revisions` to record revision {REVISIONS[kind]}"
    )
    # Other processors round differently; a change of meaning moves these numbers by far more.
    assert NUMBERS[kind]() == pytest.approx(record["numbers"], rel=2e-3, abs=1e-4), f"raise REVISIONS['{kind}']"


if __name__ == "__main__":
    torch.set_num_threads(1)
    recorded = {kind: {"revision": REVISIONS[kind], "numbers": numbers()} for kind, numbers in NUMBERS.items()}
    RECORD.write_text(json.dumps(recorded, indent=1) + "\n")
