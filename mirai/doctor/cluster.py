"""The doctor on a cluster: whether SLURM answers, knows what `slurm` of config/site.yaml names, and starts a job."""

from __future__ import annotations

import getpass
import json
import re
import shlex
from collections.abc import Iterator, Mapping

from mirai.doctor.finding import Finding, ask
from mirai.doctor.machine import LOCK_MEND, NODE, broken, gpus
from mirai.experiments import paths
from mirai.experiments.site import Site, Slurm, expanded

UNLIMITED = ("UNLIMITED", "INFINITE", "NONE")
PROGRAMS = ("sbatch", "srun", "squeue", "sacct", "scancel", "scontrol", "sacctmgr")
JOB_MINUTES = 5

GPUS = "gres/gpu"  # as SLURM counts them


def answers() -> Iterator[Finding]:
    """Whether SLURM's programs, its controller and its accounts answer."""
    missing = [name for name in PROGRAMS if ask(name, "--version").code is None]
    if missing:
        yield Finding("SLURM", False, f"{', '.join(missing)} not on PATH; run this on a login node of the cluster")
        return
    version = ask("sbatch", "--version")
    yield Finding("SLURM", version.code == 0, version.out.strip() or version.trouble)
    for name, meaning, command in (
        ("squeue", "the controller", ("squeue", "--me", "--noheader")),
        ("sacct", "the accounting", ("sacct", "--noheader", "--allocations", "--starttime", "now")),
    ):
        answer = ask(*command)
        says = f"{meaning} answers" if answer.code == 0 else f"{meaning} does not answer: {answer.trouble}"
        yield Finding(name, answer.code == 0, says)


def others() -> Iterator[Finding]:
    """Whether one sees other users' jobs, for which one waits where a results folder is shared."""
    if "jobs" in _settings().get("PrivateData", "none").split(","):
        says = "hidden here (PrivateData=jobs): of two users of one results folder only one should train at a time"
        yield Finding("others' jobs", None, says)


def account(slurm: Slurm) -> Iterator[Finding]:
    """Account and QOS, as the accounting has them for this user."""
    user = getpass.getuser()
    answer = ask("sacctmgr", "-nP", "show", "assoc", f"user={user}", "format=account,qos")
    known: dict[str, set[str]] = {}
    for line in answer.out.splitlines():
        name, _, qos = line.partition("|")
        known.setdefault(name, set()).update(filter(None, qos.split(",")))
    if answer.code != 0 or not known:
        yield Finding("account", None, f"the accounting lists none for {user}: not checked")
        return
    listed = ", ".join(sorted(known))
    if slurm.account is None:
        yield Finding("account", False, f"write slurm.account into {paths.SITE}, one of {listed}")
        return
    if slurm.account not in known:
        yield Finding("account", False, f"'{slurm.account}' is none of {user}'s; slurm.account is one of {listed}")
        return
    yield Finding("account", True, slurm.account)
    if slurm.qos is not None:
        allowed = known[slurm.account]
        mend = f"'{slurm.qos}' is not open to you; slurm.qos is one of {', '.join(sorted(allowed))}"
        yield Finding("qos", slurm.qos in allowed, slurm.qos if slurm.qos in allowed else mend)


def partition(slurm: Slurm, *, cuda: bool) -> Iterator[Finding]:
    """The partition, or each of a list, its time limit and its GPUs; then what preemption would cost there."""
    answer = ask("scontrol", "show", "partition", "--oneliner")
    known = {found["PartitionName"]: found for found in map(_fields, answer.out.splitlines()) if found}
    for name in slurm.partition.split(","):
        if name in known:
            counted = any(GPUS in found.get("TRES", "") for found in known.values())
            yield _partition(slurm, known[name], cuda=cuda, counted=counted)
            yield preemption(slurm, known[name])
        else:
            says = f"'{name}' does not exist; slurm.partition is one of {', '.join(known)}, or several with commas"
            yield Finding("partition", False, says)


def _partition(slurm: Slurm, partition: dict[str, str], *, cuda: bool, counted: bool) -> Finding:
    what, name, longest = "partition", partition["PartitionName"], _minutes(partition.get("MaxTime", "UNLIMITED"))
    if partition.get("State") != "UP":
        return Finding(what, False, f"{name} is {partition.get('State')}: no job starts there")
    if longest is not None and max(slurm.training_minutes, slurm.stage_minutes) > longest:
        limit = f"{name} ends jobs after {longest} minutes"
        return Finding(what, False, f"{limit}; slurm.training_minutes and stage_minutes must not be more")
    if cuda and GPUS not in partition.get("TRES", GPUS):
        if not counted:  # AccountingStorageTRES lacks gres/gpu, as by default
            return Finding(what, None, f"{name}; whether it has GPUs is not told, SLURM counts none on this cluster")
        return Finding(what, False, f"{name} has no GPUs, and this scale computes on them")
    return Finding(what, True, f"{name}, jobs up to {longest or 'any number of'} minutes")


