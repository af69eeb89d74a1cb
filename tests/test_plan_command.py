"""`mirai plan`: what would run, what it shares, what it costs, and what a raised revision throws away."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mirai.cli import main
from mirai.errors import UserError
from mirai.experiments import estimate, flops, overview, paths, plan
from mirai.experiments.grid import load_grid
from mirai.experiments.recipe import Foresight, Head
from mirai.experiments.revisions import REVISIONS
from mirai.experiments.savings import Savings, savings
from mirai.experiments.scale import load_scale
from mirai.experiments.stages import SamplesStage, StateStage, state_stage
from mirai.experiments.tree import Tree
from mirai.states import write_json

WriteGrid = Callable[..., str]
PAPER = "imagenet256"


def tree_of(*names: str, scale: str = PAPER) -> Tree:
    return Tree([plan.plan_grid(name, scale) for name in names])


def counted(*names: str) -> Savings:
    return savings(tree_of(*names), load_scale(PAPER))


def final(write_grid: WriteGrid, **axes: Any) -> StateStage:
    return state_stage(load_grid(write_grid(axes), PAPER).rows[0].runs[0])


def finish(state: StateStage, scale: str, seconds: float, device: str = "x86_64", kind: str = "cpu") -> None:
    """Leave what a training leaves: its frozen recipe, a journal of one image a second, its manifest."""
    plan.freeze(plan.Planned(state, scale))
    line = {"step": 1, "images_per_second": 1.0, "seconds": seconds, "ranks": 1}
    (paths.folder("state", state.key) / "log.jsonl").write_text(json.dumps(line) + "\n")
    write_json(paths.manifest("state", state.key), {"numerics": {"device": kind, "device_name": device}})


# Parameters and FLOPs


@pytest.mark.parametrize(("size", "total"), [("B", 110_888_448), ("L", 342_910_976), ("XL", 774_699_520)])
def test_parameters_are_those_of_llamagen(size: str, total: int, write_grid: WriteGrid) -> None:
    assert flops.parameters(final(write_grid, size=size)) == total


def test_heads_have_as_many_parameters_as_the_reference_says() -> None:
    mlp = Foresight(offsets=((0, 0),))
    assert flops.head_parameters(mlp, 768, 16384) == 7_344_896
    transformer = mlp.model_copy(update={"head": Head(kind="transformer")})
    assert flops.head_parameters(transformer, 768, 16384) == 7_678_464
    three = mlp.model_copy(update={"offsets": ((0, 0), (0, 1), (1, 0))})
    assert flops.head_parameters(three, 768, 16384) == 3 * 7_344_896


def test_an_encoder_of_unknown_shape_is_not_guessed_silently(write_grid: WriteGrid) -> None:
    known = {"name": "MAE-B", "timm": "vit_base_patch16_224.mae", "image_size": 256, "layer": 8}
    for encoder, said in ((known, False), (known | {"name": "SO", "timm": "vit_so400m_patch16_siglip_256"}, True)):
        tree = tree_of(write_grid({"arm": "mirai-i", "encoder": encoder}))
        text = "\n".join(estimate.estimate(tree, load_scale(PAPER), None))
        assert ("SO: assumed 768 wide and 12 blocks deep, which its name does not tell" in text) is said
        plan.plan_grid.cache_clear()


def test_output_level_heads_are_a_norm_and_a_map_to_the_codebook_but_for_the_current_token(
    write_grid: WriteGrid,
) -> None:
    state = final(write_grid, arm="output-level")
    assert flops.heads_of(state, state.timeline[-1]) == 2 * (768 + 768 * 16384)


@pytest.mark.parametrize(("arm", "wanted"), [("baseline", 1.7032e11), ("mirai-i", 1.8161e11), ("mirai-e", 2.3478e11)])
def test_flops_per_image_are_those_of_table_13(arm: str, wanted: float, write_grid: WriteGrid) -> None:
    state = final(write_grid, arm=arm, epochs=300)
    assert flops.flops_per_image(state, state.timeline[-1]) == pytest.approx(wanted, rel=1e-4)


def test_an_encoders_forward_pass_is_counted_apart(write_grid: WriteGrid) -> None:
    """With it Mirai-I costs about a third more than the baseline, not 6.6% (reference, section 8)."""
    state = final(write_grid, arm="mirai-i")
    phase = state.timeline[-1]
    base = final(write_grid)
    whole = flops.flops_per_image(state, phase) + flops.encoder_flops(state, phase)
    assert whole / flops.flops_per_image(base, base.timeline[0]) == pytest.approx(1.338, abs=0.01)
    assert flops.encoder_flops(base, base.timeline[0]) == 0


def test_small_models_have_as_many_parameters_as_torch_counts(write_grid: WriteGrid) -> None:
    from mirai.models.transformer import Transformer

    for axes in ({}, {"token_order": "par-4x"}):
        state = state_stage(load_grid(write_grid(axes), "demo").rows[0].runs[0])
        model = Transformer(state.model, num_classes=10, codebook_size=256, grid_side=8)
        assert flops.parameters(state) == sum(parameter.numel() for parameter in model.parameters())


# The tree and what it saves


def test_a_pretrained_teacher_and_its_trunk_are_in_the_tree_and_in_the_epochs(write_grid: WriteGrid) -> None:
    tree = tree_of(write_grid({"arm": "mirai-e", "ema": "pretrained"}))
    teachers = [node for node in tree.nodes.values() if node.teaches]
    assert [(node.state.epoch, node.users) for node in teachers] == [(300, ())]
    assert sum(node.epochs for node in tree.nodes.values()) == 300 + 80
    counts = savings(tree, load_scale(PAPER))
    assert (counts.rows, counts.runs, counts.per_row["B"]) == (2, 2, 380)


def test_a_teacher_that_is_a_row_counts_once(write_grid: WriteGrid) -> None:
    counts = counted(write_grid({"epochs": 300}, {"arm": "mirai-e", "ema": "pretrained"}))
    assert (counts.rows, counts.runs, counts.planned["B"]) == (2, 2, 380)


def test_savings_count_rows_equal_runs_and_trunks(write_grid: WriteGrid) -> None:
    name = write_grid({}, {}, {"epochs": 300}, {"arm": "mirai-e"}, {"arm": "mirai-i"}, {"size": "L"})
    counts = counted(name)
    assert (counts.rows, counts.runs) == (6, 5)
    assert dict(counts.per_row) == {"B": 80 * 4 + 300, "L": 80}
    assert dict(counts.merged) == {"B": 80 * 3 + 300, "L": 80}
    assert dict(counts.planned) == {"B": 300 + 65 + 80, "L": 80}, "the baseline's 80 epochs, and 15 of Mirai-E's"
    assert counts.to_train == counts.planned == counts.any_prefix
    merged = next(line for line in counts.lines() if line.startswith("equal runs merged"))
    assert merged.split()[-3:] == ["540", "80", "787"], "an epoch of L is worth 3.09 of B"


def test_what_parts_between_two_rungs_is_shared_up_to_there_at_any_prefix_only(write_grid: WriteGrid) -> None:
    name = write_grid({"arm": "mirai-e", "warmup_epochs": 17}, {"epochs": 30})
    counts = counted(name)
    assert counts.any_prefix["B"] == 30 + 80 - 17
    assert counts.planned["B"] == 30 + 80 - 15, "the baseline's own rungs are 10, 15, 20"


def test_equal_settings_after_trainings_have_parted_are_not_shared(write_grid: WriteGrid) -> None:
    counts = counted(write_grid({"arm": "mirai-e", "epochs": 80}, {"arm": "mirai-e", "epochs": 300}))
    assert counts.any_prefix["B"] == 80 + 300 - 40, "both go on with lambda 1, from epochs 40 and 150"


def test_drawings_add_no_rows(project: Path) -> None:
    assert counted("table6", "figure8").rows == counted("table6").rows


def test_all_of_the_paper_is_counted_by_size(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every number here follows from experiments/ alone; a new row in a table changes them."""
    names, scale = overview.targets("results/all", "demo")
    assert scale == PAPER
    assert names == plan.grids_of_paper(PAPER)
    counts = counted(*names)
    assert counts.runs == 85
    assert dict(counts.merged) == {"B": 8320, "L": 1560, "XL": 1260}
    assert dict(counts.planned) == {"B": 6775, "L": 1245, "XL": 1215}
    assert counts.any_prefix == counts.planned, "the paper's ladder loses nothing"
    assert counts.per_row["B"] > counts.merged["B"]
    assert main(["plan", "results/all"]) == 0
    printed = capsys.readouterr().out
    assert f"{counts.rows} rows (times seeds) are 85 distinct trainings" in printed
    assert printed.count("one run per row") == 1, "no second sum with other rows in it"
    assert "teacher of pretrained-EMA runs" in printed


