"""Every path of the project, relative to the working directory. The only module that knows the layout of results/."""

from __future__ import annotations

from pathlib import Path

from mirai.errors import UserError

EXPERIMENTS = Path("experiments")
SCALES = EXPERIMENTS / "scales"
SITE = Path("config/site.yaml")
DOWNLOADS = Path("config/downloads.yaml")
SCHEMAS = Path("workflow/schemas")  # of the YAML files, for editors
WEIGHTS = Path("weights")  # where `mirai download` puts released files, and where they are found
RESULTS = Path("results")
STORE = RESULTS / "store"
QUEUE = STORE / ".queue"  # what squeue said last, one file a user

SUFFIXES = (".csv", ".md", ".tex", ".html", ".png", ".pdf")  # of what a grid gives
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


def kind(name: str) -> Path:
    """Folder of all stages of a kind in the store."""
    return STORE / name


def folder(kind: str, key: str) -> Path:
    """Folder of a stage in the store."""
    return STORE / kind / key


def manifest(kind: str, key: str) -> Path:
    """Manifest that publishes a stage."""
    return folder(kind, key) / MANIFESTS[kind]


def resume(key: str) -> Path:
    """Manifest of what training on from a state needs beside its weights; `mirai gc` deletes it."""
    return folder("state", key) / "resume.json"


def journal(key: str) -> Path:
    """What the training of a state logs, for programs."""
    return folder("state", key) / "log.jsonl"


def frozen(kind: str, key: str) -> Path:
    """The frozen recipe of a stage."""
    return folder(kind, key) / "recipe.json"


def job(key: str) -> Path:
    """The record of the queued job that trains a state."""
    return folder("state", key) / "job.json"


def jobs(key: str) -> Path:
    """Where the jobs that train a state and what follows it leave their scripts and logs."""
    return RESULTS / "logs" / "jobs" / key


def features_cache(key: str) -> Path:
    """Features that `mirai evaluate` keeps for the next time; may be deleted."""
    return RESULTS / "cache" / "features" / f"{key}.npz"


def benchmark(kind: str, key: str) -> Path:
    """Seconds and memory of a stage's job, as Snakemake measures them."""
    return RESULTS / "logs" / kind / f"{key}.tsv"


def prefix(scale: str) -> str:
    """What stands between results/ and a grid's name: nothing for the paper's scale."""
    return "" if scale == PAPER_SCALE else f"{scale}/"


def scale_of(prefix: str) -> str:
    """Inverse of `prefix`."""
    return prefix.rstrip("/") or PAPER_SCALE


def refuse_elsewhere() -> None:
    """UserError in a folder that is no clone of the project, where nothing would be found and all seem well."""
    if not EXPERIMENTS.is_dir():
        raise UserError(f"there is no {EXPERIMENTS}/ here: run this where the project lies")


def product(scale: str, grid: str, suffix: str = ".csv") -> Path:
    """A grid's table (.csv, .md, .tex, .html) or figure (.png, .pdf) at a scale."""
    return RESULTS / f"{prefix(scale)}{grid}{suffix}"


def everything(scale: str) -> Path:
    """The file that says what all of the paper came to at a scale."""
    return RESULTS / f"{prefix(scale)}all"


def index(scale: str) -> Path:
    """The page with everything of a scale."""
    return RESULTS / f"{prefix(scale)}index.html"


def grid_of(product: Path) -> tuple[str, str] | None:
    """Grid and scale of a table's or figure's path, the inverse of `product`; None for another path."""
    if product.suffix not in SUFFIXES or not product.is_relative_to(RESULTS):
        return None
    within = product.with_suffix("").relative_to(RESULTS).parts
    return (within[-1], within[0] if len(within) == 2 else PAPER_SCALE) if len(within) <= 2 else None


def costs(scale: str) -> Path:
    """What the trainings of a scale have cost."""
    return RESULTS / f"{prefix(scale)}costs.csv"


def key_record(made: Path) -> Path:
    """Hidden file beside a table or figure with the key it was made for."""
    return made.with_name(f".{made.name}.key")
