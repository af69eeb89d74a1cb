"""Which job trains a state: job.json beside it, for every state of the job's chain.

Whoever wants a state and finds the record of a job that is still queued or running waits for that job, so neither a
second Snakemake nor a second user starts another. Records are written while all folders of the chain are locked.
"""

from __future__ import annotations

import contextlib
import fcntl
import getpass
import os
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

from mirai.errors import UserError
from mirai.experiments import paths
from mirai.states import read_json, write_json


@dataclass(frozen=True)
class Job:
    """One job of a queue, as it was submitted. `id` is the queue's; for `local` it is the controlling process."""

    id: str
    cluster: str  # slurm or local
    user: str
    host: str  # where it was submitted
    submitted: str  # ISO time
    chain: tuple[str, ...]  # keys of the states that it trains, one after the other
    log: Path  # what its first rank prints
    folder: Path  # submitit's
    earlier: tuple[str, ...] = ()  # ids of the jobs that trained the first of them before and were lost


def read(key: str) -> Job | None:
    """The job last submitted for a state, whatever has become of it; None if there never was one.

    UserError for a damaged record.
    """
    path = paths.job(key)
    return _job(path) if path.exists() else None


def all_jobs() -> list[Job]:
    """All jobs that any state's record names, in order of submission. A damaged record is told, and left out."""
    found = []
    for path in sorted(paths.kind("state").glob("*/job.json")):
        try:
            found.append(_job(path))
        except UserError as damage:  # of one state, which is no reason to wait for no other
            print(f"mirai: {damage}", file=sys.stderr)
    unique = {(job.cluster, job.host if job.cluster == "local" else "", job.id): job for job in found}
    return sorted(unique.values(), key=lambda job: (job.submitted, job.id))


def write(job: Job) -> None:
    """Record a new job for every state of its chain. Only with their folders `locked`."""
    content = asdict(job) | {"log": str(job.log), "folder": str(job.folder)}
    for key in job.chain:
        write_json(paths.job(key), content)


def new(identity: str, cluster: str, chain: Sequence[str], log: Path, folder: Path) -> Job:
    """A job submitted now, here, by this user."""
    before = read(chain[0])
    earlier = () if before is None or before.cluster != cluster else (*before.earlier, before.id)
    submitted = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    return Job(identity, cluster, user(), socket.gethostname(), submitted, tuple(chain), log, folder, earlier)


@contextlib.contextmanager
def locked(chain: Sequence[str]) -> Iterator[None]:
    """Nobody else submits a job for any of these states meanwhile. Waits for who does; parents come first, always.

    UserError where a state's folder cannot be written.
    """
    with contextlib.ExitStack() as stack:
        for key in chain:
            fcntl.flock(stack.enter_context(open_lock(paths.job(key).with_name(".job.lock"))), fcntl.LOCK_EX)
        yield


def open_lock(path: Path) -> TextIO:
    """A file to lock, beside what it guards; UserError where it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("a")
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror}; all who share {paths.RESULTS} must be able to"
        ) from None


def user() -> str:
    """Name of the user; their number where it has no name, as in containers."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def _job(path: Path) -> Job:
    content = read_json(path)
    try:
        lists = {name: tuple(content[name]) for name in ("chain", "earlier")}
        return Job(**content | lists | {name: Path(content[name]) for name in ("log", "folder")})
    except (KeyError, TypeError):
        raise UserError(f"{path} is damaged (no record of a job); delete it and run the same command again") from None
