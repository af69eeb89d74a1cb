"""What has become of jobs. All waiters of a user share one file with the answers, so squeue is asked once a minute."""

from __future__ import annotations

import fcntl
import json
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mirai.errors import UserError
from mirai.experiments import paths
from mirai.experiments.site import load_site
from mirai.launch import record
from mirai.launch.record import Job
from mirai.states import write_json

PATIENCE = 60.0  # seconds for one answer of squeue or sacct
# What SLURM's programs say when the server is busy or away.
AWAY = (
    *("Unable to contact slurm controller", "Socket timed out", "temporarily una", "Connection refused", "timed out"),
    *("Zero Bytes were transmitted", "Transport endpoint is not connected", "Communication connection failure"),
    *("Munge encode failed", "standby mode", "Unexpected message received"),
)
# In the queue or on its nodes. UNREACHABLE is ours: nobody answered, so nothing is concluded.
ACTIVE = (
    "PENDING",
    "RUNNING",
    "SUSPENDED",
    "STOPPED",
    "COMPLETING",
    "CONFIGURING",
    "REQUEUED",
    "REQUEUE_HOLD",
    "REQUEUE_FED",
    "RESIZING",
    "RESV_DEL_HOLD",
    "SIGNALING",
    "SPECIAL_EXIT",
    "STAGE_OUT",
    "UNREACHABLE",
)
# The allocation was taken away, and the job is queued again by itself or by SLURM.
INTERRUPTED = ("TIMEOUT", "PREEMPTED", "NODE_FAIL")


@dataclass(frozen=True)
class JobState:
    """A job as its queue sees it. `name` is SLURM's word; UNKNOWN: no trace of it is left."""

    name: str
    reason: str = ""
    elapsed_s: int | None = None
    nodes: str = ""

    @property
    def active(self) -> bool:
        """Whether the job waits or runs."""
        return self.name in ACTIVE

    @property
    def failed(self) -> bool:
        """Whether the job ended badly and does not come back by itself."""
        return not self.active and self.name not in INTERRUPTED and self.name not in ("COMPLETED", "UNKNOWN")


UNKNOWN = JobState("UNKNOWN", "neither squeue nor sacct knows it")


def states(jobs: Iterable[Job]) -> dict[str, JobState]:
    """What each job does, by its id; at most `slurm.poll_seconds` of config/site.yaml old."""
    jobs = list(jobs)
    local = {job.id: _local(job) for job in jobs if job.cluster == "local"}
    wanted = {job.id for job in jobs if job.cluster == "slurm"}
    return local | (_polled(wanted) if wanted else {})


def submitted(job: Job) -> None:
    """Note a job that was just accepted, so that its first waiter need not ask for it."""
    if job.cluster == "slurm":
        with _locked_file() as file:
            known = _read(file)
            known["states"][job.id] = asdict(JobState("PENDING", "just submitted"))
            write_json(file, known)


def poll_seconds() -> float:
    """How often squeue is asked; once a minute too while a user is in the middle of editing the site."""
    try:
        slurm = load_site().slurm
    except UserError:
        return 60.0
    return 60.0 if slurm is None else slurm.poll_seconds


def _polled(wanted: set[str]) -> dict[str, JobState]:
    period = poll_seconds()
    with _locked_file() as file:
        known = _read(file)
        answered = {identity: JobState(**state) for identity, state in known["states"].items()}
        if not 0 <= time.time() - known["asked"] < period or not wanted <= answered.keys():
            others = {job.id for job in record.all_jobs() if job.cluster == "slurm"}
            asked = wanted | {name for name in others if name not in answered or answered[name].active}
            answered |= _ask(asked, answered)
            write_json(
                file, {"asked": time.time(), "states": {name: asdict(state) for name, state in answered.items()}}
            )
    return {identity: answered[identity] for identity in wanted}


def _ask(identities: set[str], before: dict[str, JobState]) -> dict[str, JobState]:
    """squeue for all, sacct for those that squeue has forgotten. Without an answer the last state stays, if active."""
    names = ",".join(sorted(identities))
    rows = answer("squeue", "--noheader", "--states=all", f"--jobs={names}", "--format=%i|%T|%r|%M|%N")
    if rows is None:
        silent = JobState("UNREACHABLE", "squeue does not answer")
        return {name: state if (state := before.get(name, silent)).active else silent for name in identities}
    found = {row[0]: JobState(row[1], _reason(row[2]), seconds(row[3]), row[4]) for row in rows if len(row) == 5}
    if forgotten := sorted(identities - found.keys()):
        columns = "--format=JobIDRaw,State,ElapsedRaw,NodeList"
        rows = answer("sacct", "-nXP", "--allusers", f"--jobs={','.join(forgotten)}", columns)
        for row in rows or []:
            if len(row) == 4 and row[0] in identities:  # "CANCELLED by 1000"
                found[row[0]] = JobState(row[1].split()[0], "", seconds(row[2]), row[3])
    return {name: found.get(name, UNKNOWN) for name in identities}


def ask_again() -> None:
    """Let the next question go to squeue, however new the last answers are."""
    with _locked_file() as file:
        write_json(file, _read(file) | {"asked": 0.0})


def answer(*command: str) -> list[list[str]] | None:
    """Columns of each line that a command prints; None if it does not answer."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        print(f"mirai: {command[0]} does not answer ({error})", file=sys.stderr)
        return None
    if done.returncode != 0:
        if "Invalid job id" in done.stderr:  # squeue, of a job that it has forgotten
            return []
        print(f"mirai: {command[0]} does not answer: {done.stderr.strip()}", file=sys.stderr)
        return None
    return [line.split("|") for line in done.stdout.splitlines() if line]


def _reason(text: str) -> str:
    return "" if text == "None" else text


def seconds(text: str) -> int | None:
    """SLURM's [[days-]hours:]minutes:seconds, or plain seconds, as seconds; None for what is no time."""
    match = re.fullmatch(r"(?:(?:(\d+)-)?(\d+):)?(?:(\d+):)?(\d+)", text)
    if match is None:
        return None
    days, first, second, last = (int(part or 0) for part in match.groups())
    if match[3] is None:  # minutes:seconds
        return first * 60 + last
    return ((days * 24 + first) * 60 + second) * 60 + last


def _local(job: Job) -> JobState:
    """A job of submitit's local executor: its controlling process, which has the job's folder as its argument."""
    if job.host != socket.gethostname():
        return JobState("UNKNOWN", f"it ran on {job.host}")
    try:
        running = str(job.folder.absolute()) in Path(f"/proc/{job.id}/cmdline").read_text()
    except OSError:
        running = False
    return JobState("RUNNING" if running else "COMPLETED", nodes=job.host)


class _locked_file:
    """The file with the answers, while nobody else reads or writes it."""

    def __enter__(self) -> Path:
        self._lock = record.open_lock(paths.QUEUE / f".{record.user()}.lock")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        return paths.QUEUE / f"{record.user()}.json"

    def __exit__(self, *_: object) -> None:
        self._lock.close()


def _read(file: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(file.read_text())
        for state in content["states"].values():
            JobState(**state)
        return {"asked": content["asked"], "states": content["states"]}
    except (
        OSError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
    ):  # a cache, perhaps of another version: asked anew
        return {"asked": 0.0, "states": {}}
