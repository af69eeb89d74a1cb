"""config/downloads.yaml: released weights and reference files, with what `mirai download` holds them to."""

from __future__ import annotations

from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from mirai.errors import UserError
from mirai.experiments import paths
from mirai.experiments.recipe import Recipe
from mirai.experiments.yaml_input import read_yaml, validate
from mirai.states import sha256


class PublicFile(Recipe):
    """A file that others have published. config/downloads.yaml explains each field."""

    file: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    address: str
    sha256: str | None = Field(pattern=r"^[0-9a-f]{64}$")
    bytes: PositiveInt | None = None
    gigabytes: PositiveFloat | None = None
    licence: str
    needed_by: str

    @property
    def path(self) -> Path:
        """Where `mirai download` puts it, and where it is looked for."""
        return paths.WEIGHTS / self.file

    @property
    def host(self) -> str:
        """Who serves the file."""
        return urlsplit(self.address).hostname or ""

    @property
    def size(self) -> int | None:
        """Bytes, perhaps rounded; None if nothing is known."""
        if self.bytes is not None or self.gigabytes is None:
            return self.bytes
        return round(self.gigabytes * 1e9)

    @property
    def stated_size(self) -> str:
        """The size as far as it is known."""
        if self.bytes is not None:
            return f"{self.bytes} bytes"
        return "not known" if self.size is None else f"about {shown_bytes(self.size)}"

    def fits(self, size: int) -> bool:
        """Whether a file of `size` bytes can be this one; a rounded size leaves 1%."""
        if self.bytes is not None:
            return size == self.bytes
        return self.size is None or abs(size - self.size) <= self.size / 100

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        scheme = urlsplit(self.address).scheme
        if scheme != "https" and not (scheme == "http" and self.host in ("127.0.0.1", "localhost")):
            raise ValueError(f"address {self.address} must begin with https://")
        if self.bytes is not None and self.gigabytes is not None:
            raise ValueError("a size is given as `bytes` or, rounded, as `gigabytes`")
        return self


class PublicFiles(Recipe):
    """All of them by the names under which scales, recipes and config/site.yaml know them."""

    files: dict[str, PublicFile]

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        taken = [entry.file for entry in self.files.values()]
        for file in taken:
            if taken.count(file) > 1:
                raise ValueError(f"two files would be stored as {file}")
        return self


def public_files() -> dict[str, PublicFile]:
    """The files of config/downloads.yaml by name; UserError if it is missing or says something impossible."""
    listed: PublicFiles = validate(PublicFiles, read_yaml(paths.DOWNLOADS), str(paths.DOWNLOADS))
    return listed.files


def public_file(name: str) -> PublicFile | None:
    """One of them; None if there is none of that name, or no list."""
    return public_files().get(name) if paths.DOWNLOADS.exists() else None


def check_released(file: Path, name: str | None = None) -> str:
    """SHA-256 of a file; UserError if it goes by a published one's name, its own or that in a recipe, with another sum."""
    files = public_files() if paths.DOWNLOADS.exists() else {}
    known = name or next((known for known, entry in files.items() if entry.file == file.name), "")
    found, published = sha256(file), files[known].sha256 if known in files else None
    if published not in (None, found):
        mend = f"let weights.{known} in {paths.SITE} name that one, or leave it out and run `mirai download {known}`"
        if name is None:
            mend = f"delete it and run `mirai download {known}`, or give a file of your own another name"
        raise UserError(
            f"{file} is not the published {files[known].file}: its SHA-256 is {found}, {paths.DOWNLOADS} says {published}; {mend}"
        )
    return found


def shown_bytes(size: int | None) -> str:
    """A size for reading, as file hosts print it: 287920306 is 288 MB."""
    if size is None:
        return "size unknown"
    for unit, name in ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if size >= unit:
            number = size / unit
            return f"{number:.0f} {name}" if number >= 100 else f"{number:.3g} {name}"
    return f"{size} bytes"
