"""Snakemake comes and goes, trainings stay: nothing is submitted twice."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest

from tests.slurm.cluster import until
from tests.slurm.lab import Lab, resume

pytestmark = pytest.mark.slurm


def test_after_kill_9_of_snakemake_the_same_command_finds_its_running_job(lab: Lab) -> None:
    first = lab.make(lab.target(2))
    trainers = lab.caught(2)
    try:
        job = lab.job()
        first.kill()
        listed = [line.split()[:3] for line in lab.project.run("mirai", "jobs").splitlines()]
        assert [lab.states[2], job, "RUNNING"] in listed
        second = lab.make(lab.target(2))
        until(lambda: job in second.printed, "the second Snakemake to find the job of the first", 60)
    finally:
        resume(trainers)
    second.succeeds()
    assert lab.submitted() == [job]
    assert lab.cluster.ended(job) == ["COMPLETED"]
    assert lab.weights(2)["started_at_step"] == 0, "the job was not disturbed"


def test_two_snakemakes_of_one_results_folder_train_a_state_once(lab: Lab, tmp_path: Path) -> None:
    other = lab.copy(tmp_path / "other")
    shutil.rmtree(other.root / "results")
    (other.root / "results").symlink_to(lab.root / "results")
    both = [lab.make(lab.target(4)), other.make(lab.target(4))]
    for one in both:
        one.succeeds()
    assert lab.cluster.ended(lab.job()) == ["COMPLETED"]


def test_ctrl_c_says_what_keeps_running_and_how_to_stop_it(lab: Lab) -> None:
    training = lab.make(lab.target(2))
    trainers = lab.caught(2)
    try:
        job = lab.job()
        os.killpg(training.process.pid, signal.SIGINT)  # as a terminal does
        assert training.wait() != 0, training.printed
        assert job in training.printed
        assert f"mirai cancel {lab.states[2]}" in training.printed
        assert lab.cluster.jobs()[job]["job_state"] == "RUNNING"
        lab.project.run("mirai", "cancel", lab.states[2])
    finally:
        resume(trainers)
    assert lab.cluster.ended(job) == ["CANCELLED"]
    assert not (lab.root / lab.target(2)).exists()
