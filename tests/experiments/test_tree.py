"""Training is a tree of states: runs share what they have in common, and nothing else decides a state's parent."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mirai.errors import UserError
from mirai.experiments import paths, plan
from mirai.experiments.grid import load_grid
from mirai.experiments.scale import load_scale
from mirai.experiments.stages import REVISIONS, Cosine, StateStage, metrics_stage, parent_epoch, state_stage
from mirai.states import read_json

StateOf = Callable[..., StateStage]


@pytest.fixture
def state_of(write_grid: Callable[..., str]) -> StateOf:
    """The final state of one row with these axes, at the paper's scale unless told."""

    def state(scale: str = "imagenet256", **axes: Any) -> StateStage:
        return state_stage(load_grid(write_grid(axes), scale).rows[0].runs[0])

    return state


def path_of(state: StateStage) -> list[str]:
    """Keys of a state after each of its epochs."""
    return [state.at(epoch).key for epoch in range(1, state.epoch + 1)]


def shared_epochs(first: StateStage, second: StateStage) -> int:
    """For how many epochs two trainings are one."""
    same = [mine == other for mine, other in zip(path_of(first), path_of(second), strict=False)]
    assert sorted(same, reverse=True) == same, "two trainings that have parted never meet again"
    return sum(same)


def settings(state: StateStage) -> list[tuple[int, Any]]:
    """Length and lambda of each phase."""
    return [(phase.epochs, phase.coefficient) for phase in state.timeline]


def chain(state: StateStage, ladder: tuple[int, ...]) -> list[int]:
    """Epochs of the states that a state grows through."""
    epochs = [state.epoch]
    while (epoch := parent_epoch(state.at(epochs[-1]), ladder)) is not None:
        epochs.append(epoch)
    return epochs[::-1]


MIRAI_E_VARIANTS: dict[str, dict[str, Any]] = {
    "layer 4": {"align_layer": 4},
    "teacher layer": {"teacher_layer": 6},
    "K=1": {"num_tokens": 1},
    "1D": {"layout": "1D"},
    "300 epochs": {"epochs": 300},
    "cosine": {"schedule": {"kind": "cosine", "values": [2.0, 1.0]}},
    "constant": {"schedule": {"kind": "constant", "values": [3.0]}},
    "same slot": {"ema_slot_shift": 0},
}


def test_the_80_epoch_baseline_is_a_checkpoint_of_the_300_epoch_one(state_of: StateOf) -> None:
    short, long = state_of(epochs=80), state_of(epochs=300)
    assert long.at(80).key == short.key
    assert shared_epochs(short, long) == 80


def test_mirai_i_with_constant_lambda_is_a_checkpoint_of_its_longer_self(state_of: StateOf) -> None:
    short, long = state_of(arm="mirai-i", epochs=80), state_of(arm="mirai-i", epochs=300)
    assert long.at(80).key == short.key


@pytest.mark.parametrize("name", MIRAI_E_VARIANTS)
def test_every_mirai_e_variant_grows_out_of_the_baselines_epoch_15(name: str, state_of: StateOf) -> None:
    variant, baseline = state_of(arm="mirai-e", **MIRAI_E_VARIANTS[name]), state_of()
    assert shared_epochs(variant, baseline) == 15
    assert 15 in chain(variant, load_scale("imagenet256").ladder)


def test_output_level_foresight_grows_out_of_it_too(state_of: StateOf) -> None:
    assert shared_epochs(state_of(arm="output-level"), state_of()) == 15


def test_mirai_i_shares_nothing_with_the_baseline(state_of: StateOf) -> None:
    assert shared_epochs(state_of(arm="mirai-i"), state_of()) == 0


def test_mirai_e_of_80_and_300_epochs_part_where_lambda_steps_down(state_of: StateOf) -> None:
    assert shared_epochs(state_of(arm="mirai-e"), state_of(arm="mirai-e", epochs=300)) == 40


def test_a_cosine_of_lambda_shares_nothing_after_its_start(state_of: StateOf) -> None:
    cosine = {"arm": "mirai-e", "schedule": {"kind": "cosine", "values": [2.0, 1.0]}}
    assert shared_epochs(state_of(**cosine, epochs=80), state_of(**cosine, epochs=300)) == 15
    at_once = {"arm": "mirai-i", "schedule": cosine["schedule"]}
    assert shared_epochs(state_of(**at_once, epochs=80), state_of(**at_once, epochs=300)) == 0