def test_all_of_the_paper_is_a_target_by_that_word_too(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert overview.targets("all", "digits") == overview.targets("results/digits/all", PAPER)
    for path in paths.EXPERIMENTS.glob("*.yaml"):
        path.unlink()
    assert main(["plan", "all", "--scale", "digits"]) == 2
    assert capsys.readouterr().err == "mirai: none of the paper's tables and figures is in experiments/\n"


def test_another_grids_mistake_does_not_spoil_a_summary(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "experiments/mine.yaml").write_text(
        "extends: demo\nfigure: {kind: samples}\nrows: [{label: a, epoch: 1}]\n"
    )
    assert main(["summary", "demo", "--scale", "demo"]) == 0
    printed = capsys.readouterr().out
    assert "figure    results/demo/demo_samples.png" in printed
    assert "mine" not in printed


def test_the_rows_of_table_13_are_not_trained_for_it(write_grid: WriteGrid, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"label": "LlamaGen-B", "epochs": 160}, {"label": "+ Mirai-I", "arm": "mirai-i", "epochs": 160}]
    name = write_grid(*rows, report="flops", convergence="figure1")
    assert set(tree_of(name).nodes) == set(tree_of("figure1").nodes)
    assert plan.table_inputs(name, PAPER) == plan.table_inputs("figure1", PAPER)
    assert main(["plan", name]) == 0
    printed = capsys.readouterr().out
    assert "A test's grid: 10 runs" in printed
    assert "<- LlamaGen-B epochs=400; also in figure1" in printed


