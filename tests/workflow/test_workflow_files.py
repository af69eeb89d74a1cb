"""Planning: the workflow's files are clean, every grid plans at every scale, and mistakes are told before any job."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest

from mirai.experiments import plan as planning
from mirai.states import publish
from tests.workflow.project import ROOT, TABLE, Plan, Project

pytestmark = pytest.mark.workflow

SCALES = sorted(path.stem for path in (ROOT / "experiments/scales").glob("*.yaml"))
RULES = sorted((ROOT / "workflow/rules").glob("*.smk"))
PAPER_PLACES = {
    "data.imagenet",
    "weights.VIRTUAL_imagenet256_labeled",
    "weights.inception",
    "weights.vit_base_patch14_dinov2.lvd142m",
    "weights.vq_ds16_c2i",
}
ONCE = ("train_tokenizer", "extract_codes", "train_encoder", "train_features", "make_reference", "make_table")


def counts(plan: Plan) -> dict[str, int]:
    return {rule: len(jobs) for rule, jobs in plan.items()}


def named_places(sentence: str) -> set[str]:
    return set(re.findall(r"\b((?:data|weights)\.\S+) \(", sentence))


def assert_untouched(project: Project) -> None:
    """No job ran, nothing was written, and the folder is not locked."""
    assert not (project.root / "results").exists()
    assert not list(project.root.glob(".snakemake/locks/*"))


# The files


def test_snakemakes_linter_finds_nothing(empty: Project) -> None:
    empty.run("snakemake", "--lint")


def test_snakefmt_would_change_nothing(empty: Project) -> None:
    empty.run("snakefmt", "--check", "Snakefile", "workflow")


def test_the_dag_is_static() -> None:
    for path in (ROOT / "Snakefile", *RULES):
        assert not re.search(r"^checkpoint\b|\bcheckpoints\.|\bdynamic\(", path.read_text(), re.MULTILINE), path


def test_every_rule_runs_a_command_of_mirai(empty: Project) -> None:
    text = "".join(path.read_text() for path in RULES)
    commands = re.findall(r"shell:\s*\"mirai (\w+) ", text)
    assert len(commands) == len(re.findall(r"^rule ", text, re.MULTILINE)) >= 12
    known = empty.run("mirai", "--help")
    for command in commands:
        assert re.search(rf"^ +{command}\s", known, re.MULTILINE), command


# Plans


def test_costs_are_summed_per_scale_and_need_no_training(empty: Project) -> None:
    assert empty.plan("results/costs.csv", "results/demo/costs.csv") == {"sum_costs": {"prefix=", "prefix=demo/"}}


def test_one_call_plans_a_table_at_two_scales_with_shared_trunks(empty: Project) -> None:
    plan = empty.plan("results/table2.csv", "results/demo/table2.csv")
    assert plan["make_table"] == {"prefix=, grid=table2", "prefix=demo/, grid=table2"}
    # Ladders cut 80 epochs into 5 and 3; at either scale 5 runs start at epoch 0, and 5 Mirai-E runs leave the
    # baseline at epoch 15, with a cut at 40 of their own or of the ladder.
    states = 5 * 5 + 5 * 3 + 5 * 3 + 5 * 2
    assert counts(plan) == dict.fromkeys(ONCE, 2) | {
        "train_state": states,
        "sample_codes": 20,
        "evaluate_samples": 20,
    }


@pytest.mark.parametrize("scale", SCALES)
def test_all_that_a_scale_can_have_is_planned_in_one_dry_run(
    scale: str, clone: Project, monkeypatch: pytest.MonkeyPatch, fresh_plan: None
) -> None:
    if scale == "folder":
        scale = "folder-cats"
        write_images(clone.root / "cats", 700)
        clone.write_yaml("config/site.yaml", {"data": {"cats": "cats"}})
    prefix = "" if scale == "imagenet256" else f"{scale}/"
    monkeypatch.chdir(clone.root)
    names = {*planning.grids_of_paper(scale), "demo", "demo_samples", "demo_token_maps"}
    suffixes = {name: planning.suffixes(planning.plan_grid(name, scale)) for name in names}
    plan = clone.plan(*(f"results/{prefix}{name}{suffix}" for name in names for suffix in suffixes[name]))
    for rule, made in (("make_table", [".csv"]), ("make_plot", [".csv", ".png"]), ("make_drawing", [".png"])):
        grids = {name for name in names if suffixes[name] == made or (rule, made) == ("make_table", suffixes[name][:1])}
        assert plan.get(rule, set()) == {f"prefix={prefix}, grid={grid}" for grid in grids}, rule
    assert len(names) >= 10
    assert not (clone.root / "results").exists()


def test_the_grids_of_the_docs_are_planned_with_their_figures(clone: Project) -> None:
    text = (ROOT / "docs/grids.md").read_text()
    examples = re.findall(r"```yaml\n(.*?# experiments/(\w+)\.yaml\n.*?)```", text, re.DOTALL)
    for example, name in examples:
        (clone.root / f"experiments/{name}.yaml").write_text(example)
    drawn = {"longer"}
    tables = {name for _, name in examples} - drawn
    assert len(tables) >= 2
    plan = clone.plan(
        *(f"results/digits/{name}.csv" for name in tables | drawn), "results/digits/longer.png", "results/my_grid.csv"
    )
    assert plan["make_table"] == {f"prefix=digits/, grid={name}" for name in tables} | {"prefix=, grid=my_grid"}
    assert plan["make_drawing"] == {f"prefix=digits/, grid={name}" for name in drawn}


def test_figures_are_planned_without_what_they_do_not_show(empty: Project) -> None:
    plan = empty.plan("results/digits/demo_token_maps.png")
    assert plan["make_drawing"] == {"prefix=digits/, grid=demo_token_maps"}
    assert not {"sample_codes", "evaluate_samples", "make_reference"} & set(plan)


def test_planning_imports_no_torch(empty: Project) -> None:
    command = (sys.executable, "-X", "importtime", "-m", "snakemake", "-n", "results/table2.csv", TABLE)
    done = empty.command(*command)
    assert done.returncode == 0
    imported = {line.rsplit("|", 1)[1].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "mirai.experiments.plan" in imported
    assert not {name for name in imported if name.split(".")[0] in ("torch", "torchvision", "timm", "sklearn")}


# Mistakes


@pytest.mark.parametrize(
    ("target", "sentence"),
    [
        ("results/digits/nope.csv", "there is no grid 'nope': experiments/nope.yaml does not exist; grids are demo,"),
        ("results/nope.csv", "there is no grid 'nope'"),
        ("results/nope/demo.csv", "there is no scale 'nope'; scales are demo, digits, folder"),
        ("results/digits/nope.png", "there is no grid 'nope'"),
        ("results/digits/table2.png", "experiments/table2.yaml has no `figure`, so table2 is a table only"),
        ("results/folder/demo.csv", "the folder scale needs a name for your images"),
        ("results/digits/index.csv", "experiments/index.yaml: 'index' cannot name a grid"),
        (
            "results/store/state/0123456789abcdef/weights.json",
            "no grid in experiments/ and no recipe in results/store/",
        ),
    ],
)
def test_a_target_that_cannot_be_planned_is_refused(target: str, sentence: str, empty: Project) -> None:
    assert empty.refused("snakemake", "-n", target).startswith(sentence)
    assert_untouched(empty)


@pytest.mark.parametrize(
    ("file", "old", "new", "sentence"),
    [
        (
            "demo.yaml",
            "arm: mirai-e",
            "amr: mirai-e",
            "experiments/demo.yaml line N: unknown key 'rows.2.amr'; did you mean 'arm'?",
        ),
        ("demo.yaml", "epochs: 80", "epochs: -1", "experiments/demo.yaml line N: key 'defaults.epochs' has value -1:"),
        ("demo.yaml", "rows:", "rows: [", "experiments/demo.yaml line N: "),
        (
            "scales/digits.yaml",
            "learning_rate: 5.0e-3",
            "learning_rate: 5e-3",
            "experiments/scales/digits.yaml line N: key 'training.learning_rate' has value '5e-3': YAML reads 5e-3 as text",
        ),
    ],
)
def test_a_mistake_in_a_file_is_one_sentence(file: str, old: str, new: str, sentence: str, clone: Project) -> None:
    clone.edit(f"experiments/{file}", old, new)
    told = clone.refused("snakemake", TABLE, "--cores", "1")
    assert re.sub(r"line \d+", "line N", told).startswith(sentence)
    assert_untouched(clone)


def test_ranks_that_do_not_divide_the_batch_are_refused_when_planning(clone: Project) -> None:
    clone.write_yaml("config/site.yaml", {"ranks": 3})
    assert clone.refused("snakemake", "-n", TABLE) == (
        "config/site.yaml: ranks 3 does not divide the global batch of 16 at scale 'digits'"
    )


# What a machine must have


def write_images(folder: Path, count: int) -> None:
    """Files that look like images from outside."""
    for index in range(count):
        path = folder / f"class{index % 2}" / f"{index:04d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def write_place(project: Project, **content: Any) -> None:
    project.write_yaml("config/site.yaml", content)


def test_the_papers_scale_without_its_places_is_refused_once_for_all(clone: Project) -> None:
    sentence = clone.refused("snakemake", "results/table2.csv", "--cores", "1")
    assert named_places(sentence) == PAPER_PLACES
    assert sentence.startswith(
        "config/site.yaml must say where these are, before any job starts: data.imagenet (not given)"
    )
    assert sentence.endswith("config/site.example.yaml shows how")
    assert_untouched(clone)
    assert clone.plan("results/table2.csv"), "the folder can be used at once"


def test_only_what_the_rows_asked_for_need_is_missed(clone: Project) -> None:
    clone.write_yaml(
        "experiments/own.yaml",
        {
            "title": "Own",
            "rows": [
                {"label": "dinov3", "arm": "mirai-i", "encoder": "dinov3"},
                {"label": "large", "arm": "mirai-i", "size": "L"},
            ],
        },
    )
    encoders = {place for place in PAPER_PLACES if "dinov2" in place}
    sentence = clone.refused("snakemake", "results/own.csv", "--cores", "1")
    assert named_places(sentence) == PAPER_PLACES - encoders | {
        "weights.vit_base_patch16_dinov3.lvd1689m",
        "weights.vit_large_patch14_dinov2.lvd142m",
    }


def test_places_that_are_given_but_not_there_are_named_with_their_path(clone: Project) -> None:
    (clone.root / "here").mkdir()
    places = {"inception": "here", "vq_ds16_c2i": "elsewhere/vq.pt", "VIRTUAL_imagenet256_labeled": "here"}
    write_place(clone, data={"imagenet": "here"}, weights=places)
    sentence = clone.refused("snakemake", "results/table2.csv", "--cores", "1")
    assert named_places(sentence) == {"weights.vq_ds16_c2i", "weights.vit_base_patch14_dinov2.lvd142m"}
    assert "weights.vq_ds16_c2i (elsewhere/vq.pt does not exist)" in sentence
    assert_untouched(clone)


def test_what_is_made_already_needs_its_places_no_more(clone: Project) -> None:
    plan = clone.plan("results/table2.csv")
    for kind, rule in (("tokenizer", "train_tokenizer"), ("codes", "extract_codes")):
        (job,) = plan[rule]
        publish(clone.root / f"results/store/{kind}/{job.removeprefix('key=')}/{kind}.json", {})
    sentence = clone.refused("snakemake", "results/table2.csv", "--cores", "1")
    assert named_places(sentence) == PAPER_PLACES - {"data.imagenet", "weights.vq_ds16_c2i"}


def test_an_image_folder_of_ones_own_must_be_given(clone: Project) -> None:
    assert "data.cats" in clone.refused("snakemake", "results/folder-cats/demo.csv", "--cores", "1")
    assert "data.cats" in clone.refused("snakemake", "results/folder-cats/demo_samples.png", "--cores", "1")
    assert_untouched(clone)
