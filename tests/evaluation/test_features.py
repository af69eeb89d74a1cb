from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_weights import GOLDEN, golden_tensor
from torch import Tensor

from mirai.errors import UserError
from mirai.evaluation.features import Inception, extract
from mirai.evaluation.metrics import inception_score
from mirai.evaluation.sources import Images
from mirai.states import sha256
from tests.evaluation.projection import SIDE, WIDTHS, RandomProjection

pytestmark = pytest.mark.full

ROOT = Path(__file__).parents[2]
GOLDEN_FEATURES = dict(np.load(GOLDEN / "inception" / "features.npz"))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of made-up Inception weights."""
    shapes = json.loads((GOLDEN / "inception" / "state_dict_shapes.json").read_text())
    arrays = {key: golden_tensor(key, shape, math.sqrt(2)) for key, shape in shapes.items()}
    path = tmp_path_factory.mktemp("inception") / "golden.pth"
    torch.save({k: torch.tensor(0) if v is None else torch.from_numpy(v) for k, v in arrays.items()}, path)
    return path


def test_inception_features_are_those_of_the_reference_network(weights: Path) -> None:
    before = torch.get_rng_state()
    network = Inception(weights)
    probed: list[np.ndarray] = []
    first = network.network.Conv2d_1a_3x3
    first.register_forward_pre_hook(lambda _, inputs: probed.append(inputs[0].numpy()))
    blocks = {"64": "MaxPool_1", "192": "MaxPool_2", "768": "Mixed_6e"}
    means: dict[str, list[np.ndarray]] = {name: [] for name in blocks}
    for name, module in blocks.items():
        getattr(network.network, module).register_forward_hook(
            lambda _, __, output, name=name: means[name].append(output.mean(dim=(2, 3)).numpy())
        )
    features = extract(network, GOLDEN_FEATURES["images"], batch_size=3, progress=False)
    resized = 128 * np.concatenate(probed)[:, :, ::37, ::37] + 128
    np.testing.assert_allclose(resized, GOLDEN_FEATURES["resized_stride37"], rtol=0, atol=1e-4)
    for name, parts in means.items():
        np.testing.assert_allclose(np.concatenate(parts), GOLDEN_FEATURES[f"feat_{name}"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(features.pooled, GOLDEN_FEATURES["feat_2048"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(features.spatial, GOLDEN_FEATURES["spatial"], rtol=0, atol=2e-5)
    np.testing.assert_allclose(features.logits, GOLDEN_FEATURES["logits_unbiased"], rtol=0, atol=1e-5)
    assert features.spatial.shape == (4, 17 * 17 * 7)
    assert features.spatial.min() >= 0  # after the ReLU, as ADM's node
    expected = json.loads((GOLDEN / "inception" / "config.json").read_text())["inception_score_4_images_from_2048"]
    assert inception_score(features.logits, 5000) == pytest.approx(expected, abs=1e-5)
    assert torch.equal(torch.get_rng_state(), before)


def test_missing_inception_weights_are_named_with_what_brings_them(tmp_path: Path) -> None:
    with pytest.raises(UserError) as told:
        Inception(tmp_path / "nowhere.pth")
    for part in (
        "nowhere.pth is missing",
        "`mirai download inception`",
        "weights/",
        "--inception",
        "weights.inception",
    ):
        assert part in str(told.value)


def test_inception_weights_of_the_released_name_with_another_content_are_refused(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Inception(weights).sha256 == sha256(weights)
    monkeypatch.chdir(ROOT)  # where the published sum is listed
    path = tmp_path / "weights-inception-2015-12-05-6726825d.pth"
    path.write_bytes(weights.read_bytes())
    with pytest.raises(
        UserError, match=r"d\.pth is not the published weights-inc.*; delete it and run `mirai download inc"
    ):
        Inception(path)


def test_inception_weights_that_hold_something_else_are_refused(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="does not hold torch-fidelity's InceptionV3"):
        Inception(tmp_path / "other.pth")
    (tmp_path / "text.pth").write_text("not weights")
    with pytest.raises(UserError, match="cannot be read as a file of weights"):
        Inception(tmp_path / "text.pth")


class Malicious:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("/nonexistent/executed"),))


def test_a_pickle_with_code_is_never_run(tmp_path: Path) -> None:
    torch.save({"weight": Malicious()}, tmp_path / "evil.pth")
    with pytest.raises(UserError, match="cannot be read as a file of weights"):
        Inception(tmp_path / "evil.pth")


def source(batches: list[np.ndarray], count: int) -> Images:
    """A source that gives these batches and says that there are `count` images."""
    return Images("made up", count, (SIDE, SIDE), lambda _, __: iter(batches))


def test_features_of_batches_are_those_of_the_whole_in_order() -> None:
    images = np.random.default_rng(0).integers(0, 256, (10, SIDE, SIDE, 3), dtype=np.uint8)
    parts = source([images[:4], images[4:8], images[8:]], 10)
    together, apart = (extract(RandomProjection(), what, progress=False) for what in (images, parts))
    for name, width in zip(("pooled", "spatial", "logits"), WIDTHS, strict=True):
        assert getattr(apart, name).shape == (10, width)
        np.testing.assert_allclose(getattr(apart, name), getattr(together, name), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("count", [3, 5])
def test_a_source_that_miscounts_is_found_out(count: int) -> None:
    with pytest.raises((AssertionError, ValueError)):
        extract(RandomProjection(), source([np.zeros((4, SIDE, SIDE, 3), np.uint8)], count), progress=False)


def test_batches_are_read_one_ahead_and_no_further() -> None:
    read = 0

    def batches() -> Iterator[np.ndarray]:
        nonlocal read
        for read in range(1, 6):
            yield np.full((1, SIDE, SIDE, 3), read, np.uint8)

    class Watching(RandomProjection):
        def forward(self, images: Tensor) -> tuple[Tensor, ...]:
            assert read <= int(images[0, 0, 0, 0]) + 1, "a batch is held that is not needed yet"
            return super().forward(images)

    images = Images("made up", 5, (SIDE, SIDE), lambda _, __: batches())
    assert len(extract(Watching(), images, progress=False)) == 5


def test_features_are_computed_without_tf32_and_leave_the_settings_as_they_were() -> None:
    class Watching(RandomProjection):
        def forward(self, images: Tensor) -> tuple[Tensor, ...]:
            assert not torch.backends.cuda.matmul.allow_tf32
            assert not torch.backends.cudnn.allow_tf32
            return super().forward(images)

    before = torch.backends.cuda.matmul.allow_tf32
    try:
        torch.backends.cuda.matmul.allow_tf32 = True
        extract(Watching(), np.zeros((2, SIDE, SIDE, 3), np.uint8), progress=False)
        assert torch.backends.cuda.matmul.allow_tf32
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


@pytest.mark.parametrize("name", ["pooled", "spatial", "logits"])
def test_features_that_are_not_finite_are_refused(name: str) -> None:
    class Damaged(RandomProjection):
        def forward(self, images: Tensor) -> tuple[Tensor, ...]:
            outputs = dict(zip(("pooled", "spatial", "logits"), super().forward(images), strict=True))
            outputs[name][-1, 0] = torch.inf
            return tuple(outputs.values())

    with pytest.raises(UserError, match="features of images are not finite: the feature network's weights are damaged"):
        extract(Damaged(), np.ones((2, SIDE, SIDE, 3), np.uint8), progress=False)
