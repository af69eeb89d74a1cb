"""The page shows what there is, says what there is not, and needs no other file."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from PIL import Image

from mirai.analysis.page import LARGEST, write_page
from mirai.analysis.style import DPI
from mirai.errors import UserError
from mirai.experiments import paths
from mirai.experiments.plan import freeze, lookup, plan_grid, row_metrics
from tests.analysis.made import HEIGHT, MISSING, PICTURES, SCALE, TABLES, WIDTH, make_results

pytestmark = [pytest.mark.full, pytest.mark.usefixtures("project")]

Attributes = dict[str, str | None]


class Elements(HTMLParser):
    """Start tags in order; fails on an end tag that closes nothing."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, Attributes]] = []
        self.open: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def of(self, *tags: str) -> list[Attributes]:
        return [attributes for tag, attributes in self.found if tag in tags]


@pytest.fixture
def made(project: Path) -> str:
    make_results()
    return write_page(SCALE).read_text()


def section(page: str, title: str) -> str:
    """The part of the page under a heading of the second rank."""
    return page.split(f">{title}</h2>", 1)[1].split("<h2", 1)[0]


def test_every_table_and_picture_that_is_there_is_shown_in_the_papers_order(made: str) -> None:
    headings = re.findall(r'<h3 id="grid-(\w+)">', made)
    assert headings == ["table2", "table6", "figure2", "figure8", "demo"]
    assert made.count('<td class="paper">4.77</td>') == len(TABLES)
    assert len(Elements(made).of("img")) == len(PICTURES)
    shown = len(TABLES) + len(PICTURES) - 1  # demo is not of the paper
    assert f"Made at this scale: {shown} of the paper's {shown + len(MISSING)}" in made


def test_what_is_not_made_is_listed_with_the_command_that_makes_it(made: str) -> None:
    listed = re.findall(r"<code>snakemake (\S+)</code>", section(made, "Not made yet"))
    targets = ("all", "table3.csv", "figure3.csv", "figure3.png", "demo_samples.png", "demo_token_maps.png")
    assert listed == [f"results/digits/{target}" for target in targets]


def test_a_scale_without_any_results_has_a_page_too(made: str) -> None:
    page = write_page("imagenet256").read_text()
    assert "Made at this scale: 0 of" in page
    assert "<h3" not in page
    assert "snakemake results/table2.csv" in section(page, "Not made yet")
    assert "snakemake results/costs.csv" in section(page, "Costs")


def test_a_grid_that_cannot_be_read_is_told_and_costs_the_page_nothing_else(project: Path) -> None:
    make_results()
    (project / "experiments/wrong.yaml").write_text(yaml.safe_dump({"title": "Wrong", "rows": [{"labl": "x"}]}))
    page = write_page(SCALE).read_text()
    assert "wrong: experiments/wrong.yaml" in section(page, "Not made yet")
    assert page.count("<h3") == 5


def test_a_table_of_an_edited_grid_is_marked(project: Path, made: str) -> None:
    assert "edited since" not in made
    paths.key_record(paths.product(SCALE, "table6")).write_text("another\n")
    page = write_page(SCALE).read_text()
    assert re.findall(r"edited since: <code>snakemake (\S+)</code>", page) == ["results/digits/table6.csv"]


def test_costs_are_summed_per_table(made: str) -> None:
    costs = section(made, "Costs")
    assert '<th scope="row">table2</th><td>CPU rank</td><td>–</td><td>0.5000</td>' in costs
    assert "0.1234" not in costs


def test_the_page_fetches_nothing(made: str) -> None:
    page = Elements(made)
    assert "default-src 'none'" in next(one["content"] or "" for one in page.of("meta") if "http-equiv" in one)
    assert not page.of("script", "iframe", "object", "video", "audio")
    assert all((one["src"] or "").startswith("data:") for one in page.of("img"))
    assert not re.search(r"@import|url\(|https?:|//[a-z]", re.sub(r'src="data:[^"]*"', "", made))


def test_links_lead_to_files_that_are_there(made: str) -> None:
    freeze(lookup(row_metrics(plan_grid("table2", SCALE).rows[0])[0].samples.state.key))
    for scale in (SCALE, "imagenet256"):
        page = write_page(scale)
        elements = Elements(page.read_text())
        names = {one["id"] for _, one in elements.found if "id" in one}
        targets = [one["href"] or "" for one in elements.of("a")]
        for target in targets:
            assert target.removeprefix("#") in names if target.startswith("#") else (page.parent / target).is_file()
        assert scale != SCALE or any("store/state/" in target for target in targets), "of the state with a recipe"


def test_a_run_is_linked_to_its_log_and_named_by_its_key(made: str) -> None:
    key = row_metrics(plan_grid("table2", SCALE).rows[0])[0].samples.state.key
    assert f"<td>{key}</td>" in made, "no recipe is frozen yet, so nothing to link to"
    log = paths.benchmark("state", key).with_suffix(".log")
    log.parent.mkdir(parents=True)
    log.write_text("trained\n")
    assert f'<a href="../logs/state/{key}.log">log</a>' in write_page(SCALE).read_text()


def test_the_tree_of_states_is_shown(made: str) -> None:
    state = row_metrics(plan_grid("table2", SCALE).rows[0])[0].samples.state
    assert re.search(rf"<pre>[^<]*\n *{state.key} epoch +80 \[next-token 80\]", made)


def test_headings_have_an_order_and_names_are_given_once(made: str) -> None:
    page = Elements(made)
    ranks = [int(tag[1]) for tag, _ in page.found if re.fullmatch(r"h\d", tag)]
    assert ranks[0] == 1
    assert all(later <= earlier + 1 for earlier, later in pairwise(ranks))
    names = [one["id"] for _, one in page.found if "id" in one]
    assert len(names) == len(set(names))
    for _, attributes in page.found:
        assert (attributes.get("aria-labelledby") or names[0]) in names


def test_pictures_are_described_and_small(made: str) -> None:
    size = (LARGEST[0], HEIGHT * LARGEST[0] // WIDTH)
    for image in Elements(made).of("img"):
        assert len(image["alt"] or "") > 30
        with Image.open(io.BytesIO(base64.b64decode((image["src"] or "").split(",")[1]))) as picture:
            assert picture.size == (int(image["width"] or 0), int(image["height"] or 0)) == size


def test_a_figure_is_as_wide_as_its_inches_say_not_as_its_pixels(made: str) -> None:
    inches = WIDTH / DPI * 1.7
    assert {image["style"] for image in Elements(made).of("img")} == {f"width:min(100%,{inches:.2f}in)"}


def test_labels_are_text_whatever_they_hold(project: Path) -> None:
    content = {"title": "<b>1 < 2</b>", "rows": [{"label": '<script>"&', "arm": "baseline"}]}
    (project / "experiments/own.yaml").write_text(yaml.safe_dump(content))
    make_results()
    paths.product(SCALE, "own").write_text("a\n1\n")
    page = write_page(SCALE).read_text()
    assert "<b>" not in page
    assert "<script>" not in page
    assert "own: &lt;b&gt;1 &lt; 2&lt;/b&gt;" in page


def test_equal_results_give_equal_bytes_wherever_they_lie(project: Path, made: str) -> None:
    assert write_page(SCALE).read_text() == made
    assert str(project) not in made


def test_a_scale_that_does_not_exist_is_refused() -> None:
    with pytest.raises(UserError, match="there is no scale 'nope'"):
        write_page("nope")
