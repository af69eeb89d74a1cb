"""Scales: the base configuration that turns a grid's roles (size B, encoder `default`) into concrete recipes."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, NonNegativeInt, PositiveInt, model_validator

from mirai.errors import UserError
from mirai.experiments import paths
from mirai.experiments.recipe import Data, Encoder, Evaluation, Head, Model, Recipe, Sampling, Tokenizer, Training
from mirai.experiments.yaml_input import hint, read_yaml, validate


def _distinct(seeds: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(seeds)) != len(seeds):
        raise ValueError("each seed is given once")
    return seeds


Seeds = Annotated[tuple[NonNegativeInt, ...], Field(min_length=1), AfterValidator(_distinct)]


ON_CPU = ("features",)  # kinds of stages that never compute on a GPU


class Size(Recipe):
    """A model size with what the paper sets per size."""

    model: Model
    guidance: float = Field(ge=1.0)
    encoder: str  # the role that `default` means for this size
    lr_schedule: Literal["constant", "cosine"] = "constant"


class Numerics(Recipe):
    """How the arithmetic is done: fixed per scale, recorded in manifests, not in keys (same samples, other round-off)."""

    device: Literal["cpu", "cuda"] = "cuda"
    threads: PositiveInt | None = None  # of one process; None: torch's choice
    attention: Literal["flash", "explicit"] = "flash"
    deterministic: bool = False  # GPU only: deterministic kernels
    store_squares: bool = True  # keep the resized pictures beside the codes, for encoders to look at


class Scale(Recipe):
    """One file of experiments/scales/."""

    data: Data
    tokenizer: Tokenizer
    sizes: dict[str, Size]
    encoders: dict[str, Encoder]
    head: Head
    training: Training
    ladder: tuple[PositiveInt, ...]
    sampling: Sampling
    evaluation: Evaluation
    numerics: Numerics
    resolutions: dict[int, PositiveInt] = {}  # the paper's 256 and 384 -> the sides in pixels that stand for them here
    seeds: Seeds = (0,)  # of grids that name none
    jobs_per_gpu: PositiveInt = 1  # that share a GPU, trainings of SLURM apart: a small model leaves most of it idle

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.resolutions and self.data.resolution not in self.resolutions.values():
            raise ValueError(f"`resolutions` must name data.resolution {self.data.resolution} too")
        for name, size in self.sizes.items():
            if size.encoder not in self.encoders:
                raise ValueError(f"sizes.{name}.encoder is '{size.encoder}'; encoders are {', '.join(self.encoders)}")
        return self


def scale_names() -> list[str]:
    """Names of the scale files."""
    return sorted(path.stem for path in paths.SCALES.glob("*.yaml"))


@functools.cache  # the planner asks once per state
def load_scale(name: str) -> Scale:
    """A scale by name; `folder-<name>` is the folder scale over the data set of that name."""
    base, _, data_name = name.partition("-")
    if name == "folder" or (base == "folder" and not re.fullmatch(r"[a-z0-9][a-z0-9-]*", data_name)):
        raise UserError(
            "the folder scale needs a name for your images, in small letters, digits and dashes: "
            "results/folder-<name>/..., with data.<name> in config/site.yaml"
        )
    path = paths.SCALES / f"{base if base == 'folder' else name}.yaml"
    if not path.exists():
        paths.refuse_elsewhere()
        near = hint(name, scale_names())
        raise UserError(
            f"there is no scale '{name}'; {near}scales are {', '.join(scale_names())} (folder as folder-<name>)"
        )
    content = read_yaml(path)
    if base == "folder":
        content["data"] = {**content.get("data", {}), "name": data_name}
    return validate(Scale, content, str(path))


def grid_file(grid: str) -> Path:
    """The YAML file of a grid."""
    return paths.EXPERIMENTS / f"{grid}.yaml"
