"""What trainings have logged: log.jsonl beside each state, a line per interval of steps."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from mirai.experiments import paths
from mirai.experiments.scale import load_scale
from mirai.states import read_json


@dataclass(frozen=True)
class Logged:
    """What a journal sums up to: images, seconds of the training, and those of its ranks together."""

    images: float
    seconds: float
    rank_seconds: float


def lines(key: str) -> list[dict[str, Any]]:
    """The whole lines of a state's journal; none where there is no journal."""
    path = paths.journal(key)
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines() if line.endswith("}")]


def logged(key: str) -> Logged:
    """The sums of a journal, without lines of a version that did not note their seconds."""
    noted = [line for line in lines(key) if "seconds" in line]
    return Logged(
        images=sum(line.get("images_per_second", 0.0) * line["seconds"] for line in noted),
        seconds=sum(line["seconds"] for line in noted),
        rank_seconds=sum(line["seconds"] * line.get("ranks", 1) for line in noted),
    )


def sharing(key: str, scale_name: str) -> int:
    """How many jobs a rank's GPU is divided over, its own included; 1 on the CPU, and for jobs of SLURM."""
    scale, job = load_scale(scale_name), paths.job(key)
    alone = scale.numerics.device == "cpu" or (job.exists() and read_json(job).get("cluster") == "slurm")
    return 1 if alone else scale.jobs_per_gpu
