"""Features of uint8 images in one pass: pooled (FID, precision, recall), spatial (sFID) and logits (inception score).

A feature network is an nn.Module that maps uint8 images (B, 3, H, W) to float32 (pooled (B, d), spatial (B, d_s),
logits (B, classes)). `Inception` is ADM's; mirai.evaluation.network trains a small one. Letters: n images.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from mirai.errors import UserError

INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
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


def check_images(images: np.ndarray, what: str) -> None:
    """UserError unless `images` is uint8 (n, H, W, 3) with n > 0; `what` names the array in the message."""
    if images.dtype != np.uint8:
        raise UserError(
            f"{what} must be uint8 with values 0..255, got {images.dtype}: convert them as the sampler does"
        )
    if images.ndim != 4 or images.shape[-1] != 3 or not len(images):
        raise UserError(f"{what} must have the shape (images, height, width, 3), got {images.shape}")


def extract(
    network: nn.Module, images: np.ndarray, *, batch_size: int = 64, progress: bool = True, what: str = "images"
) -> Features:
    """Features of images (n, H, W, 3) uint8, on the device of the network's weights, in float32 without TF32."""
    check_images(images, what)
    device = next(network.parameters()).device
    batches: list[tuple[np.ndarray, ...]] = []
    exact = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
    starts = range(0, len(images), batch_size)
    with torch.inference_mode(), exact:
        for start in tqdm(starts, desc=f"features of {what}", unit="batch", disable=not progress):
            batch = torch.from_numpy(np.array(images[start : start + batch_size])).permute(0, 3, 1, 2)
            batches.append(tuple(output.cpu().numpy() for output in network(batch.to(device))))
    features = Features(*(np.concatenate(parts) for parts in zip(*batches, strict=True)))
    if not np.isfinite(features.pooled).all():
        raise UserError(f"features of {what} are not finite: the feature network's weights are damaged")
    return features


class Inception(nn.Module):
    """ADM's network: the TensorFlow Inception graph of 2015-12-05, as converted by torch-fidelity, resize included.

    Pooled is pool_3 (2048), logits are pool_3 @ W without bias (1008). Spatial (2023) is the graph's `mixed_6/conv`:
    here Mixed_6d.branch1x1 after batch norm and ReLU, first 7 channels of 17 x 17, flattened row, column, channel.
    """

    def __init__(self, weights: Path) -> None:
        super().__init__()
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        copy = _trusted_copy(weights)
        try:
            with torch.random.fork_rng(devices=[]):  # its constructor draws initial weights
                self.network = FeatureExtractorInceptionV3(
                    "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=copy
                )
        except RuntimeError as error:
            raise UserError(
                f"{weights} does not hold torch-fidelity's InceptionV3; it should be {INCEPTION_FILE}"
            ) from error
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
        raise UserError(
            f"{weights} is missing: download {INCEPTION_FILE} from torch-fidelity's GitHub release v0.2.0 and set "
            "`weights.inception` in config/site.yaml to its path"
        )
    promised = re.search(r"-([0-9a-f]{8})\.pth$", weights.name)  # torch hub's convention: the name holds the checksum
    with weights.open("rb") as file:
        if promised and not hashlib.file_digest(file, "sha256").hexdigest().startswith(promised[1]):
            raise UserError(f"{weights} is damaged: its SHA-256 does not begin with {promised[1]}; download it again")
    try:
        state = torch.load(weights, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError) as error:
        raise UserError(
            f"{weights} cannot be read as a file of weights ({type(error).__name__}); download it again"
        ) from error
    copy = io.BytesIO()
    torch.save(state, copy)
    copy.seek(0)
    return copy
