"""One cluster for all tests here, and a project for each that has its codes already."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster, lacking
from tests.slurm.lab import Lab, create_project, planned
from tests.workflow.project import Project

REQUIRED = "MIRAI_REQUIRE_SLURM"  # set where a skipped test is a failure, as in continuous integration


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """The running cluster."""
    reason = lacking()
    if reason is not None:
        (pytest.fail if os.environ.get(REQUIRED) else pytest.skip)(reason)
    cluster = Cluster()
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture(scope="session")
def cloned(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The project with nothing made."""
    return create_project(tmp_path_factory.mktemp("cloned") / "project", cluster)


@pytest.fixture(scope="session")
def untrained(cloned: Project, tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, dict[int, str]]:
    """The project with codes, made without SLURM, and the keys of its states by epoch."""
    project = cloned.copy(tmp_path_factory.mktemp("untrained") / "project")
    states, codes = planned(project)
    project.make(f"results/store/codes/{codes}/codes.json")
    return project, states


@pytest.fixture
def lab(cluster: Cluster, untrained: tuple[Project, dict[int, str]], tmp_path: Path) -> Iterator[Lab]:
    """A project of one's own, in which everything but training is done."""
    yield from _lab(cluster, untrained, tmp_path)


@pytest.fixture(scope="session")
def one_rank(
    cluster: Cluster, untrained: tuple[Project, dict[int, str]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Lab]:
    """Three rungs that one rank has trained undisturbed on the cluster, to look at."""
    for lab in _lab(cluster, untrained, tmp_path_factory.mktemp("one-rank")):
        lab.make(lab.target(6)).succeeds()
        yield lab


@pytest.fixture(scope="session")
def four_ranks(
    cluster: Cluster, untrained: tuple[Project, dict[int, str]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Lab]:
    """The same three rungs by two ranks on each of two nodes."""
    for lab in _lab(cluster, untrained, tmp_path_factory.mktemp("four-ranks")):
        lab.site(nodes=2, ranks_per_node=2)
        lab.make(lab.target(6)).succeeds()
        yield lab


def _lab(cluster: Cluster, untrained: tuple[Project, dict[int, str]], folder: Path) -> Iterator[Lab]:
    project, states = untrained
    lab = Lab(project.copy(folder / "project"), cluster, states, cluster.next_job())
    lab.site()
    try:
        yield lab
    finally:
        lab.clean_up()
