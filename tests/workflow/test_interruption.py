"""A workflow whose processes are all killed in the middle of a training goes on to the same bits."""

from __future__ import annotations

import shutil
import subprocess
import time

import psutil
import pytest

from mirai.states import read_json
from tests.workflow.project import Project

pytestmark = pytest.mark.workflow

PATIENCE = 120  # seconds


def kill_during_training(project: Project, key: str) -> None:
    """Start the training of a state, and kill -9 Snakemake and all it started once the training has saved something."""
    folder = project.root / "results/store/state" / key
    command = ("snakemake", f"results/store/state/{key}/weights.json", "--cores", "2")
    snakemake = subprocess.Popen(
        command, cwd=project.root, env=project.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + PATIENCE
    while not list(folder.glob("progress-*.json")):
        assert snakemake.poll() is None, "Snakemake ended before anything was saved"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    parent = psutil.Process(snakemake.pid)
    processes = [parent, *parent.children(recursive=True)]
    for process in processes:
        process.kill()
    psutil.wait_procs(processes, timeout=PATIENCE)
    snakemake.wait()


def test_killed_processes_leave_a_training_that_the_same_command_finishes(project: Project) -> None:
    state = project.metrics(2).samples.state
    target = f"results/store/state/{state.key}/weights.json"
    folder = project.stored("state")[state.key]
    uninterrupted = {name: read_json(folder / name) for name in ("weights.json", "resume.json")}
    shutil.rmtree(folder)
    project.write_yaml("config/site.yaml", {"save_minutes": 1.0e-6})

    kill_during_training(project, state.key)
    assert not (folder / "weights.json").exists()

    locked = project.command("snakemake", target, "--cores", "2")
    assert locked.returncode == 1
    assert "--unlock" in locked.stdout + locked.stderr

    project.run("snakemake", target, "--unlock")
    project.make(target)
    for name, before in uninterrupted.items():
        manifest = read_json(folder / name)
        assert manifest["payloads"] == before["payloads"]
        assert manifest["started_at_step"] > before["started_at_step"], "it went on from what was saved"
