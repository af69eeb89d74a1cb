"""Features that are kept by content: of the same images through the same weights they are computed once."""

from __future__ import annotations

import hashlib
import json
import sys
import zipfile
from pathlib import Path

import numpy as np
from torch import nn

from mirai.errors import UserError
from mirai.evaluation.features import Features, extract
from mirai.evaluation.sources import DAMAGE, Images
from mirai.experiments import paths
from mirai.states import atomic_file

EXTRACTION = 1  # raised when the same images and weights would give other features
ARRAYS = ("pooled", "spatial", "logits")


def cached_features(network: nn.Module, images: Images, *, batch_size: int = 64, progress: bool = True) -> Features:
    """Features of images that have a digest, from the cache or computed and kept there.

    A damaged cache file is computed anew; a cache that cannot be written is told on stderr, and nothing else.
    """
    assert images.digest is not None, "no key without a digest"
    key = [EXTRACTION, type(network).__name__, weights_digest(network), images.digest(), len(images)]
    path = paths.features_cache(hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32])
    features = _read(path, len(images))
    if features is None:
        features = extract(network, images, batch_size=batch_size, progress=progress)
        try:
            with atomic_file(path) as file:
                np.savez(file, **{name: getattr(features, name) for name in ARRAYS})
        except UserError as trouble:
            print(f"mirai: the features of {images.what} are not kept: {trouble}", file=sys.stderr)
    return features


def weights_digest(network: nn.Module) -> str:
    """SHA-256 of a network's parameters and buffers, with their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        array = np.ascontiguousarray(tensor.detach().cpu().numpy())
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _read(path: Path, count: int) -> Features | None:
    """The features of a cache file, None if it is not there or not whole: its zip holds a checksum of each array."""
    try:
        with zipfile.ZipFile(path) as file:
            if file.testzip() is not None:
                return None
        with np.load(path, allow_pickle=False) as arrays:
            features = Features(*(arrays[name] for name in ARRAYS))
    except (*DAMAGE, KeyError):
        return None
    return features if all(len(getattr(features, name)) == count for name in ARRAYS) else None
