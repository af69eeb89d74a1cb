"""Grid files: every one loads at every scale, cites the paper rightly, and its mistakes are told in one sentence."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mirai.errors import UserError
from mirai.experiments import plan
from mirai.experiments.grid import Grid, Row, load_grid
from mirai.experiments.grid_files import grid_names, kinds
from mirai.experiments.scale import load_scale, scale_names
from mirai.experiments.stages import metrics_stage, state_stage

WriteGrid = Callable[..., str]
ROOT = Path(__file__).parents[2]
GRIDS = sorted(path.stem for path in (ROOT / "experiments").glob("*.yaml"))
SCALES = [
    "folder-cats" if path.stem == "folder" else path.stem
    for path in sorted((ROOT / "experiments/scales").glob("*.yaml"))
]

# Rows and distinct trained states of the grids; one's own grid need not be listed.
EXPECTED = {"demo": (3, 3), "table2": (10, 10), "table5": (5, 5)}


def told(*arguments: str) -> str:
    """What a user is told instead of a grid, whatever the line."""
    with pytest.raises(UserError) as caught:
        load_grid(*arguments)
    return re.sub(r"\.yaml line \d+:", ".yaml:", str(caught.value))


def keys(rows: tuple[Row, ...]) -> list[str]:
    return [metrics_stage(run).key for row in rows for run in row.runs]


def planned(name: str, scale: str) -> Grid | None:
    """The grid; None where the scale has none of its rows and says so."""
    try:
        return plan.plan_grid(name, scale)
    except UserError as refusal:
        if f"has no row that scale '{scale}' can run" in str(refusal):
            return None
        raise


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", GRIDS)
def test_every_grid_loads_at_every_scale_or_says_what_the_scale_lacks(name: str, scale: str, project: Path) -> None:
    grid = planned(name, scale)
    assert grid is not None or name not in EXPECTED
    if grid is None:
        return
    if name in EXPECTED:
        states = {state_stage(run).key for row in grid.rows for run in row.runs}
        assert (len(grid.rows), len(states) / len(grid.seeds)) == EXPECTED[name]
        assert not [row.label for row in grid.rows if row.unavailable]
    assert len(set(keys(grid.rows))) == len(keys(grid.rows)), "no row says twice what another one says"


def test_tables_share_their_runs(project: Path) -> None:
    demo, table2, table5 = (set(keys(load_grid(name, "imagenet256").rows)) for name in ("demo", "table2", "table5"))
    assert demo < table2
    assert demo < table5
    assert table2 & table5 == demo


# The paper's tables: model, axis, FID, inception score.
TABLE_2 = """
LlamaGen-B	-	6.36	185.54
+ Mirai-I	4	4.98	204.25
	6	4.81	<b>208.59</b>
	8	<b>4.77</b>	207.34
	10	5.06	199.01
+ Mirai-E	4	5.99	181.32
	6	5.62	190.95
	8	<b>5.22</b>	197.14
	10	5.53	<b>200.21</b>
	8 → 6	6.30	180.54
"""
TABLE_5 = """
LlamaGen-B	-	6.36	185.54
+ Mirai-I	right	4.99	202.53
	current	<b>4.77</b>	<b>207.34</b>
+ Mirai-E	right, below	5.39	<b>198.11</b>
	current, right, below	<b>5.22</b>	197.14
