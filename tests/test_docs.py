"""Documentation that cannot go stale: links, commands, the example grids, the tables of keys, figures, axes, mistakes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from mirai.cli import build_parser
from mirai.errors import UserError
from mirai.experiments.arms import Arm
from mirai.experiments.figures import DRAWINGS, PLOTS
from mirai.experiments.grid import Grid, NoRowAtThisScale
from mirai.experiments.grid_files import GridFile, RowFile
from mirai.experiments.plan import plan_grid, row_metrics
from mirai.experiments.points import WITHOUT_EFFECT, Point
from mirai.experiments.recipe import Tokenizer
from mirai.experiments.yaml_input import validate

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


def test_the_tokenizer_of_the_docs_is_a_recipe() -> None:
    (example,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/reproduction.md").read_text(), re.DOTALL)
    tokenizer = validate(Tokenizer, yaml.safe_load(example)["tokenizer"], "docs")
    assert tokenizer.training is not None
    assert tokenizer.training.adversarial is not None


GRIDS = (ROOT / "docs/grids.md").read_text()
EXAMPLES = {
    re.findall(r"# experiments/(\w+)\.yaml", text)[0]: text
    for text in re.findall(r"```yaml\n(.*?)```", GRIDS, re.DOTALL)
}


def cells(first: str) -> list[list[str]]:
    """The lines of the table of grids.md whose first column is headed so."""
    table = GRIDS.split(f"\n| {first} |")[1].split("\n\n")[0]
    return [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in table.splitlines()[2:]]


def write_examples(root: Path) -> None:
    """All grids of grids.md."""
    for name, text in EXAMPLES.items():
        (root / f"experiments/{name}.yaml").write_text(text)


def load_row(root: Path, row: str, scale: str, **keys: Any) -> Grid:
    """A grid of one row as the tables of grids.md write them."""
    content = {"title": "example", "rows": [{"label": "row", **yaml.safe_load(row)}], **keys}
    (root / "experiments/example.yaml").write_text(yaml.safe_dump(content))
    plan_grid.cache_clear()
    return plan_grid("example", scale)


@pytest.mark.parametrize("scale", ["digits", "demo", "imagenet256"])
def test_example_grids_of_the_docs_plan(scale: str, project: Path) -> None:
    write_examples(project)
    first, second, third = (plan_grid(name, scale) for name in EXAMPLES)
    assert [len(grid.rows) for grid in (first, second, third)] == [8, 7, 10]
    # K = 1 is the same run in 1D and in 2D
    assert len({stage.key for row in first.rows for stage in row_metrics(row)}) == 3 * 7
    assert [row.runs[0].epochs for row in second.rows[1:]] == [40, 80, 300] * 2
    assert {row.runs[0].sampling.weights for row in second.rows[1:]} == {"ema" if scale == "digits" else "raw"}
    assert all(len(row.runs) == 1 and row.unavailable is None for row in third.rows)


def test_docs_list_every_key_of_a_grid_and_no_other() -> None:
    listed = {key for line in cells("key") for key in re.findall(r"`(\w+)`", line[0])}
    assert listed | {"label"} == {*GridFile.model_fields, *RowFile.model_fields} - {*Point.model_fields}


def test_docs_list_every_kind_of_figure_with_an_example_that_plans(project: Path) -> None:
    lines = cells("kind")
    assert [line[0].strip("`") for line in lines] == [*PLOTS, *DRAWINGS]
    for kind, _, example in lines:
        keys = {"figure": yaml.safe_load(example.strip("`"))}
        figure = load_row(project, "{arm: baseline, vary: {epochs: [40, 80]}}", "digits", **keys).figure
        assert figure is not None
        assert figure.kind == kind.strip("`")


def test_docs_list_every_axis_with_the_arms_on_which_it_has_an_effect() -> None:
    listed = {line[0].strip("`"): line[3] for line in cells("axis")}
    assert list(listed) == list(Point.model_fields)
    letters: dict[Arm, str] = {"baseline": "B", "mirai-i": "I", "mirai-e": "E", "output-level": "O"}
    for axis, arms in listed.items():
        assert arms == "".join(letter for arm, letter in letters.items() if axis not in WITHOUT_EFFECT[arm]), axis


@pytest.mark.parametrize("scale", ["digits", "imagenet256"])
@pytest.mark.parametrize("line", cells("axis"), ids=lambda line: line[0])
def test_axis_examples_of_the_docs_plan(line: list[str], scale: str, project: Path) -> None:
    (axis,), (example,) = (re.findall(r"^`(.*)`$", line[number]) for number in (0, 4))
    assert axis in yaml.safe_load(example)
    if (axis, scale) == ("encoder", "digits"):
        with pytest.raises(NoRowAtThisScale, match="image_size 56 fits"):  # of 4 x 4 tokens
            load_row(project, example, scale)
        return
    (row,) = load_row(project, example, scale).rows
    assert row.unavailable is None
    assert row.runs


@pytest.mark.parametrize("line", cells("row"), ids=lambda line: line[0])
def test_what_the_docs_say_is_refused_is_refused_with_that_sentence(line: list[str], project: Path) -> None:
    with pytest.raises(UserError) as caught:
        load_row(project, line[0].strip("`"), "imagenet256")
    assert line[1] in str(caught.value)


def test_readings_cited_in_the_code_are_in_the_list() -> None:
    listed = (ROOT / "docs/reproduction.md").read_text()
    for path in sorted((ROOT / "mirai").rglob("*.py")) + sorted((ROOT / "experiments").rglob("*.yaml")):
        for number in re.findall(r"reading (9\.\d+)", path.read_text()):
            assert f"| {number} |" in listed, f"{path}: reading {number}"
