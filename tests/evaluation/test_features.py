from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_weights import GOLDEN, golden_tensor

from mirai.errors import UserError
from mirai.evaluation.features import Inception, check_images, extract
from mirai.evaluation.metrics import inception_score

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
    features = extract(Inception(weights), GOLDEN_FEATURES["images"], batch_size=3, progress=False)
    np.testing.assert_allclose(features.pooled, GOLDEN_FEATURES["feat_2048"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(features.spatial, GOLDEN_FEATURES["spatial"], rtol=0, atol=2e-5)
    np.testing.assert_allclose(features.logits, GOLDEN_FEATURES["logits_unbiased"], rtol=0, atol=1e-5)
    assert features.spatial.shape == (4, 17 * 17 * 7)
    assert features.spatial.min() >= 0  # after the ReLU, as ADM's node
    expected = json.loads((GOLDEN / "inception" / "config.json").read_text())["inception_score_4_images_from_2048"]
    assert inception_score(features.logits, 5000) == pytest.approx(expected, abs=1e-5)
    assert torch.equal(torch.get_rng_state(), before)


def test_missing_inception_weights_are_named_with_their_origin(tmp_path: Path) -> None:
    message = r"nowhere\.pth is missing: .*weights-inception-2015-12-05-6726825d\.pth.* v0\.2\.0 .*`weights\.inception`"
    with pytest.raises(UserError, match=message):
        Inception(tmp_path / "nowhere.pth")


def test_inception_weights_that_do_not_match_their_promised_checksum_are_refused(tmp_path: Path, weights: Path) -> None:
    path = tmp_path / "weights-inception-2015-12-05-6726825d.pth"
    path.write_bytes(weights.read_bytes())
    with pytest.raises(UserError, match="SHA-256 does not begin with 6726825d"):
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


@pytest.mark.parametrize(
    ("images", "complaint"),
    [
        (np.zeros((2, 8, 8, 3), np.float32), "samples must be uint8 with values 0..255, got float32"),
        (np.zeros((2, 3, 8, 8), np.uint8), r"samples must have the shape .* got \(2, 3, 8, 8\)"),
        (np.zeros((8, 8, 3), np.uint8), r"samples must have the shape"),
        (np.zeros((0, 8, 8, 3), np.uint8), r"samples must have the shape"),
    ],
)
def test_images_of_another_kind_are_refused(images: np.ndarray, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        check_images(images, "samples")