"""


def printed(table: str) -> list[tuple[str, str, float, float]]:
    """The rows of a table of the paper, every one with its model."""
    rows, model = [], ""
    for line in table.replace("<b>", "").replace("</b>", "").strip().splitlines():
        cells = line.split("\t")
        model = cells[0] or model
        rows.append((model, cells[1], float(cells[2]), float(cells[3])))
    return rows


def cited(grid: str, axis_of: Callable[[Row], str]) -> list[tuple[str, str, float, float]]:
    """The same of a grid file."""
    rows = load_grid(grid, "imagenet256").rows
    assert all(set(row.paper) == {"fid", "inception_score"} for row in rows)
    return [(row.label, axis_of(row), row.paper["fid"], row.paper["inception_score"]) for row in rows]


def test_table_2_cites_the_paper_row_by_row(project: Path) -> None:
    def axis_of(row: Row) -> str:
        return " → ".join(str(row.axes[name]) for name in ("align_layer", "teacher_layer") if name in row.axes) or "-"

    assert cited("table2", axis_of) == printed(TABLE_2)


def test_table_5_cites_the_paper_row_by_row(project: Path) -> None:
    words = {(0, 0): "current", (0, 1): "right", (1, 0): "below"}

    def axis_of(row: Row) -> str:
        foresight = row.runs[0].foresight
        return "-" if foresight is None else ", ".join(words[offset] for offset in foresight.offsets)

    assert cited("table5", axis_of) == printed(TABLE_5)


def test_the_demo_cites_the_best_rows_of_table_2(project: Path) -> None:
    of_layer_8 = [row for row in printed(TABLE_2) if row[1] in ("-", "8")]
    assert cited("demo", lambda row: "") == [(model, "", fid, score) for model, _, fid, score in of_layer_8]


def test_rows_of_the_paper_are_the_arms_their_labels_say(project: Path) -> None:
    for name in ("demo", "table2", "table5"):
        for row in load_grid(name, "imagenet256").rows:
            foresight = row.runs[0].foresight
            source = None if foresight is None else foresight.source
            assert source == {"LlamaGen-B": None, "+ Mirai-I": "encoder", "+ Mirai-E": "ema"}[row.label]
            assert row.runs[0].epochs == 80


def test_an_8_to_6_row_aligns_block_8_with_teacher_block_6(project: Path) -> None:
    foresight = load_grid("table2", "imagenet256").rows[-1].runs[0].foresight
    assert foresight is not None
    assert (foresight.layer, foresight.teacher_layer) == (8, 6)


def test_layers_are_counted_in_twelfths_of_the_depth(write_grid: WriteGrid) -> None:
    name = write_grid(*({"arm": "mirai-e", "size": size, "teacher_layer": 6} for size in ("B", "L", "XL")))
    layers = [
        (run.foresight.layer, run.foresight.teacher_layer)
        for row in load_grid(name, "imagenet256").rows
        for run in row.runs
        if run.foresight
    ]
    assert layers == [(8, 6), (16, 12), (24, 18)]


def test_a_layer_that_is_no_block_is_refused(write_grid: WriteGrid, project: Path) -> None:
    assert told(write_grid({"arm": "mirai-i", "align_layer": 13}), "demo") == (
        "experiments/own.yaml: row 'row 0': align_layer 13 (in twelfths of the depth) is no block of a model with "
        "12 layers"
    )
    path = project / "experiments/scales/demo.yaml"
    path.write_text(path.read_text().replace("num_layers: 12", "num_layers: 6"))
    load_scale.cache_clear()
    assert load_grid(write_grid({"arm": "mirai-i", "align_layer": 8}), "demo").rows[0].runs[0].foresight.layer == 4  # type: ignore[union-attr]
    assert "align_layer 7 (in twelfths" in told(write_grid({"arm": "mirai-i", "align_layer": 7}), "demo")


def test_sizes_bring_their_guidance_encoder_and_learning_rate_schedule(write_grid: WriteGrid) -> None:
    rows = load_grid(write_grid(*({"arm": "mirai-i", "size": size} for size in ("B", "L", "XL"))), "imagenet256").rows
    found = [
        (run.sampling.guidance, run.foresight.encoder.name, run.training.lr_schedule)
        for row in rows
        for run in row.runs
        if run.foresight and run.foresight.encoder
    ]
    assert found == [(2.0, "DINOv2-B", "constant"), (1.75, "DINOv2-L", "constant"), (1.75, "DINOv2-L", "cosine")]


def test_a_row_sets_only_what_it_names(write_grid: WriteGrid) -> None:
    scale = load_scale("demo")
    row = load_grid(write_grid({"learning_rate": 0.5, "guidance": 3.0, "weights": "ema"}), "demo").rows[0]
    run = row.runs[0]
    assert run.training == scale.training.model_copy(update={"learning_rate": 0.5})
    assert run.sampling == scale.sampling.model_copy(update={"guidance": 3.0, "weights": "ema"})


def test_rows_that_a_scale_cannot_have_say_so_and_the_others_run(write_grid: WriteGrid) -> None:
    name = write_grid({}, {"size": "XXL"}, {"arm": "mirai-i", "encoder": "dinov3"}, columns=["size", "encoder"])
    small, large = load_grid(name, "demo"), load_grid(name, "imagenet256")
    assert [row.unavailable for row in small.rows] == [
        None,
        "size XXL does not exist at this scale",
        "encoder dinov3 does not exist at this scale",
    ]
    assert [len(row.runs) for row in small.rows] == [1, 0, 0]
    assert len(small.available()) == 1
    assert [row.unavailable for row in large.rows] == [None, None, None]


def test_a_grid_of_which_a_scale_has_no_row_is_refused(write_grid: WriteGrid) -> None:
    assert told(write_grid({"size": "XXL"}, {"size": "3B"}), "demo") == (
        "experiments/own.yaml has no row that scale 'demo' can run: size XXL does not exist at this scale"
    )


def test_a_role_known_at_no_scale_is_a_mistake_with_the_known_ones(write_grid: WriteGrid) -> None:
    sentence = told(write_grid({}, {"arm": "mirai-i", "encoder": "dinov2"}), "demo")
    assert sentence.startswith(
        "experiments/own.yaml: row 'row 1': encoder 'dinov2' is known at no scale; did you mean 'dinov3'? known are "
    )
    assert "mae-large, random" in sentence
    assert "size 'default' is known at no scale; known are 3B, B, L, XL, XXL" in told(
        write_grid({"size": "default"}), "demo"
    )


def test_the_role_default_is_what_the_size_says(write_grid: WriteGrid) -> None:
    rows = load_grid(write_grid({"arm": "mirai-i", "encoder": "default"}, {"arm": "mirai-i"}), "demo").rows
    assert rows[0].runs == rows[1].runs


def test_the_table_prints_the_concrete_encoder_never_its_role(write_grid: WriteGrid) -> None:
    name = write_grid({"arm": "mirai-i"}, {"arm": "mirai-i", "encoder": "mae"}, columns=["encoder"])
    small = load_scale("demo").encoders
    printed = [row.axes["encoder"] for row in load_grid(name, "demo").rows]
    assert printed == [small["base"].name, small["mae"].name]
    assert [row.axes["encoder"] for row in load_grid(name, "imagenet256").rows] == ["DINOv2-B", "MAE-B"]


def test_columns_print_axes_as_a_reader_wants_them(write_grid: WriteGrid) -> None:
    schedule = {"kind": "step", "values": [2.0, 0.5]}
    row = {"arm": "mirai-e", "schedule": schedule, "offsets": [[0, 0], [1, 0]], "learning_rate": 0.01}
    name = write_grid(row, {}, columns=["schedule", "offsets", "learning_rate", "align_layer"])
    assert [row.axes for row in load_grid(name, "demo").rows] == [
        {"schedule": "step 2 → 0.5", "offsets": "(0,0) (1,0)", "learning_rate": 0.01},
        {},
    ]


def test_a_column_that_is_no_axis_is_refused(write_grid: WriteGrid) -> None:
    sentence = told(write_grid({}, columns=["fid"]), "demo")
    assert sentence.startswith(
        "experiments/own.yaml: columns names 'fid', which is no axis; axes are arm, size, epochs,"
    )


def test_vary_crosses_its_axes_in_order(write_grid: WriteGrid) -> None:
    row = {"arm": "mirai-i", "epochs": 10, "vary": {"num_tokens": [1, 4], "layout": ["1D", "2D"]}}
    grid = load_grid(write_grid(row, columns=["num_tokens", "layout"]), "demo")
    assert [(row.axes["num_tokens"], row.axes["layout"]) for row in grid.rows] == [
        (1, "1D"),
        (1, "2D"),
        (4, "1D"),
        (4, "2D"),
    ]
    runs = [row.runs[0] for row in grid.rows]
    assert [len(run.foresight.offsets) for run in runs if run.foresight] == [1, 1, 4, 4]
    assert all(run.epochs == 10 for run in runs)
    assert runs[0] == runs[1], "K = 1 is K = 1"
    assert runs[2] != runs[3]


def test_vary_takes_whole_schedules(write_grid: WriteGrid) -> None:
    schedules = [{"kind": "constant", "values": [1.0]}, {"kind": "step", "values": [2.0, 1.0]}]
    grid = load_grid(write_grid({"arm": "mirai-e", "vary": {"schedule": schedules}}, columns=["schedule"]), "demo")
    assert [row.axes["schedule"] for row in grid.rows] == ["constant 1", "step 2 → 1"]
    assert [row.runs[0].foresight.schedule.warmup_epochs for row in grid.rows] == [15, 15]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"vary": {"lr": [0.1]}}, "row 'row 0': vary: unknown key 'lr'; allowed: align_layer, arm,"),
        (
            {"vary": {"guidance": [2.0, "x"]}},
            "row 'row 0': vary: key 'guidance' has value 'x': input should be a valid number",
        ),
        ({"vary": {"guidance": []}}, "key 'rows.0.vary.guidance' has value '[]': list should have at least 1 item"),
        (
            {"guidance": 1.0, "vary": {"guidance": [2.0]}},
            "row 'row 0': guidance stands in several of row, vary and zip; give it once",
        ),
        (
            {"arm": None},
            "row 'row 0': every run has an arm; give one of baseline, mirai-i, mirai-e, output-level, in the row or in",
        ),
        ({"size": None}, "row 'row 0': size is null, and every run has one; remove it or give a value"),
        ({"epochs": None}, "row 'row 0': epochs is null, and every run has one; remove it or give a value"),
        (
            {"arm": "mirai-e", "epochs": 15},
            "row 'row 0': warmup_epochs 15 leaves no epoch of 15 for foresight",
        ),
        (
            {"paper": {"fdi": 1.0}},
            "unknown key 'rows.0.paper.fdi'; did you mean 'fid'? allowed: fid, sfid, inception_score, precision, recall, flops,",
        ),
    ],
)
def test_a_senseless_row_is_refused_in_one_sentence(row: dict[str, Any], sentence: str, write_grid: WriteGrid) -> None:
    assert told(write_grid(row), "demo").startswith(f"experiments/own.yaml: {sentence}")


WITHOUT_EFFECT: dict[str, dict[str, Any]] = {
    "baseline": {
        "align_layer": 8,
        "teacher_layer": 8,
        "layout": "2D",
        "num_tokens": 1,
        "offsets": [[0, 0]],
        "schedule": {"kind": "constant", "values": [1.0]},
        "warmup_epochs": 0,
        "encoder": "mae",
        "block_size": 4,
        "ema_slot_shift": 1,
        "borders": "all",
    },
    "mirai-i": {"teacher_layer": 6, "ema_slot_shift": 0},
    "mirai-e": {"encoder": "mae", "block_size": 4},
    "output-level": {"align_layer": 8, "teacher_layer": 6, "ema_slot_shift": 0, "encoder": "mae", "block_size": 4},
}


@pytest.mark.parametrize(("arm", "axis"), [(arm, axis) for arm, axes in WITHOUT_EFFECT.items() for axis in axes])
def test_an_axis_without_effect_on_its_arm_is_refused(arm: str, axis: str, write_grid: WriteGrid) -> None:
    assert told(write_grid({"arm": arm, axis: WITHOUT_EFFECT[arm][axis]}), "demo") == (
        f"experiments/own.yaml: row 'row 0': {axis} has no effect on arm '{arm}'; remove it (null undoes a default) "
        "or choose another arm"
    )


OTHER_VALUES = WITHOUT_EFFECT["baseline"] | {
    "align_layer": 4,
    "teacher_layer": 6,
    "layout": "1D",
    "num_tokens": 5,
    "offsets": [[0, 2]],
    "warmup_epochs": 3,
    "ema_slot_shift": 0,
}


@pytest.mark.parametrize("arm", WITHOUT_EFFECT)
def test_an_axis_that_is_not_refused_changes_the_run(arm: str, write_grid: WriteGrid) -> None:
    for axis in set(OTHER_VALUES) - set(WITHOUT_EFFECT[arm]):
        base: dict[str, Any] = {"arm": arm} if axis == "offsets" else {"arm": arm, "num_tokens": 4}
        first, second = load_grid(write_grid(base, base | {axis: OTHER_VALUES[axis]}), "demo").rows
        assert first.runs != second.runs, axis


def test_null_in_a_row_undoes_a_default(write_grid: WriteGrid) -> None:
    name = write_grid({"align_layer": None}, {"arm": "mirai-i"}, defaults={"align_layer": 4})
    layers = [row.runs[0].foresight and row.runs[0].foresight.layer for row in load_grid(name, "demo").rows]
    assert layers == [None, 4]


def test_seeds_make_runs_that_differ_in_the_training_seed_alone(write_grid: WriteGrid) -> None:
    first, second = load_grid(write_grid({"arm": "mirai-i"}, seeds=[3, 5]), "demo").rows[0].runs
    assert (first.training.seed, second.training.seed) == (3, 5)
    assert second.model_copy(update={"training": first.training}) == first


def test_seeds_given_twice_or_negative_are_refused(write_grid: WriteGrid) -> None:
    assert told(write_grid({}, seeds=[1, 1]), "demo") == (
        "experiments/own.yaml: key 'seeds' has value '[1, 1]': each seed is given once"
    )
    assert "key 'seeds' has value '[]'" in told(write_grid({}, seeds=[]), "demo")
    assert "key 'seeds.0' has value -1" in told(write_grid({}, seeds=[-1]), "demo")


def test_every_row_knows_the_baseline_it_is_compared_with(write_grid: WriteGrid) -> None:
    row = load_grid(write_grid({"arm": "mirai-e", "guidance": 3.0}, seeds=[0, 1]), "demo").rows[0]
    assert [run.foresight for run in row.baselines] == [None, None]
    for run, baseline in zip(row.runs, row.baselines, strict=True):
        assert baseline == run.model_copy(update={"foresight": None})


@pytest.mark.parametrize("name", ["all", "costs", "index", "store", "logs", "imagenet256", "digits", "folder"])
def test_names_with_another_meaning_are_refused(name: str, write_grid: WriteGrid) -> None:
    write_grid({}, name=name)
    assert told(name, "demo").startswith(
        f"experiments/{name}.yaml: '{name}' cannot name a grid, results/{name} has another meaning; taken: all, costs,"
    )


def test_demo_names_a_grid_and_a_scale(project: Path) -> None:
    assert "demo" in grid_names()
    assert "demo" in scale_names()
    assert plan.table_inputs("demo", "demo") != plan.table_inputs("demo", "imagenet256")


def test_a_grid_or_scale_that_does_not_exist_is_told_with_those_that_do(project: Path) -> None:
    assert told("nope", "demo").startswith(
        "there is no grid 'nope': experiments/nope.yaml does not exist; grids are demo,"
    )
    assert told("demo", "nope").startswith("there is no scale 'nope'; scales are demo, digits, folder, imagenet256")


def test_a_name_nearly_right_is_told_with_the_right_one(project: Path) -> None:
    assert "does not exist; did you mean 'table2'? grids are" in told("tabel2", "demo")
    assert told("demo", "digit").startswith("there is no scale 'digit'; did you mean 'digits'? scales are demo,")


def test_what_lies_beside_grids_and_is_none_spoils_no_other(project: Path) -> None:
    names = grid_names()
    (project / "experiments/.#demo.yaml").symlink_to("someone@host.1:1")  # an editor's lock
    assert grid_names() == names
    (project / "experiments/backup.yaml").mkdir()
    assert told("backup", "demo") == "experiments/backup.yaml cannot be read: Is a directory"
    assert kinds()["backup"] is None
    assert plan.plan_grid("demo", "demo").rows


@pytest.mark.parametrize("scale", ["folder", "folder-", "folder-My cats", "folder-a/b"])
def test_the_folder_scale_needs_a_name_for_the_images(scale: str, project: Path) -> None:
    assert told("demo", scale).startswith("the folder scale needs a name for your images, in small letters,")


def test_the_folder_scale_is_named_by_its_images(project: Path) -> None:
    assert load_scale("folder-my-cats").data.name == "my-cats"


def test_ranks_that_do_not_divide_the_batch_are_refused_before_anything_runs(project: Path) -> None:
    (project / "config").mkdir()
    (project / "config/site.yaml").write_text("ranks: 3\n")
    with pytest.raises(UserError) as caught:
        plan.plan_grid("demo", "imagenet256")
    assert str(caught.value) == (
        "config/site.yaml: ranks 3 does not divide the global batch of 256 at scale 'imagenet256'"
    )


def test_a_name_that_no_rule_would_match_is_refused(write_grid: WriteGrid) -> None:
    name = write_grid({"arm": "baseline"}, name="my grid")
    with pytest.raises(UserError, match=r"^experiments/my grid.yaml: a grid's name has letters, digits"):
        load_grid(name, "demo")


# extends


def write(project: Path, name: str, text: str) -> str:
    (project / f"experiments/{name}.yaml").write_text(text)
    return name


BASE = """title: The base
source: Table 1
columns: [epochs]
defaults: {arm: baseline, epochs: 40, guidance: 3.0}
seeds: [1]
rows:
- {label: first}
"""


def test_a_grid_extends_another(project: Path) -> None:
    write(project, "base", BASE)
    write(project, "middle", "extends: base\ntitle: The middle\ndefaults: {epochs: 50}\nrows: [{label: second}]")
    grid = load_grid(
        write(project, "top", "extends: middle\nfigure: {kind: samples}\nseeds: [2, 3]\nsource:"), "digits"
    )
    assert (grid.title, grid.source, grid.columns, grid.seeds) == ("The middle", None, ["epochs"], (2, 3))
    assert [row.label for row in grid.rows] == ["first", "second"]
    runs = [run for row in grid.rows for run in row.runs]
    assert {(run.epochs, run.sampling.guidance) for run in runs} == {(50, 3.0)}
    assert {run.training.seed for run in runs} == {2, 3}
    assert grid.figure is not None


def test_the_grid_that_is_extended_stays_as_it_is(project: Path) -> None:
    write(project, "base", BASE)
    before = load_grid("base", "digits")
    load_grid(write(project, "top", "extends: base\nrows: [{label: second}]"), "digits")
    assert load_grid("base", "digits") == before


def test_a_grid_that_extends_itself_on_the_way_is_refused(project: Path) -> None:
    for name, base in (("one", "two"), ("two", "three"), ("three", "one"), ("self", "self")):
        write(project, name, f"title: t\nextends: {base}\nrows: [{{label: a}}]")
    assert told("one", "digits") == ("experiments/three.yaml: extends 'one', which extends this file in turn")
    assert told("self", "digits") == "experiments/self.yaml: extends 'self', which extends this file in turn"


def test_a_grid_that_extends_one_that_is_not_there_is_refused(project: Path) -> None:
    assert told(write(project, "top", "extends: nothing"), "digits").startswith(
        "experiments/top.yaml: extends 'nothing': experiments/nothing.yaml does not exist; grids are demo,"
    )


PAPER_ROWS = """- {label: ours, paper: {fid: 6.36}}
- {label: theirs, cited: true, paper: {fid: 7.47}}
"""


@pytest.mark.parametrize(
    ("keys", "kept"),
    [
        ("", True),
        ("defaults: {epochs: 40}", True),  # as they are
        ("seeds: [2]", True),
        ("defaults: {epochs: 80}", False),
        ("at_scale: {digits: {weights: ema}}", False),
    ],
)
def test_what_the_paper_reports_does_not_come_along_to_other_runs(keys: str, kept: bool, project: Path) -> None:
    write(project, "base", BASE + PAPER_ROWS)
    new = "rows: [{label: new, paper: {fid: 5.22}}]"
    grid = load_grid(write(project, "top", f"extends: base\n{keys}\n{new}"), "digits")
    assert [row.paper.get("fid") for row in grid.rows] == [None, 6.36 if kept else None, 7.47, 5.22]
    assert grid.source == ("Table 1" if kept else None)
    given = load_grid(write(project, "top", f"extends: base\n{keys}\nsource: Table 9\n{new}"), "digits")
    assert given.source == "Table 9"


def test_a_drawing_of_a_tables_rows_has_not_its_sweep(project: Path) -> None:
    grid = load_grid(write(project, "top", "extends: table6\nfigure: {kind: samples}"), "imagenet256")
    assert len(grid.available()) == 9
    assert not any(row.sweep for row in grid.rows)


@pytest.mark.parametrize(
    ("base", "top", "sentence"),
    [
        (BASE + "- lable: x", "extends: base", "base.yaml line 8: unknown key 'rows.1.lable'; did you mean 'label'?"),
        (BASE, "extends: base\nrows:\n- lable: x", "top.yaml line 3: unknown key 'rows.1.lable'; did you mean"),
        (BASE, "extends: base\n\ndefaults:\n  epoch: 3", "top.yaml line 4: unknown key 'defaults.epoch'"),
        (BASE, "extends: base\ndefaults:\n  guidance: 0", "top.yaml line 3: key 'defaults.guidance' has value 0"),
        (BASE, "extends: base\ndefaults: 3", "top.yaml line 2: key 'defaults' has value 3"),
        (BASE, "extends: base\nrows: 3", "top.yaml line 2: key 'rows' has value 3"),
        (BASE + "- {label: b, ema: online}", "extends: base\nrows: [{label: c}]", "base.yaml line 8: row 'b': ema has"),
        (BASE, "extends: base\nrows:\n- {label: c}\n- {label: d, ema: online}", "top.yaml line 4: row 'd': ema has no"),
        (BASE, "extends: base\ncolumns: [fid]", "top.yaml line 2: columns names 'fid', which is no axis"),
        (
            BASE,
            "extends: base\nat_scale:\n  nowhere: {}",
            "top.yaml line 3: at_scale names 'nowhere', which is no scale",
        ),
        (BASE, "title: t\nextends: 3", "top.yaml line 2: key 'extends' has value 3: input should be a valid string"),
    ],
)
def test_a_mistake_is_told_with_the_file_and_line_where_it_is_written(
    base: str, top: str, sentence: str, project: Path
) -> None:
    write(project, "base", base)
    with pytest.raises(UserError) as caught:
        load_grid(write(project, "top", top), "digits")
    assert str(caught.value).startswith(f"experiments/{sentence}")


# zip, at_scale, facts, cited rows, sweeps, trajectories


def test_zip_goes_through_its_lists_together_and_is_crossed_with_vary(write_grid: WriteGrid) -> None:
    row = {"arm": "mirai-i", "zip": {"size": ["B", "L"], "epochs": [40, 80]}, "vary": {"num_tokens": [1, 3]}}
    rows = load_grid(write_grid(row, columns=["size", "epochs", "num_tokens"]), "digits").rows
    found = [tuple(row.axes.values()) for row in rows]
    assert found == [("B", 40, 1), ("B", 40, 3), ("L", 80, 1), ("L", 80, 3)]
    assert [row.runs[0].epochs for row in rows] == [40, 40, 80, 80]


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"zip": {"size": ["B", "L"], "epochs": [80]}}, "row 'row 0': zip needs lists of one length, got [1, 2]"),
        ({"zip": {"size": ["B"]}, "vary": {"size": ["L"]}}, "row 'row 0': size stands in several of row, vary and zip"),
        ({"size": "B", "zip": {"size": ["B"]}}, "row 'row 0': size stands in several of row, vary and zip"),
        ({"zip": {"sise": ["B"]}}, "row 'row 0': zip: unknown key 'sise'; did you mean 'size'?"),
        ({"zip": {"epochs": [80, 0]}}, "row 'row 0': zip: key 'epochs' has value 0: input should be greater than 0"),
        (
            {"vary": {"epochs": [40, 80]}, "paper": {"fid": 1.0}},
            "row 'row 0': `paper` values belong to one run, and this row is 2; write them as rows",
        ),
        ({"cited": True, "arm": "baseline"}, "row 'row 0': a cited row has no axes, only `paper` values and `facts`"),
        ({"cited": True, "vary": {"epochs": [1]}}, "row 'row 0': a cited row has no axes, only `paper` values and"),
        ({"vary": {"arm": [None]}}, "row 'row 0': every run has an arm; give one of baseline, mirai-i, mirai-e,"),
    ],
)
def test_a_senseless_list_or_cited_row_is_refused(row: dict[str, Any], sentence: str, write_grid: WriteGrid) -> None:
    assert told(write_grid(row), "digits").startswith(f"experiments/own.yaml: {sentence}")


def test_a_wrong_value_of_a_list_is_told_with_its_own_line(project: Path) -> None:
    text = "title: t\nrows:\n- label: a\n  vary:\n    epochs:\n    - 40\n    - none\n"
    with pytest.raises(UserError, match=r"^experiments/own\.yaml line 7: row 'a': vary: key 'epochs' has value 'none'"):
        load_grid(write(project, "own", text), "digits")


def test_a_scale_may_have_other_defaults_and_rows_win_over_them(write_grid: WriteGrid) -> None:
    name = write_grid({}, {"epochs": 7}, defaults={"epochs": 80}, at_scale={"digits": {"epochs": 10}})
    assert [row.runs[0].epochs for row in load_grid(name, "digits").rows] == [10, 7]
    assert [row.runs[0].epochs for row in load_grid(name, "demo").rows] == [80, 7]


def test_the_folder_scale_is_named_without_its_images_in_at_scale(write_grid: WriteGrid) -> None:
    name = write_grid({}, at_scale={"folder": {"epochs": 10}})
    assert load_grid(name, "folder-cats").rows[0].runs[0].epochs == 10


def test_cited_rows_run_nothing_and_keep_their_facts(write_grid: WriteGrid) -> None:
    cited = {"cited": True, "facts": {"type": "GAN", "parameters": "112M"}, "paper": {"fid": 6.95}}
    grid = load_grid(write_grid(cited, {"facts": {"type": "AR"}}, columns=["type", "parameters"]), "digits")
    assert [row.cited for row in grid.rows] == [True, False]
    assert [row.facts.get("type") for row in grid.rows] == ["GAN", "AR"]
    assert (grid.rows[0].runs, grid.rows[0].unavailable, grid.rows[0].paper) == ((), None, {"fid": 6.95})
    assert grid.available() == [grid.rows[1]]


def test_a_column_is_an_axis_computed_or_a_fact(write_grid: WriteGrid) -> None:
    columns = ["epochs", "parameters", "encoder_parameters", "head_parameters", "level"]
    assert load_grid(write_grid({"facts": {"level": "Output"}}, columns=columns), "digits").columns == columns
    assert "columns names 'level', which is no axis" in told(write_grid({}, columns=columns), "digits")


def test_a_sweep_samples_the_same_states_at_every_guidance_the_fixed_one_among_them(write_grid: WriteGrid) -> None:
    name = write_grid({"arm": "mirai-i"}, guidance_sweep=[1.0, 2.0], seeds=[0, 1])
    grid = load_grid(name, "digits")
    (row,) = grid.rows
    assert [[run.sampling.guidance for run in runs] for runs in row.sweep] == [[1.0, 1.0], [1.5, 1.5], [2.0, 2.0]]
    assert row.sweep[1] == row.runs
    states = {state_stage(run).key for runs in row.sweep for run in runs}
    assert states == {state_stage(run).key for run in row.runs}
    assert len(plan.measured(grid)) == 6
    assert load_grid(write_grid({}), "digits").rows[0].sweep == ()


def sampled(row: Row) -> str:
    """Key of the state that a row's numbers are about."""
    return metrics_stage(row.runs[0]).samples.state.key