def test_a_plan_says_which_other_grids_share_a_run(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "table10"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if "<- LlamaGen-B" in line)
    assert "also in" in line
    assert "table2" in line


# Targets


@pytest.mark.parametrize(
    ("target", "wanted"),
    [
        ("table2", ("table2", "demo")),
        ("results/table2.csv", ("table2", PAPER)),
        ("results/digits/figure3.png", ("figure3", "digits")),
    ],
)
def test_a_target_is_a_grids_name_or_what_snakemake_makes(target: str, wanted: tuple[str, str]) -> None:
    names, scale = overview.targets(target, "demo")
    assert (names, scale) == ([wanted[0]], wanted[1])


@pytest.mark.parametrize("target", ["results/demo/table2.txt", "elsewhere/table2.csv", "results/a/b/c.csv"])
def test_another_path_is_refused(target: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", target]) == 2
    assert f"{target} is no target" in capsys.readouterr().err


def test_a_drawing_without_runs_costs_nothing(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "figure2"]) == 0
    assert capsys.readouterr().out.endswith("nothing is left to do\n")


def test_an_unknown_gpu_is_refused_with_the_known_ones(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "table10", "--gpu", "abacus"]) == 2
    told = capsys.readouterr()
    assert not told.out
    assert "--gpu abacus is not known; known are v100, a100" in told.err


# Hours and bytes


def test_gpu_hours_follow_from_the_formula_and_a_stated_assumption(project: Path) -> None:
    tree = tree_of("table10")
    lines = estimate.estimate(tree, load_scale(PAPER), "a100")
    baseline, mirai_e, images = 1.7032e11, 2.3478e11, 5004 * 256
    total = (80 * baseline + (65 + 80) * mirai_e) * images
    assert f"training: {total:.3g} FLOPs" in lines[0]
    starts = len(tree.nodes) * 6.5
    assert f"{(total / 312e12 / 0.35 + starts) / 3600:,.1f} GPU-hours" in lines[1]
    assert "on a100: 312 TFLOP/s in bfloat16 at an assumed utilisation of 35%, 0.03 s a step or more" in lines[2]
    assert lines[-2] == "not counted: the GPU's time for codes, metrics, reference, tokenizer"


