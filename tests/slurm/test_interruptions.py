"""What happens to a training on a cluster: it goes on from what it saved, and ends at the bits it would have had."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.slurm.cluster import until
from tests.slurm.lab import PATIENCE, Lab, resume

pytestmark = pytest.mark.slurm

LONG = 50  # epochs; a minute of computing alone


def test_a_preempted_training_on_two_nodes_ends_at_the_bits_of_an_undisturbed_one(lab: Lab, four_ranks: Lab) -> None:
    lab.site(partition="preempt", nodes=2, ranks_per_node=2)
    training = lab.make(lab.target(6))
    lab.wait_for_progress(2)
    job = lab.job()
    urgent = lab.cluster.submit("-p", "gpu", "-N2", "--exclusive", "-t", "1", command="sleep 1")
    until(lambda: lab.cluster.history(urgent) == ["COMPLETED"], "the job that preempts", PATIENCE)
    training.succeeds()

    assert lab.submitted() == [job, urgent]
    assert len(lab.cluster.ended(job)) > 1, "the training was not preempted at all"
    starts = {epoch: lab.weights(epoch)["started_at_step"] for epoch in (2, 4, 6)}
    assert starts != {epoch: four_ranks.weights(epoch)["started_at_step"] for epoch in (2, 4, 6)}
    for epoch in (2, 4, 6):
        assert lab.bits(epoch) == four_ranks.bits(epoch)


def test_a_training_goes_on_through_all_time_limits_that_it_meets(lab: Lab, tmp_path: Path) -> None:
    undisturbed = lab.copy(tmp_path / "undisturbed")
    here = undisturbed.start("snakemake", undisturbed.target(LONG), "--cores", "1")
    lab.site(training_minutes=1, signal_seconds=20, save_minutes=60.0)  # it saves when it must, or not at all
    lab.make(lab.target(LONG)).succeeds(3 * PATIENCE)

    assert len(lab.cluster.ended(lab.job())) > 1, "a minute was enough"
    here.succeeds()
    assert lab.bits(LONG) == undisturbed.bits(LONG)


def test_a_training_whose_node_dies_goes_on_from_the_newest_good_state(lab: Lab, one_rank: Lab) -> None:
    training = lab.make(lab.target(6))
    lab.caught(2)
    node = lab.cluster.run("squeue", "-h", "-o", "%N").strip()
    lab.cluster.kill_node(node)
    try:
        until(lambda: "NODE_FAIL" in lab.cluster.history(lab.job()), "SLURM to miss the node", PATIENCE)
    finally:
        lab.cluster.restart_node(node)
    training.succeeds()
    resumed_to_the_same_bits(lab, one_rank)


def test_a_job_that_an_administrator_requeues_goes_on(lab: Lab, one_rank: Lab) -> None:
    training = lab.make(lab.target(6))
    lab.caught(2)
    lab.cluster.run("scontrol", "requeue", lab.job())  # which continues what is stopped
    training.succeeds()
    assert len(lab.cluster.ended(lab.job())) == 2
    resumed_to_the_same_bits(lab, one_rank)


def test_a_training_that_is_killed_goes_on(lab: Lab, one_rank: Lab) -> None:
    training = lab.make(lab.target(6))
    for trainer in lab.caught(2):
        trainer.kill()
    training.succeeds()
    resumed_to_the_same_bits(lab, one_rank)


def test_a_training_of_which_one_rank_is_killed_goes_on(lab: Lab, four_ranks: Lab) -> None:
    lab.site(nodes=2, ranks_per_node=2)
    training = lab.make(lab.target(6))
    trainers = lab.caught(2)
    victim, *_ = [one for one in trainers if one.environ().get("SLURM_PROCID") == "3"]
    victim.kill()
    resume([one for one in trainers if one.pid != victim.pid])
    training.succeeds()
    resumed_to_the_same_bits(lab, four_ranks)


def resumed_to_the_same_bits(lab: Lab, undisturbed: Lab) -> None:
    """The first of the rungs was gone on with in its middle, and nothing shows it."""
    assert lab.weights(2)["started_at_step"] > 0
    for epoch in (2, 4, 6):
        assert lab.bits(epoch) == undisturbed.bits(epoch)