def test_a_cosine_learning_rate_shares_nothing(state_of: StateOf) -> None:
    assert shared_epochs(state_of(size="XL", epochs=80), state_of(size="XL", epochs=300)) == 0
    assert shared_epochs(state_of(size="XL"), state_of(size="XL", arm="mirai-e")) == 15


def test_seeds_share_nothing(write_grid: Callable[..., str]) -> None:
    grid = load_grid(write_grid({}, seeds=[0, 1]), "imagenet256")
    assert shared_epochs(*(state_stage(run) for run in grid.rows[0].runs)) == 0


def test_sizes_share_nothing(state_of: StateOf) -> None:
    assert shared_epochs(state_of(size="B"), state_of(size="L")) == 0


def teacher_of(state: StateStage) -> StateStage:
    """The finished baseline behind the last phase."""
    teacher = state.teacher_stage(state.timeline[-1])
    assert teacher is not None
    return teacher


PRETRAINED = {"arm": "mirai-e", "ema": "pretrained"}


def test_a_pretrained_teacher_is_the_finished_baseline_of_seed_0_unless_told(
    write_grid: Callable[..., str], state_of: StateOf
) -> None:
    grid = load_grid(
        write_grid(PRETRAINED, PRETRAINED | {"ema_epochs": 100, "ema_seed": 1}, seeds=[0, 1]), "imagenet256"
    )
    teachers = [[teacher_of(state_stage(run)).key for run in row.runs] for row in grid.rows]
    finished = state_of(epochs=300)
    assert teachers[0] == [finished.key] * 2, "whatever the seed of the student"
    (other,) = set(teachers[1])
    assert finished.at(100).key != other
    assert other == state_stage(load_grid(write_grid({"epochs": 100}, seeds=[1]), "imagenet256").rows[0].runs[0]).key


def test_a_pretrained_teacher_trains_as_its_model_does(state_of: StateOf) -> None:
    """XL with its cosine of the learning rate over the teacher's own epochs, PAR in its own order."""
    for axes in ({"size": "XL"}, {"token_order": "par-4x"}):
        assert teacher_of(state_of(**PRETRAINED, **axes)).key == state_of(**axes, epochs=300).key


def test_a_state_with_a_pretrained_teacher_shares_with_the_baseline_what_it_warms_up(state_of: StateOf) -> None:
    assert shared_epochs(state_of(**PRETRAINED), state_of()) == 0
    assert shared_epochs(state_of(**PRETRAINED, warmup_epochs=15), state_of()) == 15
    assert shared_epochs(state_of(**PRETRAINED), state_of(**PRETRAINED, ema_epochs=100)) == 0
    assert shared_epochs(state_of(**PRETRAINED), state_of(**PRETRAINED, epochs=300)) == 40


def test_a_timeline_says_lambda_over_epochs_with_warm_up_as_plain_training(state_of: StateOf) -> None:
    assert settings(state_of()) == [(80, None)]
    assert settings(state_of(arm="mirai-i")) == [(80, 2.0)]
    assert settings(state_of(arm="mirai-e")) == [(15, None), (25, 2.0), (40, 1.0)]
    assert settings(state_of(arm="mirai-e", epochs=300)) == [(15, None), (135, 2.0), (150, 1.0)]
    assert [phase.foresight is None for phase in state_of(arm="mirai-e").timeline] == [True, False, False]


def test_equal_neighbours_in_a_timeline_are_merged(state_of: StateOf) -> None:
    thirds = {"kind": "thirds", "values": [2.0, 2.0, 1.0]}
    assert settings(state_of(arm="mirai-i", epochs=90, schedule=thirds)) == [(60, 2.0), (30, 1.0)]
    dark = {"kind": "thirds", "values": [0.0, 2.0, 0.0]}
    assert settings(state_of(arm="mirai-e", epochs=90, schedule=dark, warmup_epochs=10)) == [
        (30, None),
        (30, 2.0),
        (30, None),
    ]
    off_again = {"kind": "step", "values": [0.0, 0.0]}
    assert settings(state_of(arm="mirai-e", schedule=off_again)) == [(80, None)]


