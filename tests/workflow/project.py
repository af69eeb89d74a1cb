"""A throw-away copy of the project in which Snakemake and `mirai` are run as a user runs them."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mirai.experiments.stages import STAGES, MetricsStage, Stage
from mirai.states import read_json, sha256

ROOT = Path(__file__).parents[2]
TABLE = "results/digits/demo.csv"
FIGURES = ("results/digits/demo_samples.png", "results/digits/demo_token_maps.png")
LINKED = 100_000  # bytes; larger files of the store are never edited in place, so copies of a project share them

Plan = dict[str, set[str]]  # rule -> its jobs, each as the text of its wildcards


def copy_links(root: Path) -> None:
    """The links that `--profile slurm` and Snakemake's default profile go through, as the project has them."""
    for name in ("profiles", "slurm"):
        (root / name).symlink_to(os.readlink(ROOT / name))


@dataclass(frozen=True)
class Project:
    """A working copy; every command is run in its root with the environment's own `snakemake` and `mirai`."""

    root: Path
    settings: tuple[tuple[str, str], ...] = ()  # environment variables beside the usual ones

    @property
    def environment(self) -> dict[str, str]:
        private = {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
            "XDG_CACHE_HOME": str(self.root / ".home/cache"),
            "XDG_CONFIG_HOME": str(self.root / ".home/config"),
            "MPLCONFIGDIR": str(self.root / ".home/matplotlib"),
        }
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("SNAKEMAKE")}
        return inherited | private | dict(self.settings)

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end, whatever its exit code."""
        return subprocess.run(
            arguments, cwd=self.root, env=self.environment, capture_output=True, text=True, check=False, timeout=1800
        )

    def run(self, *arguments: str) -> str:
        """Run a command that must succeed -> its stdout."""
        done = self.command(*arguments)
        assert done.returncode == 0, f"{' '.join(arguments)}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def make(self, *targets: str) -> str:
        """Make targets with Snakemake on two cores -> what it printed."""
        done = self.command("snakemake", *targets, "--cores", "2")
        printed = done.stdout + done.stderr
        assert done.returncode == 0, printed[-20_000:]
        return printed

    def plan(self, *targets: str) -> Plan:
        """The jobs of a dry run."""
        done = self.command("snakemake", "-n", *targets)
        printed = done.stdout + done.stderr
        assert done.returncode == 0, printed[-20_000:]
        assert "This was a dry-run" in printed or "Nothing to be done" in printed, printed
        jobs: Plan = defaultdict(set)
        for rule, wildcards in re.findall(
            r"^(?:local)?rule (\w+):\n(?: {4}.*\n)*? {4}wildcards: (.*)$", printed, re.MULTILINE
        ):
            jobs[rule].add(wildcards)
        assert {rule: len(found) for rule, found in jobs.items()} == _job_stats(printed)
        return dict(jobs)

    def refused(self, *arguments: str) -> str:
        """Run a command that must end with exit code 2 and one sentence -> the sentence."""
        done = self.command(*arguments)
        printed = done.stdout + done.stderr
        assert done.returncode == 2, printed
        sentences = [line for line in done.stderr.splitlines() if line.startswith("mirai: ")]
        assert len(sentences) == 1, printed
        for noise in ("Traceback", "Exception", "InputFunction", "Error in"):
            assert noise not in printed, printed
        assert "mirai:" in done.stderr.rstrip().splitlines()[-1], f"something is said after the sentence:\n{printed}"
        return sentences[0].removeprefix("mirai: ")

    def copy(self, root: Path) -> Project:
        """The same project elsewhere, time stamps and Snakemake's records included."""
        shutil.copytree(
            self.root, root, symlinks=True, copy_function=_copy, ignore=shutil.ignore_patterns("locks", ".home")
        )
        return Project(root, self.settings)

    def edit(self, path: str, old: str, new: str) -> None:
        """Replace text that must be in a file."""
        file = self.root / path
        text = file.read_text()
        assert old in text
        file.write_text(text.replace(old, new))

    def write_yaml(self, path: str, content: dict[str, Any]) -> None:
        """Write a grid, a scale or the site."""
        (self.root / path).write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True))

    def stored(self, kind: str) -> dict[str, Path]:
        """Folders of a kind of stage, by key."""
        return {path.name: path for path in sorted((self.root / "results/store" / kind).iterdir())}

    def stage(self, kind: str, key: str) -> Stage:
        """A stage of the store, from its frozen recipe."""
        recipe = read_json(self.root / "results/store" / kind / key / "recipe.json")["recipe"]
        return STAGES[kind].model_validate_json(json.dumps(recipe))

    def table(self, path: str = TABLE) -> list[dict[str, str]]:
        """Rows of a table."""
        with (self.root / path).open() as file:
            return list(csv.DictReader(file))

    def metrics(self, row: int, table: str = TABLE) -> MetricsStage:
        """The metrics behind a row of a table."""
        (state,) = self.table(table)[row]["states"].split()
        stages = [self.stage("metrics", key) for key in self.stored("metrics")]
        return next(one for one in stages if isinstance(one, MetricsStage) and one.samples.state.key == state)

    def files(self) -> dict[str, tuple[int, str]]:
        """Time stamp and SHA-256 of every file of the store, by path."""
        found = (path for path in (self.root / "results/store").rglob("*") if path.is_file())
        return {str(path.relative_to(self.root)): (path.stat().st_mtime_ns, sha256(path)) for path in found}


def _job_stats(printed: str) -> dict[str, int]:
    """Snakemake's own count of jobs per rule."""
    if "Nothing to be done" in printed:
        return {}
    table = printed.split("Job stats:", 1)[1].split("total", 1)[0]
    return {rule: int(count) for rule, count in re.findall(r"^(\w+) +(\d+)$", table, re.MULTILINE)}


def _copy(source: str, target: str) -> None:
    if os.path.getsize(source) > LINKED:
        os.link(source, target)
    else:
        shutil.copy2(source, target)
