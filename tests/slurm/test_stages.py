"""Jobs that are no trainings: those of Snakemake's executor plugin, and the doctor's."""

from __future__ import annotations

import re

import pytest

from tests.slurm.cluster import until
from tests.slurm.lab import PATIENCE, Lab

pytestmark = pytest.mark.slurm


def test_a_stage_whose_node_dies_is_queued_again_by_slurm_and_not_once_more_by_snakemake(lab: Lab) -> None:
    found = re.search(
        r"^ *features +([0-9a-f]{16}) ", lab.project.run("mirai", "plan", "rungs", "--scale", "lab"), re.M
    )
    assert found is not None
    training = lab.make(f"results/store/features/{found[1]}/features.json")
    (job,) = until(lambda: [job for job, at in lab.cluster.jobs().items() if at["job_state"] == "RUNNING"], "a job")
    node = lab.cluster.jobs()[job]["nodes"]
    lab.cluster.kill_node(node)
    try:
        until(lambda: "NODE_FAIL" in lab.cluster.history(job), "SLURM to miss the node", PATIENCE)
    finally:
        lab.cluster.restart_node(node)
    training.succeeds()
    assert lab.cluster.ended(job) == ["NODE_FAIL", "COMPLETED"]
    assert lab.submitted() == [job]


def test_the_doctor_finds_a_healthy_cluster_healthy_and_names_what_is_not(lab: Lab) -> None:
    printed = lab.project.run("mirai", "doctor", "rungs", "--scale", "lab")
    assert {line.split()[0] for line in printed.splitlines()} == {"ok"}
    assert "a lock taken here is seen on" in printed

    lab.site(account="nobody", partition="gpu,typo", setup=["module load nothing"])
    sick = lab.project.command("mirai", "doctor", "rungs", "--scale", "lab").stdout
    failed = {line[6:21].strip() for line in sick.splitlines() if line.startswith("FAIL")}
    assert failed == {"account", "partition", "a training", "other jobs"}

    lab.site(setup=["module load nothing"])
    sick = lab.project.command("mirai", "doctor", "rungs", "--scale", "lab").stdout
    assert "module: command not found" in sick
    assert "Traceback" not in sick