def test_a_cosine_keeps_its_ends_and_total_length_in_every_cut(state_of: StateOf) -> None:
    state = state_of(arm="mirai-e", schedule={"kind": "cosine", "values": [2.0, 1.0]})
    cosine = Cosine(start=2.0, end=1.0, total_epochs=80)
    assert settings(state) == [(15, None), (65, cosine)]
    assert settings(state.at(40)) == [(15, None), (25, cosine)]


def test_what_comes_after_an_epoch_is_not_in_its_key(state_of: StateOf) -> None:
    later = {"kind": "step", "values": [2.0, 0.5]}
    assert shared_epochs(state_of(arm="mirai-e"), state_of(arm="mirai-e", schedule=later)) == 40


def test_sampling_and_scoring_are_not_in_a_states_key(state_of: StateOf) -> None:
    assert state_of(guidance=1.25, weights="ema").key == state_of().key


def test_a_state_is_cut_at_any_epoch_into_what_it_was(state_of: StateOf) -> None:
    state = state_of(arm="mirai-e")
    assert [settings(state.at(epoch)) for epoch in (14, 15, 16, 40, 41, 80)] == [
        [(14, None)],
        [(15, None)],
        [(15, None), (1, 2.0)],
        [(15, None), (25, 2.0)],
        [(15, None), (25, 2.0), (1, 1.0)],
        [(15, None), (25, 2.0), (40, 1.0)],
    ]
    assert state.boundaries() == [15, 40]
    assert state.at(80) == state


@pytest.mark.parametrize(
    ("axes", "epochs"),
    [
        ({}, [10, 15, 20, 40, 80]),
        ({"epochs": 300}, [10, 15, 20, 40, 80, 100, 150, 200, 300]),
        ({"epochs": 50}, [10, 15, 20, 40, 50]),
        ({"epochs": 7}, [7]),
        ({"epochs": 10}, [10]),
        ({"epochs": 16}, [10, 15, 16]),
        # a boundary of the own timeline that is no rung of the ladder: warm-up to 13, a step at 33
        ({"arm": "mirai-e", "epochs": 66, "warmup_epochs": 13}, [10, 13, 15, 20, 33, 40, 66]),
    ],
)
def test_a_state_grows_through_the_ladder_and_its_own_boundaries(
    axes: dict[str, Any], epochs: list[int], state_of: StateOf
) -> None:
    assert chain(state_of(**axes), load_scale("imagenet256").ladder) == epochs


def test_without_a_ladder_only_the_own_boundaries_cut(state_of: StateOf) -> None:
    assert chain(state_of(arm="mirai-e"), ()) == [15, 40, 80]
    assert chain(state_of(), ()) == [80]


def parents() -> dict[str, str | None]:
    """The parent of every state planned so far."""
    return {key: planned.parent for key, planned in plan._planned.items() if isinstance(planned.stage, StateStage)}


def forget() -> None:
    """As a new process would start."""
    plan.plan_grid.cache_clear()
    plan._planned.clear()
    load_scale.cache_clear()


def test_the_planned_trees_of_the_paper_have_these_sizes(project: Path) -> None:
    plan.plan_grid("table2", "imagenet256")
    # baseline 10 15 20 40 80; four Mirai-I of five states each; five Mirai-E with 20, 40 and 80 beyond warm-up
    assert len(parents()) == 5 + 4 * 5 + 5 * 3
    plan.plan_grid("demo", "imagenet256")
    assert len(parents()) == 40, "the demo's three runs are rows of Table 2"
    plan.plan_grid("table5", "imagenet256")
    assert len(parents()) == 40 + 5 + 3, "Table 5 adds a Mirai-I looking right, and a Mirai-E without the current token"


def test_every_planned_state_has_its_parent_planned_and_ends_at_a_root(project: Path) -> None:
    plan.plan_grid("table2", "imagenet256")
    for key in parents():
        steps = 0
        node: str | None = key
        while node is not None:
            node, steps = parents()[node], steps + 1
            assert steps < 20


