"""kill -9 in the middle of a training: the workflow goes on to the same bits, and never trains one state twice at once."""

from __future__ import annotations

import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from mirai.states import read_json
from tests.workflow.project import Project

pytestmark = pytest.mark.workflow

PATIENCE = 120  # seconds


def start(project: Project, target: str) -> list[psutil.Process]:
    """Start Snakemake on a training -> its process and all it started, once the training has saved something."""
    snakemake = subprocess.Popen(
        ("snakemake", target, "--cores", "2"),
        cwd=project.root,
        env=project.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + PATIENCE
    while not list((project.root / target).parent.glob("progress-*.json")):
        assert snakemake.poll() is None, "Snakemake ended before anything was saved"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    parent = psutil.Process(snakemake.pid)
    return [parent, *parent.children(recursive=True)]


def kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        process.kill()
    psutil.wait_procs(processes, timeout=PATIENCE)


@dataclass(frozen=True)
class Untrained:
    """A copy of the finished run in which one state is still to be trained, and how it was."""

    project: Project
    folder: Path
    target: str
    manifests: dict[str, dict[str, Any]]

    def assert_trained_as_before(self) -> None:
        for name, before in self.manifests.items():
            assert read_json(self.folder / name)["payloads"] == before["payloads"]


@pytest.fixture
def untrained(project: Project) -> Untrained:
    """The last state of the last row is to be trained, and every step of it saved."""
    key = project.metrics(2).samples.state.key
    folder = project.stored("state")[key]
    manifests = {name: read_json(folder / name) for name in ("weights.json", "resume.json")}
    shutil.rmtree(folder)
    project.write_yaml("config/site.yaml", {"save_minutes": 1.0e-6})
    return Untrained(project, folder, f"results/store/state/{key}/weights.json", manifests)


def test_when_all_processes_are_killed_the_same_command_goes_on_to_the_same_bits(untrained: Untrained) -> None:
    project, target = untrained.project, untrained.target
    kill(start(project, target))
    assert not (project.root / target).exists()

    locked = project.command("snakemake", target, "--cores", "2")
    assert locked.returncode == 1
    assert "--unlock" in locked.stdout + locked.stderr

    project.run("snakemake", target, "--unlock")
    project.make(target)
    untrained.assert_trained_as_before()
    went_on_at = read_json(project.root / target)["started_at_step"]
    assert went_on_at > untrained.manifests["weights.json"]["started_at_step"]


def test_a_training_that_outlives_its_snakemake_is_not_joined_by_a_second_one(untrained: Untrained) -> None:
    project, target = untrained.project, untrained.target
    snakemake, *survivors = start(project, target)
    trainer = survivors[-1]
    trainer.suspend()
    try:
        kill([snakemake])
        project.run("snakemake", target, "--unlock")
        second = project.command("snakemake", target, "--cores", "2")
    finally:
        trainer.resume()
    assert second.returncode == 1
    assert f"is being written by process {trainer.pid} " in second.stdout + second.stderr

    psutil.wait_procs(survivors, timeout=PATIENCE)
    weights = untrained.folder / "weights.safetensors"
    trained = weights.stat().st_mtime_ns
    project.make(target)
    assert weights.stat().st_mtime_ns == trained, "what the survivor made is only published"
    untrained.assert_trained_as_before()
