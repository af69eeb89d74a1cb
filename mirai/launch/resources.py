"""What the jobs of rules ask of the machine or the cluster, from config/site.yaml, as Snakemake's resources."""

from __future__ import annotations

from mirai.experiments.plan import lookup
from mirai.experiments.site import load_site
from mirai.launch.slots import gpus

IN_RANKS = ("codes", "state", "samples")  # kinds that `ranks` of config/site.yaml divides


def ranks_of_kind(kind: str) -> int:
    """Processes that make a stage of this kind on one machine."""
    return load_site().ranks if kind in IN_RANKS else 1


def stage_gpus(key: str) -> int:
    """GPUs of the job that makes a stage."""
    planned = lookup(key)
    return gpus(planned.stage.kind, planned.scale, ranks_of_kind(planned.stage.kind))


def stage_cores(key: str) -> int:
    """Cores of the job on a cluster that makes a stage."""
    return load_site().cluster().cpus_per_rank * ranks_of_kind(lookup(key).stage.kind)


def before_commands() -> str:
    """Shell lines before the command of a rule on a node, in Snakemake's format; with bash's strict mode, its default."""
    lines = "\n".join((*load_site().cluster().setup, "set -euo pipefail; "))
    return lines.replace("{", "{{").replace("}", "}}")


def require_cluster() -> None:
    """UserError where config/site.yaml does not say what jobs ask of the cluster."""
    load_site().cluster()


def of_cluster() -> dict[str, str | int]:
    """What sbatch is told for every job of a rule; nothing where no site is written yet, which suffices to plan."""
    slurm = load_site().slurm
    if slurm is None:
        return {}
    asked: dict[str, str | int | None] = {
        "slurm_account": slurm.account,
        "slurm_partition": slurm.partition,
        "nodes": 1,  # or SLURM may give a job of several GPUs some on each of two nodes
        "qos": slurm.qos,
        "constraint": slurm.constraint,
        "runtime": slurm.stage_minutes,
        "mem_mb": int(1024 * slurm.memory_gb),
        "cpus_per_task": slurm.cpus_per_rank,
    }
    return {name: value for name, value in asked.items() if value is not None}
