"""`mirai show` and `mirai diff`: one stage told in full, two compared field by field."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mirai.cli import main
from mirai.experiments import paths, plan
from mirai.experiments.inspection import differences, fields
from mirai.experiments.plan import row_metrics
from mirai.experiments.stages import MetricsStage
from mirai.states import publish, write_json

WriteGrid = Callable[..., str]


@pytest.fixture
def metrics(write_grid: WriteGrid) -> list[MetricsStage]:
    """Of a baseline, a Mirai-E run and the same with a pretrained teacher, planned at the digits scale."""
    for path in paths.EXPERIMENTS.glob("*.yaml"):  # only the grid below is planned, at every scale
        path.unlink()
    rows: list[dict[str, object]] = [{}, {"arm": "mirai-e"}, {"arm": "mirai-e", "ema": "pretrained"}]
    grid = plan.plan_grid(write_grid(*rows), "digits")
    return [row_metrics(row)[0] for row in grid.rows]


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main([*arguments]) == 0
    return capsys.readouterr().out


def test_a_state_is_told_by_recipe_timeline_ancestors_and_rows(
    metrics: list[MetricsStage], capsys: pytest.CaptureFixture[str]
) -> None:
    state = metrics[1].samples.state
    text = said(capsys, "show", state.key[:8])
    assert text.startswith(f"state {state.key}, scale digits, not made\n")
    assert "model.width " in text
    assert "epochs 1-15: next-token 15\n" in text
    assert "epochs 16-40: mirai-e layer 8 K=3 λ=2 25\n" in text
    ancestors = [line.split() for line in text.split("ancestors\n")[1].split("\n\n")[0].splitlines()]
    assert [(line[0], line[2]) for line in ancestors] == [(state.at(40).key, "40,"), (state.at(15).key, "15,")]
    assert "own: row 1, seed 0" in text
    assert "checksums" not in text


def test_a_scale_without_a_size_b_is_compared_with_its_first(
    project: Path, write_grid: WriteGrid, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in paths.EXPERIMENTS.glob("*.yaml"):
        path.unlink()
    scale = paths.SCALES / "digits.yaml"
    scale.write_text(scale.read_text().replace("  B: {", "  S: {"))
    state = row_metrics(plan.plan_grid(write_grid({"size": "S"}, {"size": "S", "epochs": 20}), "digits").rows[1])[0]
    assert "difference from scale digits\n  in nothing\n" in said(capsys, "show", state.samples.state.key)


def test_a_state_differs_from_the_scales_baseline_in_what_its_row_sets(
    metrics: list[MetricsStage], capsys: pytest.CaptureFixture[str]
) -> None:
    baseline, mirai_e, _ = (one.samples.state.key for one in metrics)
    assert "difference from scale digits\n  in nothing\n" in said(capsys, "show", baseline)
    told = said(capsys, "show", mirai_e).split("difference from scale digits\n")[1].split("\n\n")[0]
    names = [line.split()[0] for line in told.splitlines()[1:]]
    assert "timeline[0].epochs" in names
    assert "timeline[1].foresight.offsets" in names
    assert not [name for name in names if not name.startswith("timeline")]


def test_a_pretrained_teacher_is_named(metrics: list[MetricsStage], capsys: pytest.CaptureFixture[str]) -> None:
    state = metrics[2].samples.state
    teacher = state.teacher_stage(state.timeline[0])
    assert teacher is not None
    assert f"teacher: the EMA of {teacher.key} after {teacher.epoch} epochs" in said(capsys, "show", state.key)


def test_what_the_store_holds_of_a_state_is_shown(
    metrics: list[MetricsStage], capsys: pytest.CaptureFixture[str]
) -> None:
    stage = metrics[0]
    state = stage.samples.state
    for key in (stage.key, state.key):
        plan.freeze(plan.lookup(key))
    payload = paths.folder("state", state.key) / "weights.safetensors"
    payload.write_bytes(b"weights")
    publish(paths.manifest("state", state.key), {}, {"weights": payload})
    values = dict.fromkeys(("fid", "sfid", "inception_score", "precision", "recall"), 4.25)
    write_json(paths.manifest("metrics", stage.key), {**values, "num_samples": 2000, "payloads": {}})
    text = said(capsys, "show", state.key)
    assert text.startswith(f"state {state.key}, scale digits, done\n")
    assert "weights.safetensors  7 bytes  sha256 " in text
    assert f"{stage.key}  guidance 1.5, raw weights, 2000 samples  fid 4.25" in text
    assert "fid" not in said(capsys, "show", metrics[1].samples.state.key), "another state's metrics are not its own"


def test_other_stages_are_shown_too(metrics: list[MetricsStage], capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, "show", metrics[0].key)
    assert text.startswith(f"metrics {metrics[0].key}")
    assert "samples.sampling.guidance " in text
    assert "own: row 0, seed 0" in text


def test_a_difference_is_one_line_per_field(metrics: list[MetricsStage], capsys: pytest.CaptureFixture[str]) -> None:
    first, second = metrics[0].samples.state.at(15), metrics[0].samples.state.at(40)
    lines = said(capsys, "diff", first.key, second.key).splitlines()
    assert lines[0].split() == [first.key, second.key]
    assert [line.split() for line in lines[1:]] == [["timeline[0].epochs", "15", "40"]]


def test_what_only_one_recipe_has_is_shown_with_a_dash(metrics: list[MetricsStage]) -> None:
    baseline, mirai_e = (one.samples.state for one in metrics[:2])
    rows = {key: (mine, other) for key, mine, other in differences(baseline, mirai_e)}
    assert rows["timeline[2].epochs"] == ("-", "40")
    assert rows["timeline[0].epochs"] == ("80", "15")


def test_a_stage_does_not_differ_from_itself(metrics: list[MetricsStage], capsys: pytest.CaptureFixture[str]) -> None:
    key = metrics[0].key
    assert said(capsys, "diff", key, key[:10]) == "no field differs: it is one stage\n"


def test_fields_keep_plain_lists_whole_and_number_recipes(metrics: list[MetricsStage]) -> None:
    told = fields(metrics[1].samples.state)
    assert told["training.betas"] == "[0.9, 0.95]"
    assert told["timeline[1].foresight.offsets"] == "[[0, 0], [0, 1], [1, 0]]"


@pytest.mark.parametrize("command", [["show", "zz"], ["diff", "zz", "zz"]])
def test_an_unknown_key_is_one_sentence(
    command: list[str], metrics: list[MetricsStage], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command) == 2
    assert capsys.readouterr().err.startswith("mirai: no key begins with 'zz'")


def test_a_beginning_of_several_keys_is_refused(
    metrics: list[MetricsStage], capsys: pytest.CaptureFixture[str]
) -> None:
    by_first = {one.key[0]: one for one in (*metrics, *(one.samples for one in metrics))}
    first = next(iter(by_first))
    assert main(["show", first]) == 2
    assert f"keys begin with '{first}'" in capsys.readouterr().err


def test_stages_of_two_kinds_are_not_compared(metrics: list[MetricsStage], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diff", metrics[0].key, metrics[0].samples.key]) == 2
    assert "compare two of one kind" in capsys.readouterr().err
