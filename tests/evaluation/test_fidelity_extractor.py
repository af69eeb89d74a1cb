from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torch_fidelity import calculate_metrics

from mirai.evaluation.features import extract
from mirai.evaluation.fidelity_extractor import register
from mirai.evaluation.metrics import frechet_distance, inception_score, precision_recall
from mirai.evaluation.network import SmallFeatureNetwork
from mirai.evaluation.statistics import feature_statistics


class Images(Dataset[Tensor]):
    """uint8 images (n, H, W, 3) as torch-fidelity wants them: one (3, H, W) tensor at a time."""

    def __init__(self, images: np.ndarray) -> None:
        self.images = torch.from_numpy(images).permute(0, 3, 1, 2)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]


@pytest.mark.filterwarnings("ignore")
def test_our_metrics_are_those_torch_fidelity_computes_with_our_network() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = SmallFeatureNetwork(width=8, spatial_channels=1, num_targets=2, num_classes=5).eval()
    network.pooled_scale.fill_(0.01)  # an untrained network hardly tells images apart
    register("small-network-of-the-test", network)
    rng = np.random.default_rng(0)
    brightness = rng.integers(40, 256, (220, 1, 1, 3))
    images = (rng.random((220, 16, 16, 3)) * brightness).astype(np.uint8)
    samples, reference = images[:100], 255 - images[100:]

    theirs = calculate_metrics(
        input1=Images(samples),
        input2=Images(reference),
        feature_extractor="small-network-of-the-test",
        fid=True,
        isc=True,
        prc=True,
        isc_splits=2,
        samples_shuffle=False,
        batch_size=32,
        save_cpu_ram=True,
        cuda=False,
        cache=False,
        verbose=False,
    )
    ours, target = (extract(network, x, progress=False) for x in (samples, reference))
    fid = frechet_distance(feature_statistics(ours.pooled), feature_statistics(target.pooled))
    assert fid == pytest.approx(theirs["frechet_inception_distance"], rel=1e-4)
    assert fid > 1
    score = inception_score(ours.logits, split_size=50)
    assert score == pytest.approx(theirs["inception_score_mean"], abs=1e-5)
    assert score > 1.01
    assert precision_recall(target.pooled, ours.pooled) == (
        pytest.approx(theirs["precision"], abs=1e-6),
        pytest.approx(theirs["recall"], abs=1e-6),
    )
