"""What a user did wrong is said where the user looks, once, and is not tried again."""

from __future__ import annotations

import pytest

from tests.slurm.cluster import Cluster
from tests.slurm.lab import Command, Lab

pytestmark = pytest.mark.slurm

FAULT = """
import mirai.data.batches

def batch_indices(step, **_):
    raise ZeroDivisionError("planted by a test")

mirai.data.batches.batch_indices = batch_indices
"""


def test_an_account_that_the_cluster_does_not_know_is_told_in_one_sentence(lab: Lab) -> None:
    lab.site(account="nobody")
    training = lab.make(lab.target(2))
    assert training.wait() != 0
    (sentence,) = told(training)
    assert "account" in sentence
    assert "nobody" in sentence
    assert "config/site.yaml" in sentence
    assert lab.submitted() == []


def test_a_python_error_in_training_is_shown_by_snakemake_and_not_tried_again(lab: Lab) -> None:
    (lab.root / "fault").mkdir()
    (lab.root / "fault/sitecustomize.py").write_text(FAULT)
    lab.site(setup=["export PYTHONPATH=fault"])
    training = lab.make(lab.target(2))
    assert training.wait() == 1
    assert "Traceback (most recent call last)" in training.printed
    assert "ZeroDivisionError: planted by a test" in training.printed
    assert lab.cluster.ended(lab.job()) == ["FAILED"]


def test_a_training_that_needs_more_memory_than_it_asked_for_is_told_so(lab: Lab, cluster: Cluster) -> None:
    assert cluster.limits_memory, "memory cgroups cannot be mounted here, so that SLURM cannot limit memory"
    lab.site(memory_gb=0.15)
    training = lab.make(lab.target(2))
    assert training.wait() == 1
    *_, sentence = told(training)
    assert "memory" in sentence
    assert "slurm.memory_gb" in sentence
    assert len(lab.cluster.ended(lab.job())) == 1


def told(command: Command) -> list[str]:
    """The sentences of `mirai`, each once: Snakemake shows them as they come, and again from the log of the rule."""
    assert "Traceback" not in command.printed
    return list(dict.fromkeys(line for line in command.printed.splitlines() if line.startswith("mirai: ")))
