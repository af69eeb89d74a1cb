"""How far a state is, as its journal, its job and its lock tell. Reads files and the shared answers of the queue only."""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mirai.experiments import journals, paths
from mirai.launch.queue import JobState
from mirai.launch.record import Job
from mirai.states import is_published


@dataclass(frozen=True)
class Progress:
    """The last line of a training's journal. `eta_s` counts from now, if it is still running."""

    step: int
    last_step: int
    epoch: float
    eta_s: float

    def __str__(self) -> str:
        return f"step {self.step}/{self.last_step}, epoch {self.epoch:g}"


def progress(key: str) -> Progress | None:
    """How far a training has come; None before its first line."""
    last = (journals.lines(key) or [{}])[-1]
    if "last_step" not in last:
        return None
    since = time.time() - paths.journal(key).stat().st_mtime
    return Progress(last["step"], last["last_step"], last["epoch"], max(0.0, last["eta_s"] - since))


def saved(keys: Iterable[str]) -> list[str]:
    """What there is of some states: published ones, and points inside one to go on from."""
    found: list[str] = []
    for key in keys:
        found += [str(path) for path in sorted(paths.folder("state", key).glob("progress-*.json"))]
        found += [key] if is_published(paths.manifest("state", key)) else []
    return found


def clock(seconds: float | None) -> str:
    """Hours, minutes and seconds; a dash for None."""
    if seconds is None:
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def writer(folder: Path) -> str | None:
    """The process of this machine that is making a stage, from its lock; None if there is none or it lives elsewhere.

    The lock itself is not tried: who wants it at that moment would be refused.
    """
    try:
        text = (folder / "lock").read_text()
    except OSError:
        return None
    match = re.match(r"process (\d+) on (\S+) since", text)
    alive = match is not None and match[2] == socket.gethostname() and os.path.exists(f"/proc/{match[1]}")
    return f"process {match[1]}" if match is not None and alive else None


def trains_now(job: Job) -> str | None:
    """The first state of a job's chain that is not published yet."""
    return next((key for key in job.chain if not is_published(paths.manifest("state", key))), None)


def standing(key: str, job: Job | None, state: JobState | None) -> str:
    """Where an unpublished state stands, in a few words that begin with running, queued, failed, stopped or missing."""
    come = progress(key)
    far = "" if come is None else f", {come}"
    if job is not None and state is not None and state.active:
        if state.name == "RUNNING" and trains_now(job) == key:
            return f"running in job {job.id}{far}{'' if come is None else f', eta {clock(come.eta_s)}'}"
        if state.name == "RUNNING":
            return f"queued in job {job.id}, after {trains_now(job)}"
        return f"queued in job {job.id} ({', '.join(filter(None, (state.name, state.reason)))}){far}"
    if process := writer(paths.folder("state", key)):
        return f"running in {process}{far}{'' if come is None else f', eta {clock(come.eta_s)}'}"
    if job is not None and state is not None and state.failed:
        return f"failed in job {job.id} ({state.name}){far}; {job.log}"
    return "missing" if come is None else f"stopped{far}"
