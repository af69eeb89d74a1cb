"""States on disk. A resume point is self-contained; the newest good one wins, a damaged one is named and passed over."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from mirai.errors import UserError
from mirai.experiments import paths
from mirai.experiments.plan import lookup
from mirai.states import is_published, load_tensors, publish, read_json, save_tensors, write_json
from mirai.training.state import TrainState

Numerics = dict[str, Any]  # how arithmetic was done: device, precision, threads, ranks

KEPT = 2  # progress points: the newest, and the one before it in case the newest is damaged


@dataclass(frozen=True)
class ResumePoint:
    """Where a training goes on from.

    `grown_from`: the state that all this began with, None for step 0. `numerics`: those of the trainings since.
    `record`: what a finished state's manifest said, where that state's end is it.
    """

    step: int
    tensors: dict[str, Tensor]
    grown_from: str | None
    numerics: list[Numerics] = field(default_factory=list)
    record: dict[str, Any] | None = None


def save_progress(folder: Path, state: TrainState, grown_from: str | None, numerics: list[Numerics]) -> None:
    """Keep the state inside a segment, then drop all but the last KEPT."""
    name = f"progress-{state.step:09d}"
    entry = save_tensors(folder / f"{name}.safetensors", state.tensors())
    content = {"step": state.step, "grown_from": grown_from, "numerics": numerics, "payloads": {"state": entry}}
    write_json(folder / f"{name}.json", content)
    for manifest in _progress(folder)[KEPT:]:
        manifest.unlink()
        manifest.with_suffix(".safetensors").unlink(missing_ok=True)


def save_final(key: str, state: TrainState, record: dict[str, Any]) -> None:
    """Publish a finished state: resume.json for children, then weights.json for sampling.

    Where weights.json is there already (the optimiser had been collected), only resume.json is written again.
    """
    folder = paths.folder("state", key)
    tensors = state.tensors()
    content = {**record, "step": state.step}
    resume_entry = save_tensors(folder / "resume.safetensors", tensors)
    weights = paths.manifest("state", key)
    publish(paths.resume(key), content, {"state": resume_entry})
    if not is_published(weights):
        kept = {name: tensor for name, tensor in tensors.items() if name.startswith(("model/", "ema/"))}
        weights_entry = save_tensors(folder / "weights.safetensors", kept)
        publish(weights, content, {"weights": weights_entry})
    for manifest in _progress(folder):
        manifest.unlink()
    for payload in folder.glob("progress-*.safetensors"):
        payload.unlink()


def newest(key: str, parent: str | None) -> ResumePoint | None:
    """What to go on from: own end (where only its weights were lost), own progress, newest first, else the end of the
    parent, or of its parent, and so on; None to start at step 0.
    """
    own_end = paths.resume(key)
    for manifest in (own_end, *_progress(own_end.parent), *_trunk(parent)):
        own = manifest.parent == own_end.parent
        if not manifest.exists():
            if not own:
                print(f"{manifest} is not there: training from an earlier state, to the same bits", file=sys.stderr)
            continue
        try:
            content = read_json(manifest)
            tensors = load_tensors(manifest.parent, content.pop("payloads")["state"])
        except UserError as damage:
            print(f"{damage}; going on from an earlier one", file=sys.stderr)
            continue
        if not own:
            return ResumePoint(content["step"], tensors, grown_from=manifest.parent.name)
        if manifest == own_end:
            return ResumePoint(content["step"], tensors, content.get("grown_from", parent), record=content)
        return ResumePoint(content["step"], tensors, content.get("grown_from", parent), content.get("numerics", []))
    return None


def _trunk(parent: str | None) -> Iterator[Path]:
    """Manifests of the states that a training grows out of, newest first."""
    with contextlib.suppress(UserError):  # of a state that nobody knows any more
        while parent is not None:
            yield paths.resume(parent)
            parent = lookup(parent).parent


def _progress(folder: Path) -> list[Path]:
    """Manifests of progress points, newest first."""
    return sorted(folder.glob("progress-*.json"), reverse=True)
