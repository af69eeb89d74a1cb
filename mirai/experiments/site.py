"""config/site.yaml: where this machine keeps data and weights, and how many ranks train. Never part of a key."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Self

from pydantic import PositiveFloat, PositiveInt, field_validator, model_validator

from mirai.errors import UserError
from mirai.experiments import paths
from mirai.experiments.public_files import public_file, shown_bytes
from mirai.experiments.recipe import Recipe
from mirai.experiments.yaml_input import read_yaml, validate

HUB = "hub"  # in place of a timm encoder's path: timm's own hub and its cache


class Slurm(Recipe):
    """What jobs ask of a cluster. Read by rules, for snakemake-executor-plugin-slurm, and by training jobs."""

    account: str | None = None
    partition: str
    qos: str | None = None
    constraint: str | None = None
    nodes: PositiveInt = 1  # of one training
    ranks_per_node: PositiveInt = 1
    cpus_per_rank: PositiveInt = 8
    memory_gb: PositiveFloat = 32.0  # per node
    training_minutes: PositiveInt
    stage_minutes: PositiveInt
    signal_seconds: PositiveInt = 120
    setup: tuple[str, ...] = ()
    poll_seconds: PositiveFloat = 60.0

    @property
    def ranks(self) -> int:
        """Processes of one training."""
        return self.nodes * self.ranks_per_node

    @model_validator(mode="after")
    def _time_to_save(self) -> Self:
        if self.signal_seconds >= 60 * self.training_minutes:
            raise ValueError(
                f"signal_seconds {self.signal_seconds} is no less than training_minutes {self.training_minutes}: "
                "every allocation would be told to save as soon as it starts"
            )
        return self


class Site(Recipe):
    """One machine's or cluster's places. config/site.example.yaml explains each field."""

    data: dict[str, str] = {}
    weights: dict[str, str] = {}
    ranks: PositiveInt = 1
    save_minutes: PositiveFloat = 10.0
    tensorboard: bool = False
    slurm: Slurm | None = None

    def rank_counts(self) -> dict[str, int]:
        """Processes of one training, by what says so."""
        own = {"ranks": self.ranks}
        return own if self.slurm is None else own | {"slurm.nodes x ranks_per_node =": self.slurm.ranks}

    def cluster(self) -> Slurm:
        """The SLURM section; UserError where there is none."""
        if self.slurm is None:
            example = paths.SITE.with_suffix(".example.yaml")
            raise UserError(
                f"{paths.SITE} has no section 'slurm', which says what jobs ask of the cluster; see {example}"
            )
        return self.slurm

    @field_validator("tensorboard")
    @classmethod
    def _tensorboard_is_there(cls, wanted: bool) -> bool:
        if wanted and importlib.util.find_spec("tensorboard") is None:
            raise ValueError("the package is missing; `pip install mirai[tensorboard]`")
        return wanted

    def image_folder(self, name: str) -> Path:
        """Folder of an image data set; UserError if the site does not say or it is not there."""
        return self._place("data", name, self.data, "a folder with one sub-folder of images per class")

    def weights_file(self, name: str) -> Path:
        """A released file: what the site says, else what `mirai download` left; UserError if it is not there.

        Whether it is the right one is for `mirai download` to check: hashing gigabytes takes too long here.
        """
        if self.from_hub(name):
            raise UserError(f"{paths.SITE}: 'weights.{name}' is {HUB}, and {name} is read from a file; write its path")
        released = public_file(name)
        if name in self.weights or released is None:
            return self._place("weights", name, self.weights, "the file's path on this machine")
        if not released.path.exists():
            raise UserError(
                f"{released.path} is missing: `mirai download {name}` fetches it ({shown_bytes(released.size)} from "
                f"{released.address}), or name a copy of yours as weights.{name} in {paths.SITE}"
            )
        return released.path

    def from_hub(self, name: str) -> bool:
        """Whether a timm encoder's weights come from timm's hub cache instead of a file."""
        return self.weights.get(name) == HUB

    def _place(self, section: str, name: str, places: dict[str, str], meaning: str) -> Path:
        if name not in places:
            raise UserError(f"{paths.SITE}: key '{section}.{name}' is missing; write there {meaning}")
        path = expanded(places[name])
        if not path.exists():
            raise UserError(f"{paths.SITE}: '{section}.{name}' is {path}, which does not exist")
        return path


def expanded(place: str) -> Path:
    """A place with ~ and ~user written out; as it is where there is no such user, and then it does not exist."""
    try:
        return Path(place).expanduser()
    except RuntimeError:
        return Path(place)


def load_site() -> Site:
    """The site of the working directory; defaults where there is no file."""
    if not paths.SITE.exists():
        return Site()
    return validate(Site, read_yaml(paths.SITE), str(paths.SITE))
