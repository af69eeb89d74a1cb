"""What samples are measured against: statistics of the reference images, and the features of the manifold images."""

from __future__ import annotations

import contextlib
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.npyio import NpzFile
from torch import nn

from mirai.errors import UserError
from mirai.evaluation.features import extract
from mirai.evaluation.sources import DAMAGE, Images, in_memory, of_npz
from mirai.evaluation.statistics import Statistics, feature_statistics, require_enough
from mirai.states import atomic_file, check_payload, publish, read_json

PAYLOAD = "reference.npz"
STATISTICS = ("mu", "sigma", "mu_s", "sigma_s")  # ADM's names: pooled and, with _s, spatial


@dataclass(frozen=True)
class Reference:
    """Statistics for FID and sFID, and pooled features (n, d) float32 of the images behind precision and recall.

    In ADM's files the statistics are those of the whole training set, the manifold images a part of it.
    """

    pooled: Statistics
    spatial: Statistics
    manifold: np.ndarray


def build_reference(network: nn.Module, images: Images | np.ndarray, *, progress: bool = True) -> Reference:
    """A reference made from images (n, H, W, 3) uint8; UserError if they are too few for the network's features."""
    images = in_memory(images, "reference images") if isinstance(images, np.ndarray) else images
    probe = extract(network, images.first(1), progress=False)
    require_enough(len(images), probe.pooled.shape[1], "reference statistics")
    require_enough(len(images), probe.spatial.shape[1], "spatial reference statistics")
    features = extract(network, images, progress=progress)
    return Reference(feature_statistics(features.pooled), feature_statistics(features.spatial), features.pooled)


def save_reference(manifest: Path, reference: Reference, content: Mapping[str, Any]) -> None:
    """Publish reference.npz and the manifest (reference.json) beside it, with `content` inside."""
    arrays = {
        **reference.pooled.arrays("pooled"),
        **reference.spatial.arrays("spatial"),
        "manifold": reference.manifold,
    }
    payload = manifest.with_name(PAYLOAD)
    with atomic_file(payload) as file:
        np.savez(file, allow_pickle=False, **arrays)
    publish(manifest, content, {"reference": payload})


def load_reference(manifest: Path) -> Reference:
    """The reference behind a manifest; UserError if a file is missing or altered."""
    path = check_payload(manifest.parent, read_json(manifest)["payloads"]["reference"])
    with np.load(path, allow_pickle=False) as arrays:
        pooled, spatial = (Statistics.from_arrays(arrays, name) for name in ("pooled", "spatial"))
        return Reference(pooled, spatial, arrays["manifold"])


def load_adm_reference(path: Path, network: nn.Module, num_reference: int, *, progress: bool = True) -> Reference:
    """A reference in ADM's format, e.g. VIRTUAL_imagenet256_labeled.npz: mu, sigma, mu_s, sigma_s and images arr_0.

    The statistics are read; arr_0 goes through the network for precision and recall. UserError where the file lacks
    an array, holds another shape or number of images, or statistics of other features than the network's.
    """
    pooled, spatial = adm_statistics(path)
    images = of_npz(path)
    if len(images) != num_reference:
        raise UserError(f"{path} holds {len(images)} images, the recipe's `num_reference` is {num_reference}")
    check_widths(network, images, (pooled, spatial))
    return Reference(pooled, spatial, extract(network, images, progress=progress).pooled)


def holds_statistics(path: Path) -> bool:
    """Whether an .npz says statistics of its own, as ADM's references do, or is one of images only."""
    with _opened(path) as file:
        return any(name in file.files for name in STATISTICS)


def adm_statistics(path: Path) -> tuple[Statistics, Statistics]:
    """Pooled and spatial statistics of a reference in ADM's format; UserError unless all of it is there."""
    with _opened(path) as file:
        missing = [name for name in ("arr_0", *STATISTICS) if name not in file.files]
        if missing:
            raise UserError(
                f"{path} lacks {', '.join(missing)}: an ADM reference holds arr_0, mu, sigma, mu_s and sigma_s (sFID needs "
                "the last two, precision and recall the images); fetch a complete one (`mirai download "
                "VIRTUAL_imagenet256_labeled`), or give the reference images, of which everything is computed"
            )
        pooled, spatial = (_statistics(file, path, suffix) for suffix in ("", "_s"))
    if (spatial.mean < 0).any():
        raise UserError(f"{path}: mu_s has negative entries, but ADM's spatial features are taken after a ReLU")
    return pooled, spatial


def _statistics(file: Mapping[str, np.ndarray], path: Path, suffix: str) -> Statistics:
    mean, covariance = (file[name + suffix].astype(np.float64) for name in ("mu", "sigma"))
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        shapes = f"got {mean.shape} and {covariance.shape}"
        raise UserError(f"{path}: mu{suffix} must have the shape (d,) and sigma{suffix} (d, d), {shapes}")
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise UserError(f"{path}: mu{suffix} or sigma{suffix} holds numbers that are not finite; fetch the file again")
    return Statistics(mean, covariance)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[NpzFile]:
    """An .npz of plain arrays; UserError where it turns out to be none."""
    if not path.exists():
        raise UserError(f"{path} is missing: it is ADM's reference file, see config/site.yaml")
    try:
        if not zipfile.is_zipfile(path):
            raise zipfile.BadZipFile("no zip archive")
        with np.load(path, allow_pickle=False) as file:
            yield file
    except DAMAGE as error:
        raise UserError(f"{path} is damaged or no .npz file ({error}); fetch it again") from error


def check_widths(network: nn.Module, images: Images, statistics: tuple[Statistics, Statistics]) -> None:
    """UserError if a file's statistics are those of other features than the network's; looks at one image."""
    probe = extract(network, images.first(1), progress=False)
    for name, given, features in zip(("mu", "mu_s"), statistics, (probe.pooled, probe.spatial), strict=True):
        if given.width != features.shape[1]:
            raise UserError(
                f"{images.what}: {name} has width {given.width}, the feature network gives {features.shape[1]}: "
                "an ADM reference goes with the Inception network"
            )
