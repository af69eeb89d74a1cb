"""Features of uint8 images in one pass: pooled (FID, precision, recall), spatial (sFID) and logits (inception score).

A feature network is an nn.Module that maps uint8 images (B, 3, H, W) to float32 (pooled (B, d), spatial (B, d_s),
logits (B, classes)). `Inception` is ADM's; mirai.evaluation.network trains a small one. Letters: n images.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from mirai.errors import UserError
from mirai.evaluation.sources import Images, in_memory
from mirai.experiments import paths
from mirai.experiments.public_files import check_released
from mirai.numerics import full_float32

INCEPTION_SOURCE = (  # the end of a sentence that says what is wrong
    f"`mirai download inception` fetches the right one to {paths.WEIGHTS}/; an unaltered copy of yours is named by "
    f"--inception, or as weights.inception in {paths.SITE}"
)
SPATIAL_CHANNELS = 7  # ADM keeps the first 7 of 192 channels: 17 * 17 * 7 = 2023 sFID features


@dataclass(frozen=True)
class Features:
    """Float32 arrays of n images, in their order: pooled (n, d), spatial (n, d_s), logits (n, classes)."""

    pooled: np.ndarray
    spatial: np.ndarray
    logits: np.ndarray

    def __len__(self) -> int:
        return len(self.pooled)

    def take(self, indices: np.ndarray) -> Features:
        """The features of some of the images."""
        return Features(self.pooled[indices], self.spatial[indices], self.logits[indices])


def extract(
    network: nn.Module, images: Images | np.ndarray, *, batch_size: int = 64, progress: bool = True
) -> Features:
    """Features of images, on the device of the network's weights, in float32 without TF32.

    Only the features are ever in memory as a whole: 20 kB per image for Inception. UserError for images that are not
    uint8 (n, H, W, 3) or turn out to be damaged, and for features that are not finite.
    """
    images = in_memory(images) if isinstance(images, np.ndarray) else images
    device = device_of(network)
    arrays: list[np.ndarray] = []
    done = 0
    bar = tqdm(total=len(images), desc=f"features of {images.what}", unit="img", disable=not progress)
    with bar, torch.inference_mode(), full_float32():
        for batch in _one_ahead(images.batches(batch_size)):
            pixels = torch.from_numpy(np.array(batch)).permute(0, 3, 1, 2)
            outputs = network(pixels.to(device))
            arrays = arrays or [np.empty((len(images), output.shape[1]), np.float32) for output in outputs]
            for array, output in zip(arrays, outputs, strict=True):
                array[done : done + len(batch)] = output.cpu().numpy()
            done += len(batch)
            bar.update(len(batch))
    assert done == len(images), "a source gives as many images as it says"
    features = Features(*arrays)
    if not all(np.isfinite(array).all() for array in arrays):
        raise UserError(f"features of {images.what} are not finite: the feature network's weights are damaged")
    return features


def device_of(network: nn.Module) -> torch.device:
    """Where a network's weights are."""
    return next(network.parameters()).device


def _one_ahead(batches: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """The batches, each read while the network looks at the one before."""
    with ThreadPoolExecutor(1) as reader:
        waiting = reader.submit(next, batches, None)
        while (batch := waiting.result()) is not None:
            waiting = reader.submit(next, batches, None)
            yield batch


class Inception(nn.Module):
    """ADM's network: the TensorFlow Inception graph of 2015-12-05, as converted by torch-fidelity, resize included.

    Pooled is pool_3 (2048), logits are pool_3 @ W without bias (1008). Spatial (2023) is the graph's `mixed_6/conv`:
    here Mixed_6d.branch1x1 after batch norm and ReLU, first 7 channels of 17 x 17, flattened row, column, channel.
    """

    def __init__(self, weights: Path) -> None:
        super().__init__()
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        copy = _trusted_copy(weights)
        self.sha256 = check_released(weights)
        try:
            with torch.random.fork_rng(devices=[]):  # its constructor draws initial weights
                self.network = FeatureExtractorInceptionV3(
                    "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=copy
                )
        except (RuntimeError, TypeError) as error:  # other tensors, or no dictionary of them
            raise UserError(f"{weights} does not hold torch-fidelity's InceptionV3; {INCEPTION_SOURCE}") from error
        self.network.Mixed_6d.branch1x1.register_forward_hook(self._keep_spatial)
        self._spatial: Tensor | None = None

    def _keep_spatial(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self._spatial = output[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)  # (B, 17, 17, 7) -> (B, 2023)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        pooled, logits = self.network(images)
        spatial, self._spatial = self._spatial, None
        assert spatial is not None
        return pooled, spatial, logits


def _trusted_copy(weights: Path) -> io.BytesIO:
    """The weights as a file of our own making, because torch-fidelity unpickles whatever it is given."""
    if not weights.is_file():
        raise UserError(f"{weights} is missing; {INCEPTION_SOURCE}")
    try:
        state = torch.load(weights, map_location="cpu", weights_only=True)
    except Exception as error:  # of a damaged pickle nearly any
        raise UserError(
            f"{weights} cannot be read as a file of weights ({type(error).__name__}); {INCEPTION_SOURCE}"
        ) from error
    copy = io.BytesIO()
    torch.save(state, copy)
    copy.seek(0)
    return copy