def curve(how: str, x: str = "epochs") -> dict[str, Any]:
    return {"kind": "curve", "x": x, "curve": how}


def test_a_trajectory_takes_states_of_each_longest_run(write_grid: WriteGrid) -> None:
    rows = [{"arm": "mirai-e", "vary": {"epochs": [20, 80]}}, {"vary": {"epochs": [20, 40]}}]
    grid = load_grid(write_grid(*rows, figure=curve("trajectory"), columns=["epochs"]), "digits")
    runs = [row.runs[0] for row in grid.rows]
    assert [(run.epochs, run.at_epoch) for run in runs] == [(80, 20), (80, None), (40, 20), (40, None)]
    assert runs[1] == runs[0].model_copy(update={"at_epoch": None})
    assert [row.axes["epochs"] for row in grid.rows] == [20, 80, 20, 40]
    assert sampled(grid.rows[0]) == state_stage(runs[1]).at(20).key


def test_rows_of_one_label_are_one_trajectory_as_far_as_they_are_alike(write_grid: WriteGrid) -> None:
    lengths = {"e": (40, 80, 300), "e of two tokens": (40,)}
    rows = [
        {"label": label, "arm": "mirai-e", "epochs": epochs, **({} if label == "e" else {"num_tokens": 2})}
        for label, all_epochs in lengths.items()
        for epochs in all_epochs
    ]
    large = {"label": "e", "arm": "mirai-e", "epochs": 60, "size": "L"}
    grid = load_grid(write_grid(*rows, large, figure=curve("trajectory")), "digits")
    runs = [row.runs[0] for row in grid.rows]
    assert [(run.epochs, run.at_epoch) for run in runs] == [(300, 40), (300, 80), (300, None), (40, None), (60, None)]


