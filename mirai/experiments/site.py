"""config/site.yaml: where this machine keeps data and weights, and how many ranks train. Never part of a key."""

from __future__ import annotations

from pathlib import Path

from pydantic import PositiveFloat, PositiveInt

from mirai.errors import UserError
from mirai.experiments import paths
from mirai.experiments.recipe import Recipe
from mirai.experiments.yaml_input import read_yaml, validate


class Site(Recipe):
    """One machine's or cluster's places. config/site.example.yaml explains each field."""

    data: dict[str, str] = {}
    weights: dict[str, str] = {}
    ranks: PositiveInt = 1
    save_minutes: PositiveFloat = 10.0

    def image_folder(self, name: str) -> Path:
        """Folder of an image data set; UserError if the site does not say or it is not there."""
        return self._place("data", name, self.data, "a folder with one sub-folder of images per class")

    def weights_file(self, name: str) -> Path:
        """A released weights file; UserError if the site does not say or it is not there."""
        return self._place("weights", name, self.weights, "the file's path on this machine")

    def _place(self, section: str, name: str, places: dict[str, str], meaning: str) -> Path:
        if name not in places:
            raise UserError(f"{paths.SITE}: key '{section}.{name}' is missing; write there {meaning}")
        path = Path(places[name]).expanduser()
        if not path.exists():
            raise UserError(f"{paths.SITE}: '{section}.{name}' is {path}, which does not exist")
        return path


def load_site() -> Site:
    """The site of the working directory; defaults where there is no file."""
    if not paths.SITE.exists():
        return Site()
    return validate(Site, read_yaml(paths.SITE), str(paths.SITE))