def preemption(slurm: Slurm, partition: dict[str, str]) -> Finding:
    """Whether a preempted training is told early enough to save."""
    what = "preemption"
    settings = _settings()
    if settings.get("PreemptType", "preempt/none") == "preempt/none" or partition.get("PreemptMode", "OFF") == "OFF":
        return Finding(what, True, f"jobs in {partition['PartitionName']} are not preempted")
    grace, by_qos = int(partition.get("GraceTime", "0")), settings["PreemptType"] == "preempt/qos"
    said = settings.get("SlurmctldParameters", "") + settings.get("PreemptParameters", "")
    if "send_user_signal" not in said:  # in newer versions of SLURM without "preempt_", in PreemptParameters
        lacking = "SlurmctldParameters=preempt_send_user_signal (newer: PreemptParameters=send_user_signal)"
    elif grace == 0 and not by_qos:
        lacking = f"a GraceTime of the partition (now 0), {slurm.signal_seconds} seconds or so"
    else:
        return Finding(what, True, "trainings are told before they are preempted, and save")
    return Finding(what, None, f"costs each training up to save_minutes; an administrator can set {lacking}")


def fits(site: Site, *, cuda: bool) -> Iterator[Finding]:
    """Whether SLURM would take a training and the largest other job with these settings; nothing is submitted."""
    slurm, ranks = site.cluster(), site.ranks
    training = {
        "nodes": slurm.nodes,
        "ntasks-per-node": slurm.ranks_per_node,
        "cpus-per-task": slurm.cpus_per_rank,
        "time": slurm.training_minutes,
        "gpus-per-node": slurm.ranks_per_node if cuda else 0,
    }
    other = {
        "nodes": 1,
        "ntasks": 1,
        "cpus-per-task": ranks * slurm.cpus_per_rank,
        "time": slurm.stage_minutes,
        "gpus": ranks if cuda else 0,
    }
    for what, shape, says in (
        ("a training", training, f"{slurm.nodes} x {slurm.ranks_per_node} ranks would be taken"),
        ("other jobs", other, f"up to {ranks} ranks on one node would be taken"),
    ):
        answer = ask("sbatch", "--test-only", *_options(slurm, shape), "--wrap", "true")
        refusal = f"SLURM refuses what {paths.SITE} asks for: {answer.trouble}"
        yield Finding(what, answer.code == 0, says if answer.code == 0 else refusal)


def compute_node(site: Site, *, cuda: bool, wait: int) -> Iterator[Finding]:
    """Start a job, and see from its node: torch, GPUs, the results folder, the lock that is held here, data and weights."""
    slurm = site.cluster()
    places = [expanded(place).absolute() for place in (*site.data.values(), *site.weights.values())]
    inputs = [str(place) for place in places if place.exists()]  # another finding tells of those that are not even here
    command = "\n".join(["set -e", *slurm.setup, f"exec {shlex.join((*NODE, *inputs))}"])
    shape = {"nodes": 1, "ntasks": 1, "cpus-per-task": slurm.cpus_per_rank, "gpus": int(cuda), "time": JOB_MINUTES}
    options = _options(slurm, shape | {"immediate": wait})
    answer = ask("srun", *options, "bash", "-c", command, seconds=wait + 60 * JOB_MINUTES)
    if "nodes are busy" in answer.error or "--immediate" in answer.error:
        says = f"none was free within {wait} s: not looked at; `mirai doctor --wait 3600` waits for an hour"
        yield Finding("compute node", None, says)
        return
    said = [line for line in answer.out.splitlines() if line.startswith("{")]  # a site's own scripts may print, too
    if answer.code != 0 or not said:
        yield broken(answer)
        return
    report = json.loads(said[-1])
    yield gpus(report, cuda=cuda)
    wrote, host = report["write_error"] is None, report["host"]
    says = (
        f"can be written on {host}"
        if wrote
        else f"cannot be written on {host} ({report['write_error']}); results/ must be shared"
    )
    yield Finding("shared files", wrote, says)
    held = report["lock"] == "held"
    says = f"a lock taken here is seen on {host}" if held else f"a lock taken here is not seen on {host}; {LOCK_MEND}"
    yield Finding("shared locks", held, says)
    if inputs:
        missing = ", ".join(report["missing"])
        says = f"{missing} not on {host}; they must be shared" if missing else f"data and weights are there on {host}"
        yield Finding("shared inputs", not missing, says)


def _options(slurm: Slurm, shape: Mapping[str, int]) -> list[str]:
    """Where a job goes and what it asks for, for sbatch and srun."""
    where = {
        "account": slurm.account,
        "partition": slurm.partition,
        "qos": slurm.qos,
        "constraint": slurm.constraint,
        "mem": f"{int(1024 * slurm.memory_gb)}M",
    }
    return [f"--{name}={value}" for name, value in {**where, **shape}.items() if value]


def _fields(line: str) -> dict[str, str]:
    return dict(re.findall(r"(\w+)=(\S*)", line))


def _settings() -> dict[str, str]:
    lines = ask("scontrol", "show", "config").out.splitlines()
    return {name.strip(): value.strip() for name, mark, value in (line.partition("=") for line in lines) if mark}


def _minutes(limit: str) -> int | None:
    """Minutes of SLURM's days-hours:minutes:seconds; None for no limit."""
    if limit in UNLIMITED:
        return None
    days, _, clock = limit.rpartition("-")
    hours, minutes, _ = (int(part) for part in clock.split(":"))
    return (int(days or 0) * 24 + hours) * 60 + minutes
