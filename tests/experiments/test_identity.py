"""What a key is made of: values that decide a result, and nothing of the machine, the date, or the wording."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mirai.experiments import plan, stages
from mirai.experiments.grid import load_grid
from mirai.experiments.grid_files import grid_names
from mirai.experiments.recipe import Model, Schedule
from mirai.experiments.scale import load_scale
from mirai.experiments.stages import REVISIONS, STAGES, Stage, hashed, metrics_stage
from mirai.states import read_json
from tests.experiments.golden_keys import KEYS, current_keys, stages_behind


def behind(grid: str, scale: str, row: int = 0) -> dict[str, Stage]:
    """All stages behind a row, trunks included."""
    plan.plan_grid(grid, scale)
    return stages_behind(metrics_stage(load_grid(grid, scale).rows[row].runs[0]))


def keys_of(found: dict[str, Stage]) -> dict[str, set[str]]:
    """Keys by kind."""
    return {kind: {stage.key for stage in found.values() if stage.kind == kind} for kind in STAGES}


def test_no_key_of_the_paper_has_changed(project: Path) -> None:
    now, golden = current_keys(), read_json(KEYS)
    renamed = [
        f"{row}: {kind} is {now[row].get(kind)}, was {key}"
        for row, kinds in golden.items()
        for kind, key in kinds.items()
        if now[row].get(kind) != key
    ]
    assert not renamed, (
        f"{len(renamed)} keys changed, first {renamed[0]}. Finished results would be made again under new names. "
        "A new field that keeps the old behaviour goes into ADDED (mirai/experiments/revisions.py); where numbers really "
        "change, raise that stage's REVISION and run `python -m tests.experiments.golden_keys`."
    )


def test_the_golden_list_holds_all_kinds_of_stages() -> None:
    rows = read_json(KEYS).values()
    assert {kind for row in rows for kind in row} == set(STAGES)
    assert len(rows) == 3 + 10 + 5


# What is made anew when the numbers of one kind of stage change: itself and whatever reads it.
DEPENDENTS = {
    "tokenizer": {"tokenizer", "codes", "state", "samples", "metrics"},
    "codes": {"codes", "state", "samples", "metrics"},
    "encoder": {"encoder", "state", "samples", "metrics"},
    "features": {"features", "reference", "metrics"},
    "reference": {"reference", "metrics"},
    "state": {"state", "samples", "metrics"},
    "samples": {"samples", "metrics"},
    "metrics": {"metrics"},
}


@pytest.mark.parametrize("kind", DEPENDENTS)
def test_raising_a_revision_renames_its_stages_and_their_dependents_alone(
    kind: str, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = behind("demo", "demo", row=1)
    before = keys_of(found)
    monkeypatch.setitem(REVISIONS, kind, 99)
    after = keys_of(found)
    assert {kind for kind in STAGES if not before[kind] & after[kind]} == DEPENDENTS[kind]
    assert {kind for kind in STAGES if before[kind] == after[kind]} == set(STAGES) - DEPENDENTS[kind]


def test_a_new_encoder_revision_leaves_trunks_of_plain_training_alone(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = behind("demo", "demo", row=0)
    before = keys_of(found)
    monkeypatch.setitem(REVISIONS, "encoder", 99)
    assert keys_of(found) == before


def test_an_added_field_at_its_old_value_leaves_keys_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    old = Schedule(kind="constant", values=(2.0,))
    monkeypatch.setitem(stages.ADDED, "Schedule.warmup_epochs", 0)
    assert hashed(old) == {"kind": "constant", "values": (2.0,)}
    monkeypatch.setitem(stages.ADDED, "Schedule.warmup_epochs", 15)
    assert hashed(old) == {"kind": "constant", "values": (2.0,), "warmup_epochs": 0}


def test_an_added_field_counts_for_its_own_type_only(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model(num_layers=2, num_heads=2, width=8)
    monkeypatch.setitem(stages.ADDED, "EncoderTraining.width", 8)
    assert hashed(model)["width"] == 8


def test_registering_a_field_as_added_touches_keys_at_that_value_only(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = load_grid("demo", "demo").rows[0].runs[0]
    other = run.model_copy(update={"model": run.model.model_copy(update={"class_dropout": 0.3})})
    before = metrics_stage(run).key, metrics_stage(other).key
    monkeypatch.setitem(stages.ADDED, "Model.class_dropout", 0.1)
    assert metrics_stage(run).key != before[0], "this field was hashed until now: it must not be called added"
    assert metrics_stage(other).key == before[1]


def test_a_key_is_16_hex_digits_and_a_pure_function_of_the_recipe(project: Path) -> None:
    for stage in behind("demo", "digits", row=1).values():
        assert len(stage.key) == 16
        assert int(stage.key, 16) >= 0
        twin = type(stage).model_validate_json(stage.model_dump_json())
        assert (twin, twin.key) == (stage, stage.key)


def test_stages_of_different_kinds_never_share_a_key(project: Path) -> None:
    for scale in ("demo", "digits", "imagenet256"):
        plan.plan_grid("table2", scale)
    kinds: dict[str, set[str]] = {}
    for planned in plan._planned.values():
        kinds.setdefault(planned.stage.key, set()).add(planned.stage.kind)
    assert all(len(kind) == 1 for kind in kinds.values())


def strings(value: Any) -> list[str]:
    """All texts inside a JSON value."""
    if isinstance(value, dict):
        return [text for key, item in value.items() for text in (key, *strings(item))]
    if isinstance(value, list | tuple):
        return [text for item in value for text in strings(item)]
    return [value] if isinstance(value, str) else []


def test_no_key_holds_a_path(project: Path) -> None:
    for scale in ("imagenet256", "demo", "folder-cats"):
        for grid in ("demo", "table2"):
            plan.plan_grid(grid, scale)
    texts = {text for planned in plan._planned.values() for text in strings(planned.stage.content())}
    assert texts
    assert not [text for text in texts if "/" in text or "\\" in text or text.startswith((".", "~"))]


def test_where_data_and_weights_lie_is_in_no_key(project: Path) -> None:
    before = keys_of(behind("demo", "imagenet256", row=1))
    (project / "config").mkdir()
    (project / "config/site.yaml").write_text(
        "data: {imagenet: /elsewhere}\nweights: {vq_ds16_c2i: /elsewhere/vq.pt}\nranks: 8\nsave_minutes: 1\n"
    )
    plan.plan_grid.cache_clear()
    plan._planned.clear()
    assert keys_of(behind("demo", "imagenet256", row=1)) == before


def edited(project: Path, scale: str, *changes: tuple[str, str]) -> None:
    """Edit a scale file by hand."""
    path = project / f"experiments/scales/{scale}.yaml"
    text = path.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)
    load_scale.cache_clear()


def metrics_keys(grid: str, scale: str) -> list[str]:
    return [metrics_stage(run).key for row in load_grid(grid, scale).rows for run in row.runs]


def test_what_a_table_prints_is_in_no_key(project: Path) -> None:
    before = metrics_keys("demo", "imagenet256")
    edited(project, "imagenet256", ("name: VQ-16", "name: V"), ("DINOv2-B", "D"), ("name: Inception (ADM)", "name: I"))
    path = project / "experiments/demo.yaml"
    path.write_text(path.read_text().replace("LlamaGen-B", "another label").replace("6.36", "7.77"))
    assert metrics_keys("demo", "imagenet256") == before


def test_comments_and_the_order_of_keys_are_in_no_key(project: Path) -> None:
    before = metrics_keys("demo", "imagenet256")
    edited(
        project,
        "imagenet256",
        ("  source: folder\n  resolution: 256\n", "  # a comment\n  resolution: 256\n  source: folder\n"),
    )
    assert metrics_keys("demo", "imagenet256") == before


def test_numerics_ladder_and_minutes_are_in_no_key(project: Path) -> None:
    before = metrics_keys("demo", "imagenet256")
    edited(
        project, "imagenet256", ("device: cuda, attention: flash", "device: cpu"), ("ladder: [10, 15,", "ladder: [7,")
    )
    assert metrics_keys("demo", "imagenet256") == before


def test_two_image_folders_share_nothing_but_what_knows_no_data(project: Path) -> None:
    cats, dogs = keys_of(behind("demo", "folder-cats", 1)), keys_of(behind("demo", "folder-dogs", 1))
    assert not [kind for kind in STAGES if cats[kind] & dogs[kind]]


def test_a_tables_key_follows_its_labels_and_cited_values_but_no_comment(project: Path) -> None:
    def table_key() -> str:
        plan.plan_grid.cache_clear()
        return plan.table_key("demo", "demo")

    path = project / "experiments/demo.yaml"
    text, before = path.read_text(), table_key()
    path.write_text("# a comment\n" + text)
    assert table_key() == before
    for old, new in (("LlamaGen-B", "other"), ("6.36", "7.77"), ("epochs: 80", "epochs: 40")):
        path.write_text(text.replace(old, new))
        assert table_key() != before


def test_every_planned_stage_can_be_written_as_json_and_read_back(project: Path) -> None:
    for grid in grid_names():
        plan.plan_grid(grid, "imagenet256")
    for planned in plan._planned.values():
        text = json.dumps(planned.stage.model_dump(mode="json"))
        assert STAGES[planned.stage.kind].model_validate_json(text) == planned.stage


def test_a_row_cites_its_own_runs(write_grid: Callable[..., str]) -> None:
    grid = load_grid(write_grid({}, {"arm": "mirai-i"}, seeds=[0, 1]), "demo")
    keys = [metrics_stage(run).key for row in grid.rows for run in row.runs]
    assert len(set(keys)) == 4
    assert [metrics_stage(run).key for run in grid.rows[1].baselines] == keys[:2]
