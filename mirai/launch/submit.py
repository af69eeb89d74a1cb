"""Handing a training to submitit: what its job asks for, what it inherits, and who records it."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mirai.errors import UserError
from mirai.experiments import paths, plan
from mirai.experiments.scale import load_scale
from mirai.experiments.site import Slurm, load_site
from mirai.launch import queue, record, task
from mirai.launch.record import Job
from mirai.launch.slots import VISIBLE
from mirai.states import is_published, unseal

# What sbatch says where as many jobs are queued as one may have: asked again, as where its server is away, since a run goes
# on for weeks.
LIMITS = ("MaxSubmitJob", "MaxJobsPerUser", "GrpSubmitJob")


@dataclass(frozen=True)
class Order:
    """A training that is wanted: a state, and those that its job goes on with."""

    key: str
    then: tuple[str, ...]
    launcher: str
    restore: bool = False
    save_every_steps: int | None = None

    def made(self) -> bool:
        """Whether the state is published; Snakemake may have deleted its manifest, of which a sealed copy stays."""
        manifest = paths.resume(self.key) if self.restore else paths.manifest("state", self.key)
        return is_published(manifest) or unseal(manifest)


def submit(order: Order, chain: tuple[str, ...]) -> Job | None:
    """Submit a job for a chain and record it; None where the queue is too busy to answer."""
    import submitit

    folder = paths.jobs(order.key)
    executor = _executor(order, folder)
    try:
        with _clean_environment(_threads(order)), _deaf():
            accepted = executor.submit(
                task.run, chain, order.launcher, restore=order.restore, save_every_steps=order.save_every_steps
            )
            job = record.new(accepted.job_id, order.launcher, chain, accepted.paths.stdout, folder)
            record.write(job)
    except submitit.core.utils.FailedJobError as error:
        if any(sign in str(error) for sign in (*queue.AWAY, *LIMITS)):
            print(f"sbatch is asked again in a minute: {error}", file=sys.stderr, flush=True)
            return None
        raise UserError(f"sbatch refuses the job: {_told_by_sbatch(str(error))}; {_asked_for()}") from None
    queue.submitted(job)
    return job


def _asked_for() -> str:
    slurm = load_site().cluster()
    named = {name: getattr(slurm, name) for name in ("account", "partition", "qos", "constraint")}
    given = ", ".join(f"{name} {value}" for name, value in named.items() if value is not None)
    return f"section slurm of {paths.SITE} asks for {given}; `mirai doctor` tries each"


def _told_by_sbatch(text: str) -> str:
    lines = [re.sub("^sbatch: (error|fatal): ", "", line).strip(" .") for line in text.splitlines() if line.strip()]
    return "; ".join(lines)


def _executor(order: Order, folder: Path) -> Any:
    """submitit's executor with what config/site.yaml asks for. UserError where SLURM is wanted and not installed."""
    import submitit

    if order.launcher == "slurm":
        slurm, on_gpu = load_site().cluster(), load_scale(plan.lookup(order.key).scale).numerics.device == "cuda"
        if any(shutil.which(name) is None for name in ("sbatch", "srun")):
            raise UserError(
                "sbatch and srun are not on PATH: submit from a login node, or train here with --launcher local"
            )
        on_slurm = submitit.SlurmExecutor(folder)
        on_slurm.update_parameters(**_asked(slurm, order.key, on_gpu))
        return on_slurm
    # Out of a Ctrl-C's reach, and with the GPUs that are visible here, which submitit would have its own idea of.
    visible = os.environ.get(VISIBLE)
    gpus = f"-u {VISIBLE}" if visible is None else shlex.quote(f"{VISIBLE}={visible}")
    here = submitit.LocalExecutor(folder, python=f"setsid env {gpus} {shlex.quote(sys.executable)}")
    here.update_parameters(timeout_min=60 * 24 * 365, tasks_per_node=1, stderr_to_stdout=True)
    return here


def _asked(slurm: Slurm, key: str, on_gpu: bool) -> dict[str, Any]:
    """Parameters of sbatch and srun."""
    return {
        "job_name": f"mirai-{key}",
        "account": slurm.account,
        "partition": slurm.partition,
        "qos": slurm.qos,
        "constraint": slurm.constraint,
        "nodes": slurm.nodes,
        "ntasks_per_node": slurm.ranks_per_node,
        "cpus_per_task": slurm.cpus_per_rank,
        "mem": f"{int(1024 * slurm.memory_gb)}M",
        "gpus_per_node": slurm.ranks_per_node if on_gpu else None,
        "time": slurm.training_minutes,
        "signal_delay_s": slurm.signal_seconds,
        "setup": list(slurm.setup),
        "stderr_to_stdout": True,
        "wckey": None,  # submitit's own default is refused where such keys are checked
        "additional_parameters": {"requeue": True},
        # srun no longer inherits the number of cores (22.05); a rank that dies or leaves ends those that wait for it
        "srun_args": [f"--cpus-per-task={slurm.cpus_per_rank}", "--kill-on-bad-exit=1", "--wait=60"],
    }


def run_here(order: Order) -> int:
    """The same task in this process -> exit code."""
    import submitit

    executor = submitit.DebugExecutor(paths.jobs(order.key))
    chain = (order.key, *order.then)
    job = executor.submit(task.run, chain, "debug", restore=order.restore, save_every_steps=order.save_every_steps)
    os.environ["SUBMITIT_DEBUG_JOB_ID"] = job.job_id
    try:
        error = job.exception()
    finally:
        del os.environ["SUBMITIT_DEBUG_JOB_ID"]
    if error is not None:
        raise error
    return 0


def _threads(order: Order) -> int:
    """Of one rank, unless the scale's numerics say so."""
    site = load_site()
    if order.launcher == "slurm":
        return site.cluster().cpus_per_rank
    return max(1, len(os.sched_getaffinity(0)) // site.ranks)


@contextlib.contextmanager
def _clean_environment(threads: int) -> Iterator[None]:
    """Without what a surrounding job says of itself, whose size would become the new job's, and without the 0 threads
    of a rule that only waits, which Snakemake exports.
    """
    foreign = ("SLURM_", "SBATCH_", "SRUN_", "SUBMITIT_")
    ranks = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    before = dict(os.environ)
    for name in before:
        if (name.startswith(foreign) and name != "SLURM_CONF") or name in ranks or name.endswith("_NUM_THREADS"):
            del os.environ[name]
    os.environ["OMP_NUM_THREADS"] = str(threads)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextlib.contextmanager
def _deaf() -> Iterator[None]:
    """A Ctrl-C waits until a job is submitted and recorded, and what is started meanwhile never hears of it."""
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGHUP))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)
