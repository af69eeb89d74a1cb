"""ADM's metrics of any samples against any reference: `mirai evaluate SAMPLES --reference REF`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mirai.errors import UserError
from mirai.evaluation.cache import cached_features
from mirai.evaluation.evaluate import Target, five_metrics
from mirai.evaluation.features import Inception
from mirai.evaluation.metrics import kernel_distance
from mirai.evaluation.reference import Reference, adm_statistics, check_widths, holds_statistics
from mirai.evaluation.sources import Images, of_path
from mirai.evaluation.statistics import Statistics, feature_statistics
from mirai.experiments.public_files import check_released, public_file
from mirai.experiments.site import load_site
from mirai.sampling.dump import MANIFEST as SAMPLES
from mirai.store import sample_images

ADM_SPLIT = 5000  # images per split of the inception score
PUBLISHED = 50_000  # samples behind published numbers
NEIGHBOURS = 3  # k of precision and recall
KID_SUBSET = 1000


def measure(
    samples: Path,
    reference: Path,
    *,
    inception: Path | None = None,
    num_samples: int | None = None,
    crop: int | None = None,
    split_size: int = ADM_SPLIT,
    kid: bool = False,
    batch_size: int = 64,
    device: str | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """FID, sFID, inception score, precision and recall in ADM's definitions, and with `kid` KID.

    `samples` is a folder of sampled codes, an .npz with arr_0, or a folder of images; `reference` an .npz in ADM's
    format, or images as samples are given. Codes of a larger side than the reference's are resized to it, bicubic before
    rounding, as LlamaGen does. `crop` is the side of ADM's centre crop for folders of images. `inception` None: the file
    of the site, or of `mirai download`. `num_samples` takes the first of them, `device` None a GPU if there is one.
    Features are kept in results/cache/. Warnings go to stderr.
    UserError, before any feature is computed, for what cannot be read or compared.
    """
    if min(batch_size, split_size) < 1:
        raise UserError(f"--batch-size {batch_size} and --split-size {split_size} must be at least 1")
    where = _device(device)
    if reference.is_file():
        check_released(reference)
    of_file = reference.is_file() and reference.suffix == ".npz" and holds_statistics(reference)
    statistics = adm_statistics(reference) if of_file else None
    if crop is not None and not any(_is_folder_of_images(path) for path in (samples, reference)):
        raise UserError(f"--crop {crop} is for folders of images, and neither {samples} nor {reference} is one")
    target_images = _images(reference, where, crop=crop)
    images = _images(samples, where, target_images.size[0], crop=crop)
    images = images if num_samples is None else images.first(num_samples)
    _check(images, target_images, split_size, kid)
    weights, published = inception or load_site().weights_file("inception"), public_file("inception")
    network = Inception(weights).to(where)
    if statistics is not None:
        check_widths(network, target_images, statistics)
    _warn(images, None if statistics else target_images)
    if published is None or network.sha256 != published.sha256:
        _told(f"{weights} is not the published Inception: its numbers compare only with others of the same file")

    target = _reference(network, target_images, statistics, batch_size, progress)
    features = cached_features(network, images, batch_size=batch_size, progress=progress)
    result: dict[str, Any] = five_metrics(
        features, Target.of(target, NEIGHBOURS, device=where, progress=progress), split_size, progress=progress
    )
    if kid:
        mean, deviation = kernel_distance(features.pooled, target.manifold, subset_size=KID_SUBSET)
        result |= {"kid": mean, "kid_deviation": deviation}
    return {
        **result,
        "samples": str(samples),
        "reference": str(reference),
        "num_samples": len(images),
        "num_reference": len(target_images),
        "image_size": list(images.size),
        "is_split_size": split_size,
        "statistics": "images" if statistics is None else "file",
        "inception_sha256": network.sha256,
    }


def summary(result: dict[str, Any]) -> str:
    """What `measure` gives as lines for a reader."""
    lines = [
        f"FID         {result['fid']:.4f}",
        f"sFID        {result['sfid']:.4f}",
        f"IS          {result['inception_score']:.4f}  (splits of {result['is_split_size']})",
        *(
            f"{name:<12}{result[name]:.4f}  (float32 distances: {result[f'{name}_float32']:.4f})"
            for name in ("precision", "recall")
        ),
    ]
    if "kid" in result:
        lines.append(f"KID         {result['kid']:.6f} +- {result['kid_deviation']:.6f}")
    height, width = result["image_size"]
    statistics = "its own statistics" if result["statistics"] == "file" else "statistics of its images"
    lines.append(
        f"{result['num_samples']} samples of {width}x{height} px against {result['reference']} ({statistics}; "
        f"{result['num_reference']} images)"
    )
    return "\n".join(lines)


def _device(name: str | None) -> str:
    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"--device {name}: torch sees no GPU here; --device cpu works everywhere")
    return name


def _is_folder_of_images(path: Path) -> bool:
    return path.is_dir() and not (path / SAMPLES).exists()


def _images(path: Path, device: str, side: int | None = None, *, crop: int | None) -> Images:
    """Images of a file or folder; decoded ones not larger than `side`."""
    if not (path / SAMPLES).exists():
        return of_path(path, crop)
    images, _ = sample_images(path, device)
    if side is None or images.size[0] <= side:
        return images
    return sample_images(path, device, side)[0]


def _check(images: Images, target: Images, split_size: int, kid: bool) -> None:
    """UserError for sets too small for what is asked, or of different sizes."""
    if len(images) < split_size:
        raise UserError(
            f"{images.what}: {len(images)} samples do not fill one split of {split_size} of the inception score; draw "
            "more, or choose a smaller split by --split-size, whose score is then lower than a published one"
        )
    for few in (images, target):
        if len(few) <= NEIGHBOURS:
            raise UserError(f"{few.what}: {len(few)} images have no {NEIGHBOURS} neighbours each; give more")
        if kid and len(few) < KID_SUBSET:
            raise UserError(f"{few.what}: KID is a mean over subsets of {KID_SUBSET} images, and here are {len(few)}")
    if images.size != target.size:
        (height, width), (wanted_height, wanted_width) = images.size, target.size
        raise UserError(
            f"{images.what} has images of {width}x{height} pixels, {target.what} of {wanted_width}x{wanted_height}: "
            "features of different sizes do not compare; --crop cuts a folder's images, `mirai export --size` resizes samples"
        )


def _warn(images: Images, computed: Images | None) -> None:
    """Tell what makes the numbers incomparable with published ones; `computed`: a reference without statistics."""
    if len(images) < PUBLISHED:
        _told(
            f"{len(images)} samples: FID and sFID of a small sample are strongly biased upwards; published numbers are of "
            f"{PUBLISHED:,}, so compare these only with others of as many"
        )
    if computed is not None and len(computed) < PUBLISHED:
        _told(f"statistics of {len(computed)} reference images: published numbers take those of the whole training set")


def _told(warning: str) -> None:
    print(f"mirai: {warning}", file=sys.stderr)


def _reference(
    network: nn.Module,
    images: Images,
    statistics: tuple[Statistics, Statistics] | None,
    batch_size: int,
    progress: bool,
) -> Reference:
    features = cached_features(network, images, batch_size=batch_size, progress=progress)
    pooled, spatial = statistics or (feature_statistics(features.pooled), feature_statistics(features.spatial))
    return Reference(pooled, spatial, features.pooled)
