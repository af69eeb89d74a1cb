"""Every path of the project, relative to the working directory. The only module that knows the layout of results/."""

from __future__ import annotations

from pathlib import Path

EXPERIMENTS = Path("experiments")
SCALES = EXPERIMENTS / "scales"
SITE = Path("config/site.yaml")
RESULTS = Path("results")
STORE = RESULTS / "store"

PAPER_SCALE = "imagenet256"  # owns results/ itself; any other scale owns results/<scale>/

# The file whose appearance says that a stage is done, per kind of stage.
MANIFESTS = {
    "tokenizer": "tokenizer.json",
    "codes": "codes.json",
    "encoder": "encoder.json",
    "features": "features.json",
    "reference": "reference.json",
    "state": "weights.json",
    "samples": "samples.json",
    "metrics": "metrics.json",
}


def folder(kind: str, key: str) -> Path:
    """Folder of a stage in the store."""
    return STORE / kind / key


def manifest(kind: str, key: str) -> Path:
    """Manifest that publishes a stage."""
    return folder(kind, key) / MANIFESTS[kind]


def resume(key: str) -> Path:
    """Manifest of what training on from a state needs beside its weights; `mirai gc` deletes it."""
    return folder("state", key) / "resume.json"


def frozen(kind: str, key: str) -> Path:
    """The frozen recipe of a stage."""
    return folder(kind, key) / "recipe.json"


def benchmark(kind: str, key: str) -> Path:
    """Seconds and memory of a stage's job, as Snakemake measures them."""
    return RESULTS / "logs" / kind / f"{key}.tsv"


def prefix(scale: str) -> str:
    """What stands between results/ and a grid's name: nothing for the paper's scale."""
    return "" if scale == PAPER_SCALE else f"{scale}/"


def scale_of(prefix: str) -> str:
    """Inverse of `prefix`."""
    return prefix.rstrip("/") or PAPER_SCALE


def table(scale: str, grid: str, suffix: str = ".csv") -> Path:
    """A grid's table at a scale."""
    return RESULTS / f"{prefix(scale)}{grid}{suffix}"


def figure(scale: str, grid: str, name: str, suffix: str = ".png") -> Path:
    """A grid's figure at a scale."""
    return RESULTS / f"{prefix(scale)}{grid}_{name}{suffix}"


def key_record(made: Path) -> Path:
    """Hidden file beside a table or figure with the key it was made for."""
    return made.with_name(f".{made.name}.key")