@pytest.mark.parametrize(("site", "sharing"), [("", 4), ("slurm: {partition: gpu, training_minutes: 60", 1)])
def test_a_small_models_steps_cost_what_the_host_needs_for_them(site: str, sharing: int, project: Path) -> None:
    """docs/pilot.md: 30 ms a step and 6.5 s a start, divided over the jobs that share a GPU; one of SLURM has its own."""
    if site:
        paths.SITE.parent.mkdir()
        paths.SITE.write_text(f"{site}, stage_minutes: 10}}\n")
    tree = tree_of("demo", scale="pilot")
    steps = sum(node.epochs for node in tree.nodes.values()) * 30
    minutes = (steps * 0.03 + len(tree.nodes) * 6.5) / sharing / 60
    lines = estimate.estimate(tree, load_scale("pilot"), None)
    assert lines[1].strip() == f"{minutes:.1f} GPU-minutes (B {minutes:.1f})"
    assert ("4 jobs side by side" in lines[2]) is (sharing == 4)
    drawing = sum(estimate._sampling_flops(one) for one in tree.others.values() if isinstance(one, SamplesStage))
    minutes = (drawing / 989e12 / 0.05 + 15 * 6.5 / sharing) / 60
    assert f"15 sets, {minutes:.1f} GPU-minutes on h100" in lines[3]


def test_measured_seconds_of_a_shared_gpu_are_divided_over_its_jobs(project: Path) -> None:
    first = next(node.state for node in tree_of("demo", scale="pilot").nodes.values() if node.epochs == 15)
    finish(first, "pilot", 100.0, device="NVIDIA H200", kind="cuda")
    text = "\n".join(estimate.estimate(tree_of("demo", scale="pilot"), load_scale("pilot"), None))
    assert "B as measured here: 4 images/s per GPU on NVIDIA H200" in text


def test_measured_throughput_replaces_the_assumption_on_the_gpu_it_was_measured_on(project: Path) -> None:
    tree = tree_of("table10")
    baseline = next(node.state for node in tree.nodes.values() if node.state.epoch == 10 and not node.phase.foresight)
    finish(baseline, PAPER, 100.0, device="NVIDIA H200", kind="cuda")
    for gpu, measured in ((None, True), ("h200", True), ("a100", False)):
        text = "\n".join(estimate.estimate(tree_of("table10"), load_scale(PAPER), gpu))
        assert ("B as measured here: 1 images/s per GPU on NVIDIA H200" in text) is measured
        assert ("assumed utilisation of 35%" in text) is not measured


def test_what_is_done_costs_nothing_more(project: Path) -> None:
    before = counted("table10").to_train["B"]
    first = next(node.state for node in tree_of("table10").nodes.values() if node.epochs == 10)
    finish(first, PAPER, 1.0)
    assert counted("table10").to_train["B"] == before - 10


def test_a_cpu_scale_says_what_it_assumes_and_then_what_it_measured(project: Path) -> None:
    scale = load_scale("digits")
    tree = tree_of("demo", scale="digits")
    (line,) = [line for line in estimate.estimate(tree, scale, None) if "assumed" in line]
    assert "state" in line
    assert "metrics" in line
    metrics = next(stage for stage in tree.others.values() if stage.kind == "metrics")
    plan.freeze(plan.lookup(metrics.key))
    timing = paths.benchmark("metrics", metrics.key)
    timing.parent.mkdir(parents=True)
    timing.write_text("s\th:m:s\n3600.0\t1:00:00\n")
    finish(next(iter(tree.nodes.values())).state, "digits", 10.0)
    text = "\n".join(estimate.estimate(tree_of("demo", scale="digits"), scale, None))
    assert "metrics 3.00" in text, "three more at an hour each"
    assert "B as measured here: 1 images/s per rank on x86_64" in text
    assert "assumed, since none was measured here: tokenizer" in text


