"""The whole DAG at the digits scale on the cluster, by the command that a user types."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from mirai.experiments.stages import STAGES
from tests.slurm.cluster import Cluster
from tests.slurm.lab import Lab
from tests.workflow.project import TABLE, Project

pytestmark = pytest.mark.slurm

PATIENCE = 900.0  # seconds


def test_one_command_makes_the_table_on_the_cluster_and_a_second_one_nothing(
    cluster: Cluster, cloned: Project, tmp_path: Path
) -> None:
    lab = Lab(cloned.copy(tmp_path / "project"), cluster, {}, cluster.next_job())
    lab.site()
    try:
        lab.make(TABLE).succeeds(PATIENCE)
        jobs = lab.submitted()
        assert "Nothing to be done" in lab.make(TABLE).succeeds()
        assert lab.submitted() == jobs
    finally:
        lab.clean_up()

    rows = lab.project.table()
    assert [row["model"] for row in rows] == ["LlamaGen-B", "+ Mirai-I", "+ Mirai-E"]
    assert all(math.isfinite(float(row["fid"])) for row in rows)

    assert {tuple(cluster.ended(job)) for job in jobs} == {("COMPLETED",)}
    stored = {kind: len(lab.project.stored(kind)) for kind in STAGES}
    assert stored["state"] == 8
    # every other stage and the table are a job each; the baseline's rungs are one, and so are Mirai-I's, and Mirai-E's
    # from where it leaves the baseline
    assert len(jobs) == sum(stored.values()) - stored["state"] + 1 + 3
