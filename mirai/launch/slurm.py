"""Training through a queue: submit a job, or find the one that is there, and wait until the state is published.

The same through SLURM and, without it, through submitit's executors for this machine: `local` in processes of their
own, `debug` in this one. The truth is the state's folder; what the queue says only decides whether to wait on.
"""

from __future__ import annotations

import contextlib
import itertools
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from mirai.errors import Interrupted, UserError
from mirai.experiments import paths, plan
from mirai.experiments.site import load_site
from mirai.launch import queue, record, submit, task
from mirai.launch.progress import saved
from mirai.launch.queue import JobState
from mirai.launch.record import Job
from mirai.launch.submit import Order

LOOK_EVERY = 5.0  # seconds between two looks at the state's folder
SETTLE = 15.0  # seconds for a job that seems to have ended: to be queued again, or for its last files to be seen
FRUITLESS = 2  # jobs that were lost before anything more was saved, until a user must look
TAKEN_AWAY = ("PREEMPTED", "NODE_FAIL")  # as often as it takes: no fault of the job
HELD = "; SLURM holds it and it never starts by itself: `scontrol release {}`"
TAIL = 4000  # characters of a job's log that are told with a failure


def train(order: Order) -> int:
    """Wait until the state is there, submitting jobs as often as they get lost -> exit code; 1 after an error in a job.

    Raises UserError for what a user must mend, and Interrupted after Ctrl-C or SIGTERM: the job keeps running then.
    """
    if order.made():
        _say(f"state {order.key} is there already")
        return 0
    for key in (order.key, *order.then):
        plan.freeze(plan.lookup(key))
    if order.launcher == "debug":
        for key in (order.key, *order.then):
            refuse_if_queued(key)
        return submit.run_here(order)
    lost: set[str] = set()
    chain = (order.key, *order.then)
    fruitless, before = 0, saved(chain)
    with _signals() as received:
        while (job := _job(order, lost, received)) is not None:
            if (end := _wait(order, job, received)) is None:
                break
            lost.add(job.id)
            if (code := _tell(order.key, job, end)) is not None:
                return code
            if (now := saved(chain)) != before:
                fruitless, before = 0, now
            elif end.name not in TAKEN_AWAY:
                fruitless += 1
            if fruitless == FRUITLESS:
                print(_last(job.log), file=sys.stderr)
                raise UserError(
                    f"{fruitless} jobs for state {order.key} ended without having saved anything, the last, {job.id}, as "
                    f"{end.name}; its log is {job.log}"
                )
            _say(f"{_name(job)} is lost ({end.name}); the next one goes on from what is saved")
    _say(f"state {order.key} is there")
    return 0


def refuse_if_queued(key: str) -> None:
    """UserError where a job that is queued or running trains a state, whose folder this node may not be able to lock."""
    job = record.read(key)
    if job is not None and (state := queue.states([job])[job.id]).active and state.name != "UNREACHABLE":
        raise UserError(
            f"{_name(job)} of {job.user} trains state {key} ({state.name}); --launcher {job.cluster} waits for it, "
            f"`mirai cancel {key}` stops it"
        )


def _job(order: Order, lost: set[str], received: Sequence[int]) -> Job | None:
    """The job that trains the state: the one recorded, if the queue has it, or a new one. None if it is there by now."""
    while True:
        with record.locked((order.key, *order.then)):
            current = record.read(order.key)
            if current is not None and current.id not in lost and _stays(state := queue.states([current])[current.id]):
                _say(f"{_name(current)} of {current.user} trains state {order.key} ({state.name}); log: {current.log}")
                return current
            if order.made():  # by a job that ended since we looked last
                return None
            others = {key: job for key in order.then if (job := record.read(key)) is not None}
            known = queue.states(others.values())
            free = [key for key in order.then if key not in others or not known[others[key].id].active]
            chain = (order.key, *itertools.takewhile(free.__contains__, order.then))
            job = submit.submit(order, chain)
            if job is not None:
                _say(f"{_name(job)} trains state {' then '.join(chain)}; log: {job.log}")
                return job
        _pause(60.0, received, f"nothing was submitted for state {order.key}")


def _stays(state: JobState) -> bool:
    return state.active or state.name in queue.INTERRUPTED


def _wait(order: Order, job: Job, received: Sequence[int]) -> JobState | None:
    """Wait for the state or for the job's end -> how it ended without the state; None once that is published."""
    keeps = f"{_name(job)} keeps training state {order.key} (log: {job.log}); the same command waits for it again, "
    told, ended = None, None
    while not order.made():
        state = queue.states([job])[job.id]
        if (state.name, state.reason) != told:
            told = (state.name, state.reason)
            holds = "held" in state.reason.lower() or state.name in ("REQUEUE_HOLD", "SPECIAL_EXIT")
            held = HELD.format(job.id) if holds else ""
            _say(f"{_name(job)}: {state.name}{f' ({state.reason})' if state.reason else ''}{held}")
        if state.active:
            ended = None
        else:
            ended = ended or time.monotonic()
            final = state.failed and (state.name != "FAILED" or task.error_file(job.folder, job.id).exists())
            if final or time.monotonic() > ended + _settling(job):
                return None if order.made() else state
        _pause(LOOK_EVERY if ended is None else 1.0, received, f"{keeps}`mirai cancel {order.key}` stops it")
    return None


def _settling(job: Job) -> float:
    return max(SETTLE, 2 * queue.poll_seconds() if job.cluster == "slurm" else 0.0)


def _tell(key: str, job: Job, end: JobState) -> int | None:
    """What is told of a job that ended without the state -> exit code; None if it was only lost, which is no failure.

    UserError for what no other job would mend.
    """
    if (error := task.told(job.folder, job.id)) is not None:
        where = f"{_name(job)}, rank {error['rank']} on {error['host']}; log: {job.log}"
        if error["mistake"]:
            raise UserError(f"{error['text']} ({where})")
        print(f"{error['text']}\nmirai: an error in {where}", file=sys.stderr)
        return 1
    if end.name == "CANCELLED":
        raise UserError(f"{_name(job)} was cancelled; the same command trains state {key} on from what is saved")
    if end.name == "OUT_OF_MEMORY" or "Out Of Memory" in _last(
        job.log
    ):  # srun's words, where only the step is called so
        slurm = load_site().cluster()
        raise UserError(
            f"{_name(job)} was killed because it used more memory than it had asked for, slurm.memory_gb "
            f"{slurm.memory_gb:g} in {paths.SITE}; raise it, and the same command goes on from what is saved"
        )
    return None


def _last(log: Path) -> str:
    """The end of a log."""
    return log.read_text(errors="replace")[-TAIL:] if log.exists() else ""


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """SIGINT and SIGTERM are remembered, so that no job is submitted without being recorded."""
    received: list[int] = []

    def remember(number: int, _: object) -> None:
        received.append(number)

    previous = {number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _pause(seconds: float, received: Sequence[int], sentence: str) -> None:
    """Wait; Interrupted with the sentence when asked to stop meanwhile."""
    deadline = time.monotonic() + seconds
    while not received and time.monotonic() < deadline:
        time.sleep(0.2)
    if received:
        raise Interrupted(sentence)


def _name(job: Job) -> str:
    return f"{'SLURM' if job.cluster == 'slurm' else 'local'} job {job.id}"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
