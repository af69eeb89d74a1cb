"""What trainings cost: hours of each state by SLURM's account and by its journal, summed per table.

Columns: `table`, `state` (`all`: the sum; table `all`: every state once, however many tables share it), `epoch`, `unit`
(hours of GPUs, or of ranks where the scale computes on the CPU), `slurm_hours` (sacct: all allocations of the jobs that
trained it, requeued and lost ones too, divided over a job's states by their journals' seconds; empty where no job of
SLURM is known), `log_hours` (its journal: time of what is in the weights; steps done twice count once; of a GPU that
`jobs_per_gpu` of the scale share, a job's part).
"""

from __future__ import annotations

import csv
import io
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mirai.errors import UserError
from mirai.experiments import paths
from mirai.experiments.grid_files import grid_names
from mirai.experiments.journals import Logged, logged, sharing
from mirai.experiments.plan import plan_grid
from mirai.experiments.scale import load_scale
from mirai.experiments.stages import StateStage
from mirai.experiments.tree import stages_behind
from mirai.launch import queue, record
from mirai.states import write_text

COLUMNS = ("table", "state", "epoch", "unit", "slurm_hours", "log_hours")
ALL = "all"


@dataclass(frozen=True)
class Allocation:
    """One time that SLURM ran a job."""

    job: str
    seconds: float
    gpus: int | None  # None where the cluster does not count them


def write_costs(scale: str) -> Path:
    """Write the costs of a scale's trainings, as far as they have come."""
    tables = begun(scale)
    logs = {state.key: logged(state.key) for states in tables.values() for state in states}
    cuda = load_scale(scale).numerics.device == "cuda"
    slurm = slurm_hours(logs, cuda=cuda)
    own = {key: log.rank_seconds / sharing(key, scale) for key, log in logs.items()}
    unit = "GPU" if cuda else "CPU rank"
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(COLUMNS)
    shared = {state.key: state for states in tables.values() for state in states}
    for table, states in (*tables.items(), (ALL, list(shared.values()))):
        keys = [state.key for state in states]
        rows.writerow([table, ALL, "", unit, _sum(slurm, keys), _hours(sum(own[key] for key in keys))])
        for state in states if table != ALL else ():
            key = state.key
            rows.writerow([table, key, state.epoch, unit, _sum(slurm, [key]), _hours(own[key])])
    path = paths.costs(scale)
    write_text(path, text.getvalue())
    return path


def begun(scale: str) -> dict[str, list[StateStage]]:
    """The states behind each table of a scale that have been begun, tables without any left out."""
    result = {}
    for name in grid_names():
        try:
            stages = stages_behind(plan_grid(name, scale))
        except UserError:  # a grid that this scale cannot make has cost nothing
            continue
        states = [one for one in stages if isinstance(one, StateStage) and paths.journal(one.key).exists()]
        if states:
            result[name] = states
    return result


def inputs(scale: str) -> list[Path]:
    """The journals behind the costs: a new line makes them out of date."""
    return sorted({paths.journal(state.key) for states in begun(scale).values() for state in states})


def slurm_hours(logs: dict[str, Logged], *, cuda: bool) -> dict[str, float]:
    """GPU-hours, or rank-hours, of each state that a job of SLURM has trained."""
    chains: dict[str, tuple[str, ...]] = {}
    for job in record.all_jobs():
        if job.cluster == "slurm":
            for earlier in job.earlier:  # its own record is overwritten, unless it trained other states too
                chains.setdefault(earlier, job.chain[:1])
    chains |= {job.id: job.chain for job in record.all_jobs() if job.cluster == "slurm"}
    hours: dict[str, float] = defaultdict(float)
    found = allocations(chains)
    counted = any(allocation.gpus is not None for allocation in found)
    for allocation in found:
        times = {key: logs[key] if key in logs else logged(key) for key in chains[allocation.job]}
        total = sum(time.seconds for time in times.values())
        for key, time in times.items():
            share = time.seconds / total if total else 1 / len(times)
            ranks = time.rank_seconds / time.seconds if time.seconds else 1
            gpus = (allocation.gpus or 0) if counted else ranks  # which have one each
            hours[key] += share * allocation.seconds * (gpus if cuda else ranks) / 3600
    return dict(hours)


def allocations(jobs: Iterable[str]) -> list[Allocation]:
    """Every allocation that these jobs have had; none where sacct does not answer, which is told."""
    asked = sorted(jobs)
    if not asked:
        return []
    columns = "--format=JobIDRaw,ElapsedRaw,AllocTRES"
    rows = queue.answer("sacct", "-nXP", "--allusers", "--duplicates", f"--jobs={','.join(asked)}", columns) or []
    known = [row for row in rows if len(row) == 3 and row[0] in asked]
    return [Allocation(job, float(elapsed or 0), _gpus(tres)) for job, elapsed, tres in known]


def _gpus(tres: str) -> int | None:
    """GPUs in what SLURM says of an allocation: of any type, or of each type; None where the cluster does not count them."""
    counts = dict(re.findall(r"gres/gpu(:[^=,]+)?=(\d+)", tres))
    return int(counts.get("", sum(map(int, counts.values())))) if counts else None


def _sum(hours: dict[str, float], keys: list[str]) -> str:
    known = [hours[key] for key in keys if key in hours]
    return f"{sum(known):.4f}" if known else ""


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.4f}"