def test_a_trajectory_differs_from_separate_runs_where_lambda_depends_on_the_length(write_grid: WriteGrid) -> None:
    def states(arm: str, how: str) -> list[str]:
        rows = load_grid(write_grid({"arm": arm, "vary": {"epochs": [60, 80]}}, figure=curve(how)), "digits").rows
        return [sampled(row) for row in rows]

    for arm, same in (("baseline", True), ("mirai-i", True), ("mirai-e", False)):
        first, second = states(arm, "separate"), states(arm, "trajectory")
        assert (first[0] == second[0]) is same, arm
        assert first[1] == second[1]


def test_a_curve_prints_the_axis_that_it_is_drawn_along(write_grid: WriteGrid) -> None:
    name = write_grid({}, {"arm": "mirai-i", "vary": {"num_tokens": [1, 3]}}, figure=curve("separate", "num_tokens"))
    assert [row.axes for row in load_grid(name, "digits").rows] == [{}, {"num_tokens": 1}, {"num_tokens": 3}]


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"figure": curve("separate", "num_tokens")}, "the curve is drawn along num_tokens, which no row sets"),
        (
            {"figure": curve("separate", "fid")},
            "key 'figure.x' has value 'fid': input should be 'epochs', 'num_tokens',",
        ),
        (
            {"figure": {"kind": "graph"}},
            "key 'figure.kind' has value 'graph': allowed: 'curve', 'convergence', 'samples'",
        ),
        (
            {"report": "flops"},
            "`convergence` names the grid with FID against epochs for `report: flops`, and only there",
        ),
        (
            {"figure": curve("trajectory", "num_tokens")},
            'key \'figure\' has value \'{"kind": "curve", "x": "num_tokens", "curve": "trajectory"}\': `curve: trajectory` '
            "draws states on the way of a run, along `x: epochs`, not num_tokens",
        ),
        (
            {"report": "flops", "convergence": "figure1", "figure": curve("separate")},
            "a curve is drawn from metrics, which `report: flops` has none of; draw it in another grid",
        ),
        (
            {"guidance_sweep": [2.0], "figure": {"kind": "samples"}},
            "`guidance_sweep` adds columns to a table, and a figure of samples has none; remove it",
        ),
        ({"convergence": "figure1"}, "`convergence` names the grid with FID against epochs for `report: flops`, and"),
        ({"figure": {"kind": "token_maps", "layer": 13}}, "key 'figure.layer' has value 13: input should be less than"),
        ({"guidance_sweep": [0.5]}, "key 'guidance_sweep.0' has value 0.5: input should be greater than or equal to 1"),
    ],
)
def test_keys_of_a_grid_that_make_no_sense_are_refused(
    keys: dict[str, Any], sentence: str, write_grid: WriteGrid
) -> None:
    assert told(write_grid({}, **keys), "digits").startswith(f"experiments/own.yaml: {sentence}")


