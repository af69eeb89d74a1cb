"""What `mirai jobs`, `mirai cancel` and `mirai status` show and do."""

from __future__ import annotations

import functools
import os
import signal
import socket
import subprocess
from collections.abc import Sequence

from mirai.errors import UserError
from mirai.experiments import paths
from mirai.experiments.inspection import table
from mirai.experiments.overview import tree_lines
from mirai.experiments.plan import plan_grid, table_key
from mirai.experiments.stages import Stage, StateStage
from mirai.experiments.tree import Tree
from mirai.launch import queue, record, task
from mirai.launch.progress import clock, progress, standing, trains_now, writer
from mirai.launch.queue import JobState
from mirai.launch.record import Job
from mirai.states import is_published, write_json

COLUMNS = ("state", "job", "queue", "step", "epoch", "eta", "log")
BY_RULES = "rule_"  # begins the comment of a job of Snakemake's executor plugin, which ends with the stage's key


def print_jobs() -> None:
    """All trainings that are not done: those that have a job, and those that run here by hand."""
    jobs = record.all_jobs()
    known = queue.states(jobs)
    rows: list[tuple[str, ...]] = [COLUMNS]
    for job in jobs:
        for key in job.chain:
            if record.read(key) == job and not is_published(paths.manifest("state", key)):
                rows.append(_row(key, job.id, _in_queue(key, job, known[job.id]), str(job.log)))
    with_job = {row[0] for row in rows}
    for folder in sorted(paths.kind("state").glob("*/")):
        process = writer(folder)
        if process is not None and folder.name not in with_job:
            rows.append(_row(folder.name, process, "here", str(folder / "log.txt")))
    if len(rows) == 1:
        print("no training is queued or running")
        return
    print("\n".join(table(rows)))


def _in_queue(key: str, job: Job, state: JobState) -> str:
    """The queue's word, and what the state waits for."""
    if state.name == "RUNNING" and (first := trains_now(job)) != key:
        return f"after {first}"
    return f"{state.name} ({state.reason})" if state.reason and state.name == "PENDING" else state.name


def _row(key: str, job: str, state: str, log: str) -> tuple[str, ...]:
    come = progress(key)
    if come is None:
        return key, job, state, "-", "-", "-", log
    eta = clock(come.eta_s) if state in ("RUNNING", "here") else "-"
    return key, job, state, f"{come.step}/{come.last_step}", f"{come.epoch:g}", eta, log


def cancel(keys: Sequence[str]) -> None:
    """End the jobs that train these states. UserError for a state without a job, or with another user's."""
    jobs = {key: record.read(key) for key in keys}
    for key, job in jobs.items():
        if job is None:
            raise UserError(f"state {key} has no job; `mirai jobs` lists those that have one")
        if job.user != record.user():
            raise UserError(f"job {job.id}, which trains state {key}, is {job.user}'s: only they can cancel it")
    _end([job for job in jobs.values() if job is not None])


def cancel_all() -> None:
    """End all jobs of this user in this results folder."""
    _end([job for job in record.all_jobs() if job.user == record.user()], all_that_are_left=True)


def _end(jobs: list[Job], *, all_that_are_left: bool = False) -> None:
    queue.ask_again()
    known, unique = queue.states(jobs), {job.id: job for job in jobs}
    active = [job for job in unique.values() if known[job.id].active]
    if not all_that_are_left:
        for job in unique.values():
            if job not in active:
                print(f"job {job.id} has ended already ({known[job.id].name}): {job.log}")
    elif not active:
        print("no job of yours is queued or running")
    for job in active:
        _stop(job)
        left = [key for key in job.chain if not is_published(paths.manifest("state", key))]
        print(f"cancelled job {job.id}, which trained {', '.join(left)}; started again they go on from what is saved")
    if active:
        queue.ask_again()


def _stop(job: Job) -> None:
    if job.cluster == "local":
        if job.host != socket.gethostname():
            raise UserError(f"job {job.id} runs on {job.host}; cancel it there")
        told = {"mistake": True, "text": f"cancelled by {record.user()}", "rank": 0, "host": job.host}
        write_json(task.error_file(job.folder, job.id), told)  # or whoever waits would take the job for lost
        os.kill(int(job.id), signal.SIGTERM)  # submitit's controller passes it on
        return
    done = subprocess.run(["scancel", job.id], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise UserError(f"scancel {job.id} failed: {done.stderr.strip()}")


def print_status(grid: str, scale: str) -> None:
    """The tree behind a table, each stage with where it stands; then the table itself."""
    jobs = record.all_jobs()
    known = queue.states(jobs)
    by_rules = _jobs_of_rules() if any(job.cluster == "slurm" for job in jobs) or _has_slurm() else {}
    stands = functools.partial(_stands, known=known, by_rules=by_rules)
    print("\n".join(tree_lines(Tree([plan_grid(grid, scale)]), stands)))
    made = paths.product(scale, grid)
    note = paths.key_record(made)
    made_for = note.read_text().strip() if made.exists() and note.exists() else None
    as_planned = made_for == table_key(grid, scale)
    print(f"{made} {'missing' if not made.exists() else 'done' if as_planned else 'made for an earlier plan'}")


def _stands(stage: Stage, known: dict[str, JobState], by_rules: dict[str, str]) -> str:
    if is_published(paths.manifest(stage.kind, stage.key)):
        return "done"
    if isinstance(stage, StateStage):
        job = record.read(stage.key)
        return standing(stage.key, job, None if job is None else known[job.id])
    if stage.key in by_rules:
        return by_rules[stage.key]
    process = writer(paths.folder(stage.kind, stage.key))
    return "missing" if process is None else f"running in {process}"


def _has_slurm() -> bool:
    from mirai.experiments.site import load_site

    return load_site().slurm is not None


def _jobs_of_rules() -> dict[str, str]:
    """What this user's jobs of Snakemake's executor plugin do, by the key in their comments."""
    result = {}
    for row in queue.answer("squeue", "--me", "--noheader", "--format=%i|%T|%k") or []:
        if len(row) == 3 and row[2].startswith(BY_RULES):
            running = row[1] in ("RUNNING", "COMPLETING")
            result[row[2].rsplit("_", 1)[-1]] = f"{'running' if running else 'queued'} in job {row[0]}"
    return result
