"""Documentation that cannot go stale: links, commands, the example grid, the table of axes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml

from mirai.cli import build_parser
from mirai.experiments.grid import Point
from mirai.experiments.plan import plan_grid, row_metrics
from mirai.experiments.recipe import Run

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_no_placeholder_is_left_in_the_readme() -> None:
    assert not re.findall(r"\b[A-Z]{3,}_[A-Z_]+\b", (ROOT / "README.md").read_text())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_mirai_commands_parse(page: Path) -> None:
    parser = build_parser()
    text = page.read_text().replace("COMMAND --help", "plan demo").replace("KEY", "0cc8d0c3dc213c9f")
    for line in re.findall(r"`(mirai [^`]+)`|^(mirai .+)$", text, re.MULTILINE):
        words = shlex.split(next(filter(None, line)).split("#")[0])[1:]
        if len(words) > 1:  # a name alone is prose
            parser.parse_args(words)


def test_example_grid_of_the_docs_plans(project: Path) -> None:
    example = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/grids.md").read_text(), re.DOTALL)[0]
    (project / "experiments/my_grid.yaml").write_text(example)
    grid = plan_grid("my_grid", "demo")
    assert len(grid.rows) == 8
    # K = 1 is the same run in 1D and in 2D
    assert len({stage.key for row in grid.rows for stage in row_metrics(row)}) == 3 * 7


def test_docs_list_every_axis_and_no_other() -> None:
    table = (ROOT / "docs/grids.md").read_text().split("| axis |")[1].split("\n\n")[0]
    cells = [line.split("|")[1] for line in table.splitlines()[2:]]
    assert {axis for cell in cells for axis in re.findall(r"`(\w+)`", cell)} == set(Point.model_fields)


@pytest.mark.parametrize("scale", ["demo", "digits", "imagenet256"])
def test_axis_examples_of_the_docs_are_understood(scale: str, project: Path) -> None:
    """Each example alone, on the arm it is about."""
    table = (ROOT / "docs/grids.md").read_text().split("| axis |")[1].split("\n\n")[0]
    for line in table.splitlines()[2:]:
        axes = re.findall(r"`(\w+)`", line.split("|")[1])
        examples = re.findall(r"`([^`]+)`", line.split("|")[3])
        row = {axis: yaml.safe_load(example) for axis, example in zip(axes, examples, strict=True)}
        encoder_axes = {"encoder", "block_size"} & set(axes)
        row = {"label": "row", "arm": "mirai-i" if encoder_axes else "mirai-e", **row}
        if row.get("block_size", 0) > 4:
            row["block_size"] = 4
        content = {"title": "example", "rows": [{"label": "first", "arm": "baseline"}, row]}
        (project / "experiments/example.yaml").write_text(yaml.safe_dump(content))
        plan_grid.cache_clear()
        second = plan_grid("example", scale).rows[1]
        assert second.unavailable is not None or all(isinstance(run, Run) for run in second.runs), line


def test_readings_cited_in_the_code_are_in_the_list() -> None:
    listed = (ROOT / "docs/reproduction.md").read_text()
    for path in sorted((ROOT / "mirai").rglob("*.py")) + sorted((ROOT / "experiments").rglob("*.yaml")):
        for number in re.findall(r"reading (9\.\d+)", path.read_text()):
            assert f"| {number} |" in listed, f"{path}: reading {number}"