def test_another_grid_changes_no_parent_whatever_it_asks_for(write_grid: Callable[..., str]) -> None:
    plan.plan_grid("table2", "imagenet256")
    before = parents()
    forget()
    rows = [{"epochs": epochs} for epochs in (11, 33, 79)] + [{"arm": "mirai-e", "epochs": 79, "warmup_epochs": 9}]
    plan.plan_grid(write_grid(*rows), "imagenet256")
    plan.plan_grid("table2", "imagenet256")
    assert {key: parents()[key] for key in before} == before


def add_rung(rung: int) -> None:
    """Edit the paper's scale by hand, as a user would."""
    path = paths.SCALES / "imagenet256.yaml"
    text = path.read_text()
    edited = text.replace("ladder: [10, 15, 20, 40, 80,", f"ladder: [10, 15, 20, 40, {rung}, 80,")
    assert edited != text
    path.write_text(edited)


def final_state(grid: str = "table2", row: int = 0) -> StateStage:
    return metrics_stage(plan.plan_grid(grid, "imagenet256").rows[row].runs[0]).samples.state


def test_a_rung_added_later_is_used_by_states_that_are_not_begun(project: Path) -> None:
    add_rung(60)
    state = final_state()
    assert plan.lookup(state.key).parent == state.at(60).key


def freeze_everything() -> None:
    for planned in list(plan._planned.values()):
        plan.freeze(planned)


def test_a_rung_added_later_leaves_begun_states_their_parent(project: Path) -> None:
    state = final_state("demo")
    freeze_everything()
    before = parents()
    forget()
    add_rung(60)
    assert final_state("demo").key == state.key
    assert parents() == before
    assert plan.lookup(state.key).parent == state.at(40).key


def test_a_state_is_frozen_once_with_its_parent_and_never_again(project: Path) -> None:
    planned = plan.lookup(final_state().key)
    path = plan.freeze(planned)
    written = path.stat().st_mtime_ns, path.stat().st_ino
    assert read_json(path)["parent_epoch"] == 40
    add_rung(60)
    plan.freeze(planned)
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == written


def test_a_queued_job_finds_its_recipe_without_its_grid(project: Path) -> None:
    state = final_state("demo", row=2)
    freeze_everything()
    known = {key: planned.stage for key, planned in plan._planned.items()}
    forget()
    for path in (project / "experiments").glob("*.yaml"):
        path.unlink()
    assert plan.lookup(state.key).stage == state
    assert plan.lookup(state.key).parent == state.at(40).key
    for key, stage in known.items():
        thawed = plan.lookup(key).stage
        assert thawed.key == key
        assert thawed == stage


def test_a_key_that_nobody_planned_is_refused(project: Path) -> None:
    with pytest.raises(UserError, match=r"has a stage with key 0123456789abcdef$"):
        plan.lookup("0123456789abcdef")


