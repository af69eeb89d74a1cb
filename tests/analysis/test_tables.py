"""Tables say what was measured, and compare only what can be compared."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from mirai import make
from mirai.analysis.rendering import Column, Table, html_fragment, latex, markdown, shown_count
from mirai.analysis.tables import write_table
from mirai.experiments import paths
from mirai.experiments.plan import plan_grid, row_metrics
from mirai.states import write_json
from tests.analysis.pretend import edited, pretend, pretend_all, publish_metrics, rows_of, text_of
from tests.conftest import WriteGrid

pytestmark = pytest.mark.usefixtures("project")

ONE_SEED = {("LlamaGen-B", 0): 40.0, ("+ Mirai-I", 0): 30.0, ("+ Mirai-E", 0): 50.0}


def test_changes_are_relative_to_each_ones_own_baseline() -> None:
    grid = plan_grid("demo", "digits")
    pretend(grid, ONE_SEED)
    write_table(grid)
    baseline, mirai_i, mirai_e = rows_of(grid)
    assert baseline["fid_change_percent"] == ""
    assert (float(mirai_i["fid_change_percent"]), float(mirai_e["fid_change_percent"])) == (-25.0, 25.0)
    assert float(mirai_i["paper_fid_change_percent"]) == pytest.approx(100 * (4.77 - 6.36) / 6.36, abs=1e-3)
    assert "| 30.00 ± 0.25 (-25.0 %) | 4.77 (-25.0 %) |" in text_of(grid, ".md")


def test_differences_to_the_paper_appear_at_its_own_scale_only() -> None:
    for scale, expected in (("digits", None), ("imagenet256", 40 - 6.36)):
        grid = plan_grid("demo", scale)
        pretend(grid, ONE_SEED)
        write_table(grid)
        difference = rows_of(grid)[0].get("fid_minus_paper")
        assert (difference and float(difference)) == (expected and pytest.approx(expected))
    assert paths.product("imagenet256", "demo") == Path("results/demo.csv")


def test_several_seeds_give_mean_and_deviation_and_one_seed_gives_none() -> None:
    grid = plan_grid("demo", "digits")
    pretend(grid, ONE_SEED)
    write_table(grid)
    assert rows_of(grid)[0]["fid_sd_over_seeds"] == ""
    assert float(rows_of(grid)[0]["fid_sd_over_halves"]) == 0.25
    assert "one seed" in text_of(grid, ".md")

    plan_grid.cache_clear()
    edited("demo", seeds=[0, 1])
    grid = plan_grid("demo", "digits")
    pretend(grid, ONE_SEED | {(label, 1): value + 2 for (label, _), value in ONE_SEED.items()})
    write_table(grid)
    row = rows_of(grid)[1]
    assert (row["seeds"], float(row["fid"])) == ("2", 31.0)
    assert float(row["fid_sd_over_seeds"]) == pytest.approx(2**0.5, abs=1e-4)
    assert [float(value) for value in row["fid_by_seed"].split()] == [30.0, 32.0], "in the order of states and seeds"
    assert len(row["states"].split()) == 2
    assert "31.00 ± 1.41" in text_of(grid, ".md")


def test_each_row_gets_a_verdict_against_its_own_baseline_over_common_seeds() -> None:
    edited("demo", seeds=[0, 1, 2])
    grid = plan_grid("demo", "digits")
    baseline = {0: 40.0, 1: 20.0, 2: 30.0}  # seeds differ by far more than methods do
    fid = {("LlamaGen-B", seed): value for seed, value in baseline.items()}
    fid |= {("+ Mirai-I", seed): value - 2 - seed / 10 for seed, value in baseline.items()}
    fid |= {("+ Mirai-E", seed): value + 4 * (seed - 1) for seed, value in baseline.items()}
    pretend(grid, fid)
    write_table(grid)
    assert [row["fid_verdict"] for row in rows_of(grid)] == ["", "better", "within noise"]
    assert float(rows_of(grid)[1]["fid_difference"]) == pytest.approx(-2.1)
    assert float(rows_of(grid)[1]["fid_difference_high"]) < 0
    assert "95 % t-interval" in text_of(grid, ".md")


def test_rows_that_a_scale_cannot_have_stay_in_the_table_with_the_papers_value() -> None:
    rows = yaml.safe_load(Path("experiments/demo.yaml").read_text())["rows"]
    edited("demo", rows=[*rows, {"label": "LlamaGen-3B", "arm": "baseline", "size": "3B", "paper": {"fid": 3.16}}])
    grid = plan_grid("demo", "digits")
    pretend(grid, ONE_SEED)
    write_table(grid)
    last = rows_of(grid)[-1]
    assert (last["status"], last["fid"], last["paper_fid"]) == ("not at this scale", "", "3.16")
    assert last["note"] == "not at this scale: size 3B does not exist at this scale"
    assert "LlamaGen-3B: not at this scale: size 3B" in text_of(grid, ".md")


def test_rows_of_the_literature_are_cited_and_marked(write_grid: WriteGrid) -> None:
    cited = {"label": "BigGAN", "cited": True, "facts": {"type": "GAN", "parameters": "112M"}, "paper": {"fid": 6.95}}
    ours = {"label": "LlamaGen-B", "arm": "baseline", "facts": {"type": "AR"}, "paper": {"fid": 5.3}}
    grid = plan_grid(write_grid(cited, ours, columns=["type", "parameters"]), "digits")
    pretend_all(grid, lambda run: 20.0)
    write_table(grid)
    literature, measured = rows_of(grid)
    assert (literature["status"], literature["fid"], literature["paper_fid"]) == ("cited", "", "6.95")
    assert (literature["parameters"], measured["parameters"]) == ("112M", "164992")
    text = text_of(grid, ".md")
    assert "| BigGAN † | GAN | 112M | – | 6.95 |" in text
    assert "| LlamaGen-B | AR | 165k | 20.00 ± 0.25 | 5.30 |" in text  # as many digits as the column has
    assert "† cited from the paper, not measured" in text


def test_encoders_and_heads_are_counted_where_a_grid_asks() -> None:
    for name, column, numbers in (
        ("table4", "encoder_parameters", ["", "65904", "112448"]),
        ("table9", "head_parameters", ["", "9392", "14288"]),
    ):
        grid = plan_grid(name, "digits")
        pretend_all(grid, lambda run: 20.0)
        write_table(grid)
        assert [row[column] for row in rows_of(grid)[:3]] == numbers


def test_the_best_guidance_of_a_sweep_stands_beside_the_fixed_one(write_grid: WriteGrid) -> None:
    rows = [{"label": arm, "arm": arm} for arm in ("baseline", "mirai-i")]
    grid = plan_grid(write_grid(*rows, guidance_sweep=[1.25, 1.75, 2.0], seeds=[0, 1]), "digits")
    best = {True: 2.0, False: 1.75}  # of the baseline, of Mirai-I
    pretend_all(grid, lambda run: 20 + run.training.seed + abs(run.sampling.guidance - best[run.foresight is None]))
    write_table(grid)
    baseline, mirai_i = rows_of(grid)
    assert (float(baseline["fid"]), baseline["guidance"]) == (21.0, "1.5")
    assert [(float(row["best_fid"]), float(row["best_fid_guidance"])) for row in (baseline, mirai_i)] == [
        (20.5, 2.0),
        (20.5, 1.75),
    ]
    assert [row["best_fid_at_the_sweeps_end"] for row in (baseline, mirai_i)] == ["yes", "no"]
    assert "on the same samples" in text_of(grid, ".md")


def test_a_station_of_a_longer_run_finds_the_baseline_that_shares_its_states() -> None:
    edited("figure1", figure={"kind": "convergence", "classes": [0], "curve": "trajectory"})
    grid = plan_grid("figure1", "digits")
    pretend_all(grid, lambda run: 40.0 if run.foresight is None else 30.0)
    write_table(grid)
    by_label = {(row["model"], row["epochs"]): row for row in rows_of(grid)}
    assert by_label["LlamaGen-B", "40"]["fid_change_percent"] == ""
    assert float(by_label["+ Mirai-I", "40"]["fid_change_percent"]) == -25.0


def test_states_of_different_numerics_are_marked() -> None:
    edited("demo", seeds=[0, 1])
    grid = plan_grid("demo", "digits")
    pretend(grid, ONE_SEED | {(label, 1): value for (label, _), value in ONE_SEED.items()})
    publish_metrics(row_metrics(grid.rows[1])[0], state_numerics={"threads": 2})
    write_table(grid)
    assert [row["note"] for row in rows_of(grid)] == ["", "states of different numerics", ""]
    assert "States of different numerics: + Mirai-I." in text_of(grid, ".md")


@pytest.mark.parametrize(
    ("numerics", "noted"),
    [
        ({"threads": 1}, False),  # as documents of old have it
        ([{"threads": 1}], False),
        ([{"threads": 2}, {"threads": 1}], True),  # a trunk from elsewhere
        ([{"threads": 2}], True),  # not its baseline's
    ],
)
def test_numerics_of_all_segments_are_compared_and_with_the_baselines(numerics: object, noted: bool) -> None:
    grid = plan_grid("demo", "digits")
    pretend(grid, ONE_SEED, **{"+ Mirai-E": {"state_numerics": numerics}})
    write_table(grid)
    assert [row["note"] for row in rows_of(grid)] == ["", "", "states of different numerics" if noted else ""]


def test_numerics_behind_a_state_are_those_of_each_training_whose_bits_are_in_it() -> None:
    state = row_metrics(plan_grid("demo", "digits").rows[0])[0].samples.state
    trainings = (
        ("first", 2, None, 0),
        ("second", 1, "first", 4),
        ("third", 1, "second", 8),
        (state.key, 2, "third", 9),
    )
    for key, threads, parent, started in trainings:
        numerics = {"numerics": {"threads": threads}, "parent": parent, "started_at_step": started}
        write_json(paths.manifest("state", key), numerics)
    assert make._numerics_behind(state) == [{"threads": 2}, {"threads": 1}]
    paths.manifest("state", "third").unlink()  # somebody made room
    assert make._numerics_behind(state) == [{"threads": 2}]
    last = {"numerics": {"threads": 2}, "parent": "second", "started_at_step": 0}  # a parent in vain
    write_json(paths.manifest("state", state.key), last)
    assert make._numerics_behind(state) == [{"threads": 2}]
    last = {"numerics": {"threads": 2}, "parent": "third", "started_at_step": 9, "grown_from": "second"}
    write_json(paths.manifest("state", state.key), last)
    assert make._numerics_behind(state) == [{"threads": 2}, {"threads": 1}], "past its parent, which was damaged"


def test_rows_without_a_baseline_in_the_grid_are_named(write_grid: WriteGrid) -> None:
    rows = [{"label": "plain"}, {"label": "i", "arm": "mirai-i"}, {"label": "other i", "arm": "mirai-i", "epochs": 40}]
    grid = plan_grid(write_grid(*rows), "digits")
    pretend_all(grid, lambda run: 20.0)
    write_table(grid)
    assert [row["note"] for row in rows_of(grid)] == ["", "", "no baseline in this grid"]
    assert "No baseline in this grid: other i." in text_of(grid, ".md")


def test_the_papers_own_change_is_printed_where_a_scale_lacks_the_rows() -> None:
    """Of table 6 the pilot has size B alone."""
    grid = plan_grid("table6", "pilot")
    pretend_all(grid, lambda run: 20.0)
    write_table(grid)
    large = next(row for row in rows_of(grid) if row["model"] == "+ Mirai-I" and row["paper_fid"] == "3.07")
    assert large["status"] == "not at this scale"
    assert float(large["paper_fid_change_percent"]) == pytest.approx(100 * (3.07 - 3.73) / 3.73, abs=1e-3)
    assert "3.07 (-17.7 %)" in text_of(grid, ".md")


def test_markdown_names_the_stand_ins_and_warns_about_absolute_values() -> None:
    grid = plan_grid("demo", "digits")
    pretend(grid, ONE_SEED)
    write_table(grid)
    text = text_of(grid, ".md")
    assert "tiny ViT (supervised)" in text
    assert "pixel-moment network" in text
    assert "its absolute values cannot" in text
    assert "DINO" not in text


AWKWARD = Table(
    title="1 < 2 & more",
    columns=(
        Column("a_b", lambda one: str(one["model"]), "text"),
        Column("FID↓ †", lambda one: "5 ± 1 %"),
        Column("verdict", lambda one: "within noise", "verdict"),
    ),
    records=({"model": "<i>x|y_z & 50% \\ $2^3$ {#}~</i>", "status": "not at this scale"},),
    notes=('"note" <b>',),
)


class Tags(HTMLParser):
    """Opens and closes every element, and keeps the text."""

    def __init__(self) -> None:
        super().__init__()
        self.opened: list[str] = []
        self.seen: list[tuple[str, str | None]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.opened.append(tag)
        self.seen.append((tag, dict(attrs).get("class")))

    def handle_endtag(self, tag: str) -> None:
        assert self.opened.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_html_is_escaped_well_formed_and_has_classes() -> None:
    tags = Tags()
    tags.feed(html_fragment(AWKWARD))
    assert not tags.opened
    assert {"<i>x|y_z & 50% \\ $2^3$ {#}~</i>", "1 < 2 & more", '"note" <b>'} <= set(tags.text)
    assert {("tr", "not-at-this-scale"), ("td", "verdict within-noise"), ("p", "note")} <= set(tags.seen)
    assert not {"i", "b", "script", "style"} & {tag for tag, _ in tags.seen}


def test_latex_is_escaped_and_every_line_has_its_cells() -> None:
    text = latex(AWKWARD)
    row = next(line for line in text.splitlines() if "x" in line and line.endswith(r"\\"))
    expected = (
        r"$<$i$>$x\textbar{}y\_z \& 50\% \textbackslash{} \$2\textasciicircum{}3\$ \{\#\}\textasciitilde{}$<$/i$>$"
    )
    assert row == rf"{expected} & 5 $\pm$ 1 \% & within noise \\"
    body = text[text.index(r"\toprule", text.index("tabular")) : text.index(r"\end{tabular}")]
    lines = [line for line in body.splitlines() if line.endswith(r"\\")]
    assert [len(re.findall(r"(?<!\\)&", line)) for line in lines] == [2, 2]
    assert r"\begin{tabular}{lrl}" in text
    assert text.isascii()


def test_every_symbol_that_tables_print_has_a_latex_form() -> None:
    for name in ("demo", "table3", "table5"):
        grid = plan_grid(name, "digits")
        pretend_all(grid, lambda run: 20.0)
        write_table(grid)
        assert text_of(grid, ".tex").isascii(), name


def test_a_pipe_does_not_split_a_markdown_cell() -> None:
    assert r"x\|y_z" in markdown(AWKWARD)


def test_counts_are_printed_to_three_digits() -> None:
    numbers = (110_888_448, 7_344_896, 1_410_972_672, 999_600_000, 8352, 12)
    assert [shown_count(number) for number in numbers] == ["111M", "7.34M", "1.41B", "1B", "8.35k", "12"]
