"""One real run of the demo grid at the digits scale, which all tests of the workflow look at or work on copies of."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.workflow.project import FIGURES, ROOT, TABLE, Project, copy_links


@pytest.fixture(scope="session")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The project as cloned: no site, no results. For dry runs and refusals only."""
    root = tmp_path_factory.mktemp("empty")
    for name in ("workflow", "experiments", "slurm_profiles"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("Snakefile", "config/site.example.yaml"):
        (root / name).parent.mkdir(exist_ok=True)
        shutil.copy2(ROOT / name, root / name)
    copy_links(root)
    return Project(root)


@pytest.fixture(scope="session")
def first_run(empty: Project, tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, str]:
    """The finished run (minutes) and what Snakemake printed. Tests that change anything take `project` instead."""
    project = empty.copy(tmp_path_factory.mktemp("finished") / "project")
    return project, project.make(TABLE, *FIGURES)


@pytest.fixture(scope="session")
def finished(first_run: tuple[Project, str]) -> Project:
    """The finished run, to look at."""
    return first_run[0]


@pytest.fixture
def project(finished: Project, tmp_path: Path) -> Project:
    """A copy of the finished run, to change."""
    return finished.copy(tmp_path / "project")


@pytest.fixture
def clone(empty: Project, tmp_path: Path) -> Project:
    """A copy of the project without results, to change."""
    return empty.copy(tmp_path / "clone")
