"""Trainings as jobs that nothing disturbs: several nodes, several rungs."""

from __future__ import annotations

import csv

import pytest

from mirai.states import read_json
from tests.slurm.lab import Lab

pytestmark = pytest.mark.slurm


def test_two_nodes_with_two_ranks_each_train_on_the_samples_of_one_rank(
    lab: Lab, four_ranks: Lab, one_rank: Lab
) -> None:
    assert four_ranks.weights(6)["numerics"]["ranks"] == 4
    assert one_rank.weights(6)["numerics"]["ranks"] == 1
    for epoch in (2, 4, 6):
        losses, expected = four_ranks.losses(epoch), one_rank.losses(epoch)
        assert losses == pytest.approx(expected, rel=1e-3)  # another order of the samples moves them by percents
        assert len(losses) == 4


def test_one_job_carries_on_through_the_rungs_of_its_branch(one_rank: Lab) -> None:
    (job,) = {read_json(one_rank.folder(epoch) / "job.json")["id"] for epoch in (2, 4, 6)}
    assert one_rank.cluster.ended(job) == ["COMPLETED"]
    assert [one_rank.weights(epoch)["epoch"] for epoch in (2, 4, 6)] == [2, 4, 6]


def test_costs_have_what_slurm_counted_divided_over_the_states_of_the_job(one_rank: Lab) -> None:
    (job,) = {read_json(one_rank.folder(epoch) / "job.json")["id"] for epoch in (2, 4, 6)}
    one_rank.cluster.ended(job)
    hours = slurm_hours(one_rank)
    assert hours["all"] == pytest.approx(seconds(one_rank, job) / 3600, abs=1e-4)
    assert all(0 < hours[one_rank.states[epoch]] < hours["all"] for epoch in (2, 4, 6))


GPU_TRAINING = """
import os, pathlib, sys, time, types
if "submitit.core._submit" in sys.orig_argv:
    def make(planned, **_):
        from mirai.experiments import paths
        from mirai.states import publish
        rank, key = os.environ["RANK"], planned.stage.key
        pathlib.Path(f"rank{rank}").write_text(os.environ["LOCAL_RANK"] + " of " + os.environ["CUDA_VISIBLE_DEVICES"])
        while len(list(pathlib.Path().glob("rank?"))) < 4:  # ranks end together
            time.sleep(0.1)
        if rank == "0":
            (paths.folder("state", key) / "log.jsonl").write_text('{"step": 1, "seconds": 1.0, "ranks": 4}\\n')
            publish(paths.resume(key), {})
            publish(paths.manifest("state", key), {})
    sys.modules["mirai.make"] = types.SimpleNamespace(make=make)
"""


def test_ranks_on_gpus_have_those_of_their_node_and_all_are_counted(lab: Lab) -> None:
    """As far as it goes without a GPU: what SLURM hands out and says of it, to a training that computes nothing."""
    lab.project.edit("experiments/scales/lab.yaml", "device: cpu", "device: cuda")
    (lab.root / "fault").mkdir()
    (lab.root / "fault/sitecustomize.py").write_text(GPU_TRAINING)
    lab.site(nodes=2, ranks_per_node=2, setup=["export PYTHONPATH=fault"])
    lab.make(lab.target(2)).succeeds()
    job = lab.job()
    assert lab.cluster.ended(job) == ["COMPLETED"]
    assert [(lab.root / f"rank{rank}").read_text() for rank in range(4)] == ["0 of 0,1", "1 of 0,1"] * 2
    assert slurm_hours(lab)["all"] == pytest.approx(4 * seconds(lab, job) / 3600, abs=1e-4)


def slurm_hours(lab: Lab) -> dict[str, float]:
    """Of each state of the only table, and of all."""
    lab.project.run("mirai", "costs", "--scale", "lab")
    with (lab.root / "results/lab/costs.csv").open() as file:
        return {row["state"]: float(row["slurm_hours"]) for row in csv.DictReader(file) if row["table"] == "rungs"}


def seconds(lab: Lab, job: str) -> float:
    """How long a job ran, as the accounting has it."""
    return float(lab.cluster.run("sacct", "-nPX", "-j", job, "-o", "elapsedraw"))
