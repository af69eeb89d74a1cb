"""What is looked at before a table is made: whether its numbers suffice, and the image folder, if it is made of one."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import asdict

from mirai.errors import UserError
from mirai.evaluation.statistics import VECTORS_PER_DIMENSION as PER_FEATURE
from mirai.experiments import paths
from mirai.experiments.plan import measured, plan_grid
from mirai.experiments.scale import Scale, load_scale
from mirai.experiments.site import load_site
from mirai.experiments.stages import Stage
from mirai.states import is_published, read_json

READERS = ("tokenizer", "codes", "encoder", "features", "reference")  # stages that look at images
INCEPTION_WIDTH = 2048  # of its pooled features; the spatial ones are 2023
SPATIAL_CELLS = 16  # of the small feature network's last map


@functools.cache  # Snakemake asks once per target
def check(grid_name: str, scale_name: str) -> None:
    """UserError for a table that would fail after its trainings: too few images or samples, or another image folder.

    The paper's folder is left to its stages, which look when they open it: listing 1.28 million files takes minutes.
    """
    scale = load_scale(scale_name)
    samples, split = scale.sampling.num_samples, scale.evaluation.is_split_size
    if samples < split:
        raise UserError(
            f"scale {scale_name}: num_samples {samples} do not fill one split of the inception score, is_split_size {split}"
        )
    _require_enough(scale, samples, f"scale {scale_name}: {samples} samples")
    if scale.evaluation.reference is None:
        count = scale.evaluation.num_reference
        _require_enough(scale, count, f"scale {scale_name}: {count} reference images")
    if scale.data.source == "folder" and scale_name != paths.PAPER_SCALE:
        _check_folder(grid_name, scale_name)


def _require_enough(scale: Scale, count: int, what: str) -> None:
    """UserError below ten images per feature, of which the stages complain once they know how many can be read."""
    features = scale.evaluation.features
    if features.width is None or features.spatial_channels is None:
        width, otherwise = INCEPTION_WIDTH, "measure fewer by `mirai evaluate SAMPLES --reference REF`"
    else:
        width = max(features.width, SPATIAL_CELLS * features.spatial_channels)
        otherwise = "narrow evaluation.features of the scale"
    if count < PER_FEATURE * width:
        raise UserError(
            f"{what} are too few: statistics of {width} features need {PER_FEATURE * width}; give more, or {otherwise}"
        )


def _check_folder(grid_name: str, scale_name: str) -> None:
    """UserError for an image folder that is too small, or not as it was when stages were made of it.

    Where there is none (any more), nothing is wrong before a stage must read it.
    """
    from mirai.data.folder import fingerprint  # imports numpy and PIL

    scale = load_scale(scale_name)
    try:
        folder = load_site().image_folder(scale.data.name)
    except UserError:
        return
    now = fingerprint(folder)
    for stage in _readers(grid_name, scale_name):
        manifest = paths.manifest(stage.kind, stage.key)
        content = read_json(manifest) if is_published(manifest) else {}
        then = content.get("source") or content.get("report", {}).get("source")
        if then not in (None, asdict(now)):
            raise UserError(
                f"image folder {folder} has changed since {manifest} was made of it ({then['files']} files of "
                f"{then['bytes']} bytes then, {now.files} of {now.bytes} now); give the new contents a new name "
                f"in {paths.SITE}"
            )
    if scale.evaluation.reference is None:
        _require_enough(scale, now.files, f"image folder {folder}: {now.files} images")


def _readers(grid_name: str, scale_name: str) -> list[Stage]:
    """The stages behind a grid that look at images."""

    def needed(stage: Stage) -> Iterator[Stage]:
        yield stage
        for other in stage.needs():
            yield from needed(other)

    grid = plan_grid(grid_name, scale_name)
    stages = {stage.key: stage for metrics in measured(grid) for stage in needed(metrics)}
    return [stage for stage in stages.values() if stage.kind in READERS]
