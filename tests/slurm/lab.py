"""A throw-away project on the cluster: a site file, and trainings that last as long as a test wants."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import signal
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml

from mirai.states import read_json
from tests.slurm.cluster import Cluster, until
from tests.workflow.project import ROOT, Project, copy_links

PATIENCE = 240.0  # seconds for what takes half a minute where two hyper-threads are free for both nodes
STEPS_PER_EPOCH = 100
# What a test does not wait for: by default the executor looks at its jobs after 40 seconds for the first time.
SHORT = ("--slurm-init-seconds-before-status-checks", "1", "--seconds-between-status-checks", "2")
SITE: dict[str, Any] = {
    "account": "lab",
    "partition": "gpu",
    "nodes": 1,
    "ranks_per_node": 1,
    "cpus_per_rank": 1,
    "memory_gb": 2,
    "training_minutes": 10,
    "stage_minutes": 10,
    "signal_seconds": 60,
    "poll_seconds": 1,
}


@dataclass
class Command:
    """A command that was started, with all it prints."""

    process: subprocess.Popen[bytes]
    output: Path

    @property
    def printed(self) -> str:
        return self.output.read_text()

    def wait(self, patience: float = PATIENCE) -> int:
        """Its exit code, once it has ended."""
        try:
            return self.process.wait(patience)
        except subprocess.TimeoutExpired:
            alive = [f"{one.pid} {one.status()}: {' '.join(one.cmdline())}" for one in self.processes()]
            raise AssertionError("\n".join(["no end in sight of", *alive, "which printed", self.printed])) from None

    def processes(self) -> list[psutil.Process]:
        """The command's process and all that descend from it."""
        parent = psutil.Process(self.process.pid)
        return [parent, *parent.children(recursive=True)]

    def succeeds(self, patience: float = PATIENCE) -> str:
        """Wait for its end, which must be a good one -> what it printed."""
        code = self.wait(patience)
        assert code == 0, f"exit {code}\n{self.printed}"
        return self.printed

    def kill(self) -> None:
        """kill -9 of it and all it started, as when its machine is switched off."""
        if self.process.poll() is None:
            for process in self.processes():
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            self.process.wait()


