"""What an edit makes run again, and what not: each row is a dry run over a finished project."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mirai.states import is_published, read_json, sha256
from tests.workflow.project import FIGURES, ROOT, TABLE, Plan, Project

pytestmark = pytest.mark.workflow

DEMO = "experiments/demo.yaml"
DIGITS = "experiments/scales/digits.yaml"
TRAIN_RULES = "workflow/rules/train.smk"
OWN = "results/digits/own.csv"
LADDER = "ladder: [15, 40, 80, 300, 400]"
NOTHING: Plan = {}
THE_TABLE: Plan = {"make_table": {"prefix=digits/, grid=demo"}}
BASELINE = {"label": "baseline", "arm": "baseline"}
FORK = {"label": "fork", "arm": "mirai-e", "align_layer": 4}  # its trunk is the baseline's state at epoch 15

Edit = Callable[[Project], object]


def counts(plan: Plan) -> dict[str, int]:
    return {rule: len(jobs) for rule, jobs in plan.items()}


def assert_new(plan: Plan, project: Project) -> None:
    """No planned job makes again what is there."""
    keys = {job.removeprefix("key=") for jobs in plan.values() for job in jobs if job.startswith("key=")}
    there = {path.parent.name for path in project.root.glob("results/store/*/*/.*.json") if is_published(path)}
    assert keys
    assert there
    assert not keys & there


def touch(project: Project, *patterns: str) -> None:
    """Give files the present time, which is newer than anything made."""
    for pattern in patterns:
        files = [path for path in project.root.glob(pattern) if path.is_file()]
        assert files
        for path in files:
            shutil.copyfile(path, path.with_name(f"{path.name}.new"))  # a large file is shared with other copies
            os.replace(path.with_name(f"{path.name}.new"), path)


def forget_and_touch_codes(project: Project) -> None:
    """Without its records Snakemake cannot tell by a checksum that a touched file is the old one."""
    shutil.rmtree(project.root / ".snakemake")
    touch(project, "results/store/codes/*/*")


def write_own(project: Project, *rows: dict[str, Any], **keys: Any) -> None:
    """A grid of one's own beside the demo's."""
    project.write_yaml("experiments/own.yaml", {"title": "Own", "defaults": {"epochs": 80}, **keys, "rows": list(rows)})


def with_other_package(project: Project, folder: Path, edit: Callable[[Path], object]) -> Project:
    """The project under an edited copy of the package, which stands before the installed one."""
    shutil.copytree(ROOT / "mirai", folder / "mirai", ignore=shutil.ignore_patterns("__pycache__"))
    edit(folder / "mirai")
    return Project(project.root, (("PYTHONPATH", str(folder)),))


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


# Nothing that is not a number of a result


EDITS_THAT_RERUN_NOTHING: dict[str, Edit] = {
    "no edit": lambda project: None,
    "a comment in a grid": lambda project: project.edit(DEMO, "rows:", "# a comment\nrows:"),
    "a comment in a scale": lambda project: project.edit(DIGITS, "ladder:", "# a comment\nladder:"),
    "another grid edited": lambda project: project.edit("experiments/table2.yaml", "rows:", "seeds: [7]\nrows:"),
    "another grid broken": lambda project: project.edit("experiments/table2.yaml", "rows:", "rows: 3\nrow:"),
    "another grid deleted": lambda project: (project.root / "experiments/table2.yaml").unlink(),
    "grids, scales and rules touched": lambda project: touch(project, "experiments/**/*.yaml", "workflow/rules/*"),
    "codes touched, payload and manifest": lambda project: touch(project, "results/store/codes/*/*"),
    "states touched": lambda project: touch(project, "results/store/state/*/*"),
    "a rule's shell line": lambda project: project.edit(TRAIN_RULES, "--log", "--save-every-steps 5 --log"),
    "a table rule's shell line": lambda project: project.edit("workflow/rules/report.smk", "mirai table", "true table"),
    "another container": lambda project: project.edit("Snakefile", "mirai.sif", "other.sif"),
    "a rung added to the ladder": lambda project: project.edit(DIGITS, LADDER, LADDER.replace("80", "60, 80")),
    "rungs taken from the ladder": lambda project: project.edit(DIGITS, LADDER, "ladder: []"),
    ".snakemake deleted": lambda project: shutil.rmtree(project.root / ".snakemake"),
    ".snakemake deleted, codes touched": forget_and_touch_codes,
    "logs deleted": lambda project: shutil.rmtree(project.root / "results/logs"),
    "optimisers collected": lambda project: project.run("mirai", "gc"),
}


@pytest.mark.parametrize("edit", EDITS_THAT_RERUN_NOTHING.values(), ids=EDITS_THAT_RERUN_NOTHING)
def test_what_changes_no_result_reruns_nothing(edit: Edit, project: Project) -> None:
    edit(project)
    assert project.plan(TABLE, *FIGURES) == NOTHING


def test_edited_package_code_reruns_nothing(project: Project, tmp_path: Path) -> None:
    def edit(package: Path) -> None:
        for path in package.rglob("*.py"):
            path.write_text(path.read_text() + "\n\nedited = True\n")

    assert with_other_package(project, tmp_path, edit).plan(TABLE, *FIGURES) == NOTHING


# What the table prints


@pytest.mark.parametrize(
    ("old", "new"),
    [("title: ", "title: New: "), ("fid: 6.36", "fid: 6.37"), ("source: Tables 1 and 2", "source: Table 2")],
    ids=["title", "cited value", "source"],
)
def test_a_changed_title_or_cited_value_remakes_only_the_table(old: str, new: str, project: Project) -> None:
    project.edit(DEMO, old, new.replace("New: ", "New "))
    assert project.plan(TABLE, *FIGURES) == THE_TABLE


def test_a_changed_label_remakes_what_prints_labels(project: Project) -> None:
    project.edit(DEMO, "label: LlamaGen-B", "label: ours")
    assert counts(project.plan(TABLE, *FIGURES)) == {"make_table": 1, "make_drawing": 2}


def test_all_of_the_paper_misses_what_of_it_was_deleted(project: Project) -> None:
    """Snakemake alone asks only whether what is there has grown old."""
    for path in project.root.glob("experiments/*.yaml"):
        if path.stem not in ("demo", "figure2"):
            path.unlink()
    project.write_yaml("experiments/table1.yaml", {"title": "The demo as the paper", "extends": "demo"})
    everything, deleted = "results/digits/all", ("results/digits/table1.csv", "results/digits/figure2.png")
    project.make(everything)
    assert project.plan(everything) == NOTHING
    for path in deleted:
        (project.root / path).unlink()
    assert counts(project.plan(everything)) == {"make_table": 1, "make_drawing": 1, "make_everything": 1}
    project.make(everything)
    assert all((project.root / path).exists() for path in deleted)
    assert project.plan(everything) == NOTHING


def test_a_table_follows_its_grid_there_and_back_even_without_snakemakes_records(project: Project) -> None:
    before = (project.root / TABLE).read_bytes()
    for old, new in (("LlamaGen-B", "ours"), ("ours", "LlamaGen-B")):
        project.edit(DEMO, f"label: {old}", f"label: {new}")
        shutil.rmtree(project.root / ".snakemake")
        assert project.plan(TABLE) == THE_TABLE
        project.make(TABLE)
        assert project.table()[0]["model"] == new
        assert project.plan(TABLE) == NOTHING
    assert (project.root / TABLE).read_bytes() == before


def test_an_edit_taken_back_before_anything_was_made_reruns_nothing(project: Project) -> None:
    project.edit(DEMO, "label: LlamaGen-B", "label: ours")
    assert project.plan(TABLE) == THE_TABLE
    project.edit(DEMO, "label: ours", "label: LlamaGen-B")
    assert project.plan(TABLE) == NOTHING


def test_a_table_made_by_hand_counts_as_made(project: Project) -> None:
    project.edit(DEMO, "label: LlamaGen-B", "label: ours")
    project.run("mirai", "table", "demo", "--scale", "digits")
    assert project.plan(TABLE) == NOTHING


def test_a_row_taken_out_remakes_the_table_alone(project: Project) -> None:
    lines = (project.root / DEMO).read_text().splitlines(keepends=True)
    (project.root / DEMO).write_text("".join(line for line in lines if "Mirai-I" not in line))
    assert project.plan(TABLE) == THE_TABLE


# New runs


def test_a_seed_added_plans_only_its_runs_and_the_table(project: Project) -> None:
    project.edit(DEMO, "rows:", "seeds: [0, 1]\nrows:")
    plan = project.plan(TABLE)
    assert counts(plan) == {"train_state": 8, "sample_codes": 3, "evaluate_samples": 3, "make_table": 1}
    assert_new(plan, project)


def test_a_new_grid_that_shares_a_run_plans_only_the_others_and_its_table(project: Project) -> None:
    write_own(project, BASELINE, {"label": "new", "arm": "mirai-i", "align_layer": 4})
    plan = project.plan(TABLE, OWN)
    assert counts(plan) == {"train_state": 3, "sample_codes": 1, "evaluate_samples": 1, "make_table": 1}
    assert plan["make_table"] == {"prefix=digits/, grid=own"}
    assert_new(plan, project)


def test_a_fork_from_a_trunk_that_is_there_restores_nothing(project: Project) -> None:
    write_own(project, BASELINE, FORK)
    forget_and_touch_codes(project)
    plan = project.plan(OWN)
    assert counts(plan) == {"train_state": 2, "sample_codes": 1, "evaluate_samples": 1, "make_table": 1}
    assert_new(plan, project)


def test_a_learning_rate_changed_in_one_grid_plans_only_its_runs(project: Project) -> None:
    write_own(project, BASELINE)
    project.make(OWN)
    write_own(project, BASELINE, defaults={"epochs": 80, "learning_rate": 0.001})
    plan = project.plan(TABLE, OWN)
    assert counts(plan) == {"train_state": 3, "sample_codes": 1, "evaluate_samples": 1, "make_table": 1}
    assert plan["make_table"] == {"prefix=digits/, grid=own"}
    assert_new(plan, project)


def test_another_guidance_samples_again_from_the_trained_states(project: Project) -> None:
    project.edit(DEMO, "defaults: {epochs: 80}", "defaults: {epochs: 80, guidance: 3.0}")
    plan = project.plan(TABLE)
    assert counts(plan) == {"sample_codes": 3, "evaluate_samples": 3, "make_table": 1}
    assert_new(plan, project)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("metrics", {"evaluate_samples": 3, "make_table": 1}),
        ("state", {"train_state": 8, "sample_codes": 3, "evaluate_samples": 3, "make_table": 1}),
    ],
)
def test_a_raised_revision_makes_its_stage_and_what_follows_again(
    kind: str, expected: dict[str, int], project: Project, tmp_path: Path
) -> None:
    raised = with_other_package(
        project,
        tmp_path,
        lambda package: replace(package / "experiments/revisions.py", f'"{kind}": 1,', f'"{kind}": 2,'),
    )
    plan = raised.plan(TABLE)
    assert counts(plan) == expected
    assert_new(plan, project)


# Results that are partly gone


def test_a_clone_with_only_metrics_recipes_and_table_plans_at_most_the_table(project: Project) -> None:
    shutil.rmtree(project.root / ".snakemake")
    before = (project.root / TABLE).read_bytes()
    for path in project.root.glob("results/**/*"):
        if path.is_file() and path.name not in ("metrics.json", "recipe.json", "demo.csv"):
            path.unlink()
    touch(project, "results/store/metrics/*/metrics.json")  # as a checkout leaves them, in any order
    assert project.plan(TABLE) in (NOTHING, THE_TABLE)
    project.make(TABLE)
    assert (project.root / TABLE).read_bytes() == before
    assert project.plan(TABLE) == NOTHING


def test_manifests_deleted_by_hand_are_published_again_without_the_work(project: Project) -> None:
    metrics = project.metrics(0)
    state = f"results/store/state/{metrics.samples.state.key}/weights.json"
    scores = f"results/store/metrics/{metrics.key}/metrics.json"
    before = project.files()
    for path in (state, scores, TABLE):
        (project.root / path).unlink()
    wanted = {
        "train_state": {f"key={metrics.samples.state.key}"},
        "evaluate_samples": {f"key={metrics.key}"},
        **THE_TABLE,
    }
    assert project.plan(TABLE, state) == wanted
    project.make(TABLE, state)
    after = project.files()
    assert {path: checksum for path, (_, checksum) in after.items()} == {
        path: checksum for path, (_, checksum) in before.items()
    }
    payloads = [path for path in before if path.endswith((".safetensors", ".npz", ".jsonl"))]
    assert all(after[path] == before[path] for path in payloads)
    for kind, key in (("state", metrics.samples.state.key), ("metrics", metrics.key)):
        assert f"{key} is there already" in (project.root / f"results/logs/{kind}/{key}.log").read_text()


def test_after_collection_a_fork_restores_its_trunk_and_nothing_else(project: Project) -> None:
    trunk = project.metrics(2).samples.state.at(15).key
    trunk_folder = project.stored("state")[trunk]
    resume, weights = (read_json(trunk_folder / name) for name in ("resume.json", "weights.json"))
    project.run("mirai", "gc")
    assert not list(project.root.glob("results/store/state/*/*resume*"))
    before = project.files()

    write_own(project, BASELINE, FORK)
    plan = project.plan(TABLE, OWN)
    assert plan["restore_state"] == {f"key={trunk}"}
    assert counts(plan) == {
        "restore_state": 1,
        "train_state": 2,
        "sample_codes": 1,
        "evaluate_samples": 1,
        "make_table": 1,
    }
    assert_new({rule: jobs for rule, jobs in plan.items() if rule != "restore_state"}, project)

    project.make(TABLE, OWN)
    restored = read_json(trunk_folder / "resume.json")
    assert restored["step"] == resume["step"] == 15
    assert restored["payloads"] == resume["payloads"]
    assert sha256(trunk_folder / "resume.safetensors") == resume["payloads"]["state"]["sha256"]
    assert read_json(trunk_folder / "weights.json") == weights
    after = project.files()
    rewritten = ("weights.json", "log.jsonl", "log.txt", "lock")
    allowed = {str((trunk_folder / name).relative_to(project.root)) for name in rewritten}
    assert {path for path in before if after[path] != before[path]} <= allowed
    fork = project.metrics(1, OWN).samples.state
    assert read_json(project.stored("state")[fork.at(40).key] / "weights.json")["parent"] == trunk
    assert read_json(project.stored("state")[fork.at(40).key] / "weights.json")["started_at_step"] == 15
    assert project.plan(TABLE, OWN) == NOTHING
