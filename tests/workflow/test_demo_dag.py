"""The whole DAG at the digits scale: one command from nothing to table, pictures and maps, and what they hold."""

from __future__ import annotations

import json
import math
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from mirai.experiments.stages import STAGES, EncoderStage
from mirai.states import read_json, sealed, sha256
from tests.workflow.project import FIGURES, TABLE, Project

pytestmark = pytest.mark.workflow

METRICS = ("fid", "sfid", "inception_score", "precision", "recall")
LABELS = ["LlamaGen-B", "+ Mirai-I", "+ Mirai-E"]
MARKDOWN = TABLE.replace(".csv", ".md")


def test_the_table_has_a_row_per_arm_with_finite_values(finished: Project) -> None:
    rows = finished.table()
    assert [row["model"] for row in rows] == LABELS
    for row in rows:
        values = {metric: float(row[metric]) for metric in METRICS}
        assert all(math.isfinite(value) for value in values.values())
        assert all(float(row[f"{metric}_sd_over_halves"]) >= 0 for metric in METRICS)
        assert values["fid"] > 0
        assert values["inception_score"] >= 1
        assert 0 <= values["precision"] <= 1
        assert 0 <= values["recall"] <= 1
        assert (row["epochs"], row["samples"]) == ("80", "2000")


def test_changes_are_relative_to_the_own_baseline_ours_and_the_papers(finished: Project) -> None:
    baseline, *others = finished.table()
    for metric in METRICS:
        assert baseline[f"{metric}_change_percent"] == ""
        for row in others:
            change = 100 * (float(row[metric]) / float(baseline[metric]) - 1)
            assert float(row[f"{metric}_change_percent"]) == pytest.approx(change, abs=0.1)
    assert [row["paper_fid"] for row in (baseline, *others)] == ["6.36", "4.77", "5.22"]
    assert float(others[0]["paper_fid_change_percent"]) == pytest.approx(100 * (4.77 / 6.36 - 1), abs=1e-3)
    assert not [column for column in baseline if "minus_paper" in column], "another scale than the paper's"


def test_the_table_names_the_states_behind_it(finished: Project) -> None:
    states = [row["states"] for row in finished.table()]
    assert len(set(states)) == 3
    for key in states:
        assert read_json(finished.stored("state")[key] / "weights.json")["epoch"] == 80


def test_the_markdown_table_shows_the_same_rows(finished: Project) -> None:
    lines = [line for line in (finished.root / MARKDOWN).read_text().splitlines() if line.startswith("| ")]
    shown = {line.split("|")[1].strip(): line for line in lines[1:]}
    assert list(shown) == LABELS
    for row in finished.table():
        assert f"{float(row['fid']):.2f}" in shown[row["model"]]


@pytest.mark.parametrize("figure", FIGURES)
def test_figures_are_pictures_of_something(figure: str, finished: Project) -> None:
    with Image.open(finished.root / figure) as image:
        pixels = np.asarray(image.convert("L"))
    assert min(pixels.shape) > 200
    assert len(np.unique(pixels)) > 50
    assert pixels.std() > 20


def test_every_entry_of_the_store_has_a_recipe_whose_key_is_its_name(finished: Project) -> None:
    for kind in STAGES:
        assert finished.stored(kind), kind
        for key, folder in finished.stored(kind).items():
            frozen = read_json(folder / "recipe.json")
            assert (frozen["kind"], frozen["key"], frozen["scale"]) == (kind, key, "digits")
            assert finished.stage(kind, key).key == key


def test_every_payload_is_the_one_its_manifest_names(finished: Project) -> None:
    manifests = [path for path in finished.root.glob("results/store/*/*/*.json") if path.name != "recipe.json"]
    payloads = {
        path.parent / entry["file"]: entry["sha256"]
        for path in manifests
        for entry in read_json(path).get("payloads", {}).values()
    }
    assert len(payloads) > 20
    for path, checksum in payloads.items():
        assert sha256(path) == checksum, path


def test_arms_share_the_trunk_they_have_in_common(finished: Project) -> None:
    frozen = {key: read_json(folder / "recipe.json") for key, folder in finished.stored("state").items()}
    epochs = sorted(sum(phase["epochs"] for phase in one["recipe"]["timeline"]) for one in frozen.values())
    assert epochs == [15, 15, 40, 40, 40, 80, 80, 80], "baseline and Mirai-E grow out of one state at epoch 15"