def test_images_that_nobody_has_counted_are_not_guessed(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flops, "IMAGES", {})
    lines = estimate.estimate(tree_of("table10"), load_scale(PAPER), None)
    assert lines == ["no estimate: nobody has counted the images of imagenet yet; encoding does"]
    lines = estimate.estimate(tree_of("demo", scale="folder-birds"), load_scale("folder-birds"), None)
    assert "GPU-hours" not in lines[0]
    assert lines[-1] == "      and the codes of birds, whose images nobody has counted yet"


def test_disk_counts_weights_optimisers_samples_and_codes(write_grid: WriteGrid) -> None:
    tree = tree_of(write_grid({"epochs": 10}))
    text = estimate.estimate(tree, load_scale(PAPER), None)[-1]
    weights, resume = 8 * 110_888_448, 16 * 110_888_448
    assert f"weights {weights / 1e6:.3g} MB" in text
    assert f"optimisers {resume / 1e9:.3g} GB" in text
    assert "samples 25.6 MB" in text
    assert f"codes and pictures {1_281_167 * (10 * 256 * 2 + 3 * 281**2) / 1e9:.3g} GB" in text


# Revisions


def test_a_raised_revision_names_what_will_be_made_again(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, fresh_plan: None
) -> None:
    state = next(node.state for node in tree_of("demo", scale="digits").nodes.values())
    finish(state, "digits", 1.0)
    assert main(["plan", "demo", "--scale", "digits"]) == 0
    assert "revision" not in capsys.readouterr().out
    monkeypatch.setitem(REVISIONS, "state", REVISIONS["state"] + 1)
    plan.plan_grid.cache_clear()
    plan._planned.clear()
    assert main(["plan", "demo", "--scale", "digits"]) == 0
    printed = capsys.readouterr().out
    assert "revision of state was raised: 1 finished stage will be made again (state 1)" in printed
    assert main(["plan", "table11", "--scale", "digits"]) == 0
    assert "revision" not in capsys.readouterr().out, "no run of 384 px needs that state"


def test_a_run_of_snakemake_says_before_its_first_job_what_a_raised_revision_makes_again(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    state = next(node.state for node in tree_of("demo", scale="digits").nodes.values() if node.parent is None)
    finish(state, "digits", 1.0)
    monkeypatch.setitem(REVISIONS, "state", REVISIONS["state"] + 1)
    plan.plan_grid.cache_clear()
    plan._planned.clear()
    plan.plan_grid("demo", "digits")
    plan.inputs(state.key)
    assert capsys.readouterr().err == "", "a dry run goes so far"
    plan.start()
    (sentence,) = capsys.readouterr().err.splitlines()
    assert sentence.startswith("mirai: revision of state was raised: 1 finished stage will be made again (state 1)")
    assert paths.frozen("state", state.key).exists()


# Figure


def test_the_figure_of_a_tree_is_drawn_as_png_and_pdf(project: Path) -> None:
    assert main(["plan", "table10", "--figure", "tree.png"]) == 0
    assert Path("tree.png").stat().st_size > 10_000
    assert Path("tree.pdf").exists()


def test_another_kind_of_figure_is_refused_before_anything_is_planned(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", "table10", "--figure", "tree.svg"]) == 2
    told = capsys.readouterr()
    assert not told.out
    assert "--figure tree.svg is no .png or .pdf" in told.err


def test_branches_of_the_figure_hold_every_state_once_and_nearest_below_forks_latest(project: Path) -> None:
    from mirai.analysis.tree_figure import branches, label

    tree = tree_of("table3")
    lines = branches(tree)
    keys = [key for branch in lines for key in branch.keys]
    assert sorted(keys) == sorted(tree.nodes)
    assert label(tree, lines[0]) == "LlamaGen-B"
    row_of = {key: row for row, branch in enumerate(lines) for key in branch.keys}
    for row, branch in enumerate(lines):
        if branch.origin is not None:
            fork = tree.nodes[branch.origin].state.epoch
            between = lines[row_of[branch.origin] + 1 : row]
            assert all(tree.nodes[other.keys[0]].start >= fork for other in between), "a fork crosses no line"


def test_targets_need_no_working_folder_of_the_paper_for_a_refusal() -> None:
    with pytest.raises(UserError, match="is no target"):
        overview.targets("results/x/y/all", PAPER)