def test_only_a_drawing_of_neighbourhoods_needs_no_rows(write_grid: WriteGrid) -> None:
    assert load_grid(write_grid(figure={"kind": "neighbourhoods"}), "digits").rows == ()
    assert told(write_grid(figure={"kind": "samples"}), "digits") == (
        "experiments/own.yaml: `rows` needs at least one row"
    )


TWICE = {"arm": "mirai-i", "vary": {"epochs": [15, 40], "layout": ["1D", "2D"]}}
FLOPS = {"report": "flops"}
CONVERGENCE = {"kind": "convergence", "classes": [0]}


@pytest.mark.parametrize(
    ("rows", "keys", "sentence"),
    [
        ([TWICE], {"figure": curve("separate")}, "figure: two rows are labelled 'row 0' at epochs 15;"),
        (
            [TWICE, {"arm": "baseline", "epochs": 15}],
            {"figure": CONVERGENCE},
            "figure: two rows are labelled 'row 0' at epochs 15;",
        ),
        (
            [{"label": "a"}, {"label": "a", "size": "L"}, {"arm": "mirai-i", "num_tokens": 1}],
            {"figure": curve("separate", "num_tokens")},
            "figure: two rows are labelled 'a' as a level;",
        ),
        (
            [{"arm": "mirai-i"}],
            {"figure": CONVERGENCE},
            "figure, and experiments/own.yaml has no row with `arm: baseline` whose last value is the goal",
        ),
        (
            [{}, {"resolution": 384}],
            {"figure": {"kind": "samples"}},
            "figure: pictures side by side are of one resolution, and these rows have [32, 48]",
        ),
        (
            [{}, {"resolution": 384}],
            {"figure": {"kind": "token_maps"}},
            "figure: pictures side by side are of one resolution, and these rows have [32, 48]",
        ),
        (
            [{"cited": True}],
            {"figure": {"kind": "samples"}},
            "figure: there is nothing to draw, every row is cited",
        ),
        ([{}], {"figure": {"kind": "samples", "classes": []}}, "key 'figure.classes' has value"),
        (
            [{}, {"arm": "mirai-i"}, {"size": "L"}],
            {"figure": CONVERGENCE},
            "figure, and experiments/own.yaml has two baselines, 'row 0' and 'row 2', where one is the goal",
        ),
        (
            [{}, {"label": "row 0", "size": "L", "epochs": 40}],
            {"figure": CONVERGENCE},
            "figure, and experiments/own.yaml has a row 'row 0' of which 'row 0' is not the baseline: size, guidance and",
        ),
        (
            [{}, {"arm": "mirai-i", "guidance": 3.0}],
            {"figure": CONVERGENCE},
            "figure, and experiments/own.yaml has a row 'row 1' of which 'row 0' is not the baseline: size, guidance and",
        ),
        (
            [{}],
            FLOPS | {"convergence": "figure7"},
            "convergence names 'figure7', and experiments/figure7.yaml has two baselines, 'LlamaGen-B' and 'LlamaGen-L',",
        ),
        (
            [{}],
            FLOPS | {"convergence": "table2"},
            "convergence names 'table2': two rows are labelled '+ Mirai-I' at epochs 80; give each line a label of its own",
        ),
        (
            [{"label": "Mirai-I", "arm": "mirai-i"}],
            FLOPS | {"convergence": "figure1"},
            "convergence names 'figure1', which has no row 'Mirai-I'; its labels are LlamaGen-B, + Mirai-I, + Mirai-E",
        ),
        (
            [{}],
            FLOPS | {"convergence": "figure0"},
            "convergence names 'figure0', which is no grid; did you mean 'figure",
        ),
        ([{}], FLOPS | {"convergence": "own"}, "convergence names 'own', which has no metrics against epochs;"),
        ([{}], FLOPS | {"convergence": "table13"}, "convergence names 'table13', which has no metrics against epochs;"),
        (
            [{}],
            FLOPS | {"convergence": "figure10"},
            "convergence names 'figure10', and experiments/figure10.yaml has no row with `arm: baseline` whose last value",
        ),
    ],
)
def test_a_figure_or_table_that_could_not_be_made_of_the_rows_is_refused_before_they_are_trained(
    rows: list[dict[str, Any]], keys: dict[str, Any], sentence: str, write_grid: WriteGrid
) -> None:
    assert told(write_grid(*rows, **keys), "digits").startswith(f"experiments/own.yaml: {sentence}")