def test_every_job_left_a_log_and_its_seconds(finished: Project) -> None:
    logs = finished.root / "results/logs"
    for kind in STAGES:
        for key in finished.stored(kind):
            assert (logs / kind / f"{key}.log").exists()
            assert float((logs / kind / f"{key}.tsv").read_text().splitlines()[1].split("\t")[0]) > 0
    trained = finished.metrics(0).samples.state.key
    assert f"train {trained}" in (logs / f"state/{trained}.log").read_text()
    assert (logs / "table/digits/demo.log").exists()
    assert (logs / "figure/digits/demo_samples.log").exists()


def test_a_trained_model_predicts_tokens_far_better_than_an_untrained_one(finished: Project) -> None:
    for row in range(3):
        state = finished.metrics(row).samples.state
        uniform = math.log(state.tokenizer.codebook_size)
        lines = (finished.stored("state")[state.key] / "log.jsonl").read_text().splitlines()
        losses = [json.loads(line)["next_token"] for line in lines]
        assert np.mean(losses[-10:]) < uniform - 0.4, LABELS[row]


def test_training_logs_count_every_step_once(finished: Project) -> None:
    for folder in finished.stored("state").values():
        steps = [json.loads(line)["step"] for line in (folder / "log.jsonl").read_text().splitlines()]
        assert all(later == earlier + 1 for earlier, later in pairwise(steps))
        assert steps[-1] == read_json(folder / "weights.json")["step"]


def test_only_the_encoder_that_a_row_uses_is_trained(finished: Project) -> None:
    (encoder,) = (finished.stage("encoder", key) for key in finished.stored("encoder"))
    assert isinstance(encoder, EncoderStage)
    assert encoder.encoder.name == "tiny ViT (supervised)"


def test_the_run_took_one_job_per_stage_and_no_more(first_run: tuple[Project, str]) -> None:
    project, printed = first_run
    jobs = sum(len(project.stored(kind)) for kind in STAGES) + 3  # a table, two figures
    assert f"{jobs} of {jobs} steps (100%) done" in printed


def test_a_second_call_runs_nothing(finished: Project) -> None:
    before = finished.files()
    assert "Nothing to be done" in finished.make(TABLE, *FIGURES)
    assert finished.files() == before


def test_the_summary_prints_the_table_and_where_everything_is(finished: Project) -> None:
    printed = finished.run("mirai", "summary", "demo", "--scale", "digits")
    assert (finished.root / MARKDOWN).read_text().rstrip() in printed
    for path in (TABLE, *FIGURES):
        assert path in printed
    for row in range(3):
        assert f"results/store/metrics/{finished.metrics(row).key}/recipe.json" in printed
    times = printed.split("by stage", 1)[1]
    for kind in STAGES:
        assert f"\n  {kind} " in times
    assert "in 8 jobs" in times


def test_export_writes_every_sample_as_adm_reads_them(
    finished: Project, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("export") / "samples.npz"
    finished.run("mirai", "export", finished.metrics(0).samples.key, "--npz", str(path))
    with np.load(path) as file:
        images = file["arr_0"]
    assert images.shape == (2000, 32, 32, 3)
    assert images.dtype == np.uint8
    assert images.std() > 20


def test_sampling_by_hand_draws_one_column_per_class(
    finished: Project, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("picture") / "grid.png"
    state = finished.metrics(2).samples.state.key
    finished.run("mirai", "sample", "--state", state, "--classes", "0", "3", "7", "--rows", "2", "--grid", str(path))
    with Image.open(path) as image:
        width, height = image.size
    assert width > height > 32


def test_a_rules_command_by_hand_gives_the_same_bytes(project: Project) -> None:
    metrics = project.stored("metrics")[project.metrics(1).key] / "metrics.json"
    before = metrics.read_bytes()
    metrics.unlink()
    sealed(metrics).unlink()
    project.run("mirai", "evaluate", metrics.parent.name)
    assert metrics.read_bytes() == before


def test_a_table_by_hand_gives_the_same_bytes(project: Project) -> None:
    paths = [project.root / TABLE, project.root / MARKDOWN]
    before = [path.read_bytes() for path in paths]
    for path in paths:
        path.unlink()
    project.run("mirai", "table", "demo", "--scale", "digits")
    assert [path.read_bytes() for path in paths] == before