def test_a_recipe_frozen_by_another_revision_is_refused(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = final_state().key
    plan.freeze(plan.lookup(old))
    forget()
    monkeypatch.setitem(REVISIONS, "state", 99)
    with pytest.raises(UserError, match="was made by another revision of mirai: today this recipe has key"):
        plan.lookup(old)


def test_a_frozen_recipe_with_other_fields_is_refused_in_one_sentence(project: Path) -> None:
    state = final_state()
    path = plan.freeze(plan.lookup(state.key))
    path.write_text(path.read_text().replace('"class_dropout"', '"class_drop"'))
    forget()
    with pytest.raises(UserError, match="was made by another version of mirai, which had other recipes"):
        plan.lookup(state.key)


def test_a_state_waits_for_its_parents_weights_and_for_its_resume_point_once_they_are_there(project: Path) -> None:
    state = final_state(row=1)
    parent = state.at(40).key
    assert paths.manifest("state", parent) in plan.inputs(state.key)
    paths.manifest("state", parent).parent.mkdir(parents=True)
    paths.manifest("state", parent).write_text("{}")
    assert paths.resume(parent) in plan.inputs(state.key)
    assert paths.manifest("state", parent) not in plan.inputs(state.key)


def test_a_published_stage_waits_for_nothing(project: Path) -> None:
    state = final_state()
    assert plan.inputs(state.key)
    paths.manifest("state", state.key).parent.mkdir(parents=True)
    paths.manifest("state", state.key).write_text("{}")
    assert plan.inputs(state.key) == []


def test_a_collected_optimiser_is_restored_from_what_training_needed(project: Path) -> None:
    state = final_state(row=1)
    paths.manifest("state", state.key).parent.mkdir(parents=True)
    paths.manifest("state", state.key).write_text("{}")
    assert plan.inputs(state.key) == []
    kinds = {path.parent.parent.name for path in plan.restore_inputs(state.key)}
    assert kinds == {"codes", "encoder", "state"}
    paths.resume(state.key).write_text("{}")
    assert plan.restore_inputs(state.key) == []


def test_a_state_waits_for_the_weights_of_its_teacher_which_grows_on_the_ladder(
    project: Path, write_grid: Callable[..., str]
) -> None:
    grid = plan.plan_grid(write_grid(PRETRAINED), "imagenet256")
    state = state_stage(grid.rows[0].runs[0])
    teacher = teacher_of(state)
    assert plan.lookup(teacher.key).parent == teacher.at(200).key
    weights = paths.manifest("state", teacher.key)
    assert plan.inputs(state.at(10).key) == [paths.manifest("codes", state.codes_stage().key), weights]
    assert weights in plan.restore_inputs(state.key)
    assert teacher.needs() == [state.codes_stage()]


def test_a_job_goes_on_with_a_state_only_once_its_teacher_is_there(
    project: Path, write_grid: Callable[..., str]
) -> None:
    grid = plan.plan_grid(write_grid(PRETRAINED | {"warmup_epochs": 15}), "imagenet256")
    state = state_stage(grid.rows[0].runs[0]).at(20)
    made = [("codes", state.codes_stage().key), ("state", state.at(15).key), ("state", teacher_of(state).key)]
    for kind, key in made:
        assert not plan.ready(state.key)
        paths.manifest(kind, key).parent.mkdir(parents=True)
        paths.manifest(kind, key).write_text("{}")
    assert not plan.ready(state.key), "the optimiser of its trunk is not there"
    paths.resume(state.at(15).key).write_text("{}")
    assert plan.ready(state.key)


def test_a_frozen_recipe_knows_its_teacher(project: Path, write_grid: Callable[..., str]) -> None:
    grid = plan.plan_grid(write_grid(PRETRAINED), "imagenet256")
    state = state_stage(grid.rows[0].runs[0])
    freeze_everything()
    forget()
    (project / "experiments/own.yaml").unlink()
    assert plan.lookup(state.key).stage == state
    assert plan.lookup(teacher_of(state).key).parent == teacher_of(state).at(200).key


def test_a_table_waits_for_the_metrics_of_its_rows_and_a_picture_for_less(write_grid: Callable[..., str]) -> None:
    grid = plan.plan_grid("table2", "imagenet256")
    metrics = [metrics_stage(run) for row in grid.rows for run in row.runs]
    assert plan.table_inputs("table2", "imagenet256") == [paths.manifest("metrics", stage.key) for stage in metrics]
    drawn = {kind: write_grid(extends="table2", figure={"kind": kind}, name=kind) for kind in ("samples", "token_maps")}
    samples = [paths.manifest("samples", stage.samples.key) for stage in metrics]
    assert plan.figure_inputs(drawn["samples"], "imagenet256") == samples
    states = [paths.manifest("state", stage.samples.state.key) for stage in metrics]
    assert plan.figure_inputs(drawn["token_maps"], "imagenet256") == states


def test_a_trunk_of_plain_training_needs_no_encoder(project: Path) -> None:
    state = final_state(row=1)
    kinds = {path.parent.parent.name for path in plan.inputs(state.key)}
    assert kinds == {"codes", "encoder", "state"}
    assert {path.parent.parent.name for path in plan.inputs(final_state(row=5).at(15).key)} == {"codes", "state"}


def test_the_schedule_leaves_no_trace_in_a_phase(state_of: StateOf) -> None:
    first, last = state_of(arm="mirai-i", schedule={"kind": "constant", "values": [2.0]}, warmup_epochs=15).timeline
    assert first.foresight is None
    assert last.foresight is not None
    assert last.foresight.schedule is None