@dataclass
class Lab:
    """The project as a user of the cluster has it."""

    project: Project
    cluster: Cluster
    states: dict[int, str]  # epoch of the only run's rungs -> key
    first: int  # id of the first job that can be this test's
    commands: list[Command] = field(default_factory=list)

    @property
    def root(self) -> Path:
        return self.project.root

    def site(self, save_minutes: float = 1.0e-6, **slurm: object) -> None:
        """Write the site; without save_minutes a training is saved whenever it looks up, every 50 steps."""
        self.project.write_yaml("config/site.yaml", {"save_minutes": save_minutes, "slurm": SITE | slurm})

    def copy(self, root: Path) -> Lab:
        """The same project as it is now, for a run without SLURM."""
        return Lab(self.project.copy(root), self.cluster, self.states, self.first)

    def start(self, *command: str) -> Command:
        """Start a command."""
        output = self.root / f"output{len(self.commands)}.txt"
        with output.open("wb") as file:
            process = subprocess.Popen(
                command,
                cwd=self.root,
                env=self.project.environment | self.cluster.environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.commands.append(Command(process, output))
        return self.commands[-1]

    def make(self, *targets: str, options: tuple[str, ...] = ()) -> Command:
        """Start Snakemake with the cluster's profile, as a user does."""
        return self.start("snakemake", *targets, "--profile", "slurm", *SHORT, *options)

    def target(self, epoch: int) -> str:
        """What to ask Snakemake for."""
        return f"results/store/state/{self.states[epoch]}/weights.json"

    def folder(self, epoch: int) -> Path:
        return (self.root / self.target(epoch)).parent

    def weights(self, epoch: int) -> dict[str, Any]:
        """The manifest of a trained state."""
        return read_json(self.root / self.target(epoch))

    def bits(self, epoch: int) -> list[str]:
        """Checksums of a state's tensors, the optimiser's included."""
        manifests = (self.weights(epoch), read_json(self.folder(epoch) / "resume.json"))
        return [entry["sha256"] for manifest in manifests for entry in manifest["payloads"].values()]

    def losses(self, epoch: int) -> dict[int, float]:
        """Step -> loss, of one segment's log."""
        lines = (self.folder(epoch) / "log.jsonl").read_text().splitlines()
        return {line["step"]: line["loss"] for line in map(json.loads, lines)}

    def wait_for_progress(self, epoch: int) -> None:
        """Until a training is under way and has saved something, and is far from its end."""

        def saved() -> bool:
            assert self.commands[-1].process.poll() is None, self.commands[-1].printed
            return any(self.folder(epoch).glob("progress-*.json"))

        until(saved, f"progress of epoch {epoch}", PATIENCE)
        assert not (self.root / self.target(epoch)).exists()

    def caught(self, epoch: int) -> list[psutil.Process]:
        """The trainers of a training that is under way, stopped: a busy machine cannot finish it before its test goes on."""
        self.wait_for_progress(epoch)
        trainers = self.trainers()
        suspend(trainers)
        assert not (self.root / self.target(epoch)).exists(), "the training has ended before its test began"
        return trainers

    def submitted(self) -> list[str]:
        """Jobs of this test."""
        return [str(job) for job in range(self.first, self.cluster.next_job())]

    def job(self) -> str:
        """The only job of this test."""
        (job,) = self.submitted()
        return job

    def trainers(self) -> list[psutil.Process]:
        """The processes on the nodes that train."""
        processes = [psutil.Process(pid) for node in ("node1", "node2") for pid in self.cluster.processes(node)]
        found = [one for one in processes if "python" in one.name() and "submitit" in " ".join(one.cmdline())]
        assert found, "the training has ended before its test began"
        return found

    def clean_up(self) -> None:
        """Leave no process and no job behind."""
        for command in self.commands:
            command.kill()
        self.cluster.wait_idle(cancel=True)


def create_project(root: Path, cluster: Cluster) -> Project:
    """The project as cloned, with a scale whose trainings are slow for their size and a grid of one run."""
    for name in ("workflow", "experiments", "slurm_profiles"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy2(ROOT / "Snakefile", root)
    (root / "config").mkdir()
    copy_links(root)
    project = Project(root, tuple(cluster.environment.items()))
    scale = yaml.safe_load((root / "experiments/scales/digits.yaml").read_text())
    batch = scale["training"]["batch_size"]
    scale["training"] |= {"epoch_images": STEPS_PER_EPOCH * batch, "learning_rate": 1.0e-3}
    scale["sizes"]["B"]["model"] |= {"num_layers": 2, "token_dropout": 0, "attention_dropout": 0, "ffn_dropout": 0}
    scale["ladder"] = [2, 4, 6]
    project.write_yaml("experiments/scales/lab.yaml", scale)
    rows = [{"label": "baseline", "arm": "baseline"}]
    project.write_yaml("experiments/rungs.yaml", {"title": "Rungs", "defaults": {"epochs": 50}, "rows": rows})
    return project


def planned(project: Project) -> tuple[dict[int, str], str]:
    """Keys of the run's states by epoch, and of its codes."""
    printed = project.run("mirai", "plan", "rungs", "--scale", "lab")
    states = {int(epoch): key for key, epoch in re.findall(r"^ *([0-9a-f]{16}) epoch +(\d+) ", printed, re.MULTILINE)}
    (codes,) = re.findall(r"^ *codes +([0-9a-f]{16}) ", printed, re.MULTILINE)
    return states, codes


def suspend(processes: list[psutil.Process]) -> None:
    """Let time stand still for a training, while its Snakemake comes and goes."""
    for process in processes:
        process.send_signal(signal.SIGSTOP)


def resume(processes: list[psutil.Process]) -> None:
    for process in processes:
        process.send_signal(signal.SIGCONT)
