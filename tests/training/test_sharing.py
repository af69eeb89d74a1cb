"""Sharing is invisible: a state grown through shared trunks has the checksums of the same recipe trained in one go."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from mirai.experiments import paths
from mirai.experiments.canonical import canonical_run
from mirai.experiments.offsets import grid_offsets, scan_offsets
from mirai.experiments.recipe import (
    Encoder,
    EncoderTraining,
    Evaluation,
    FeatureNetwork,
    Foresight,
    Head,
    Run,
    Sampling,
    Schedule,
    Teacher,
)
from mirai.experiments.stages import StateStage, parent_epoch, state_stage
from mirai.states import is_published, read_json
from tests.training import tiny

pytestmark = pytest.mark.full

EPOCHS = 6
LADDER = (1, 4)  # rungs inside phases; warm-up ends at 2, steps lie at 3, thirds at 2 and 4
EVALUATION = Evaluation(features=FeatureNetwork(name="none", kind="inception"), num_reference=1)
NO_TRAINING = EncoderTraining(
    objective="none", width=8, num_layers=1, num_heads=1, steps=0, batch_size=1, learning_rate=1.0, num_images=1
)
STEP = Schedule(kind="step", values=(2.0, 1.0), warmup_epochs=2)
COSINE = Schedule(kind="cosine", values=(2.0, 0.0), warmup_epochs=2)


def mirai_e(schedule: Schedule = STEP, **update: Any) -> Foresight:
    fields = {"source": "ema", "offsets": grid_offsets(3), "layer": 1, "head": Head(width=8), "schedule": schedule}
    return Foresight(**(fields | update))


MIRAI_I = mirai_e(
    Schedule(kind="constant", values=(2.0,)),
    source="encoder",
    encoder=Encoder(name="fixed", training=NO_TRAINING),
    offsets=grid_offsets(1),
)
PRETRAINED: dict[str, Any] = {"source": "pretrained", "teacher": Teacher(epochs=2, seed=1)}
NOTHING: dict[str, Any] = {}

# axis -> foresight, updates of the training, updates of the model
AXES: dict[str, tuple[Foresight | None, dict[str, Any], dict[str, Any]]] = {
    "baseline": (None, NOTHING, NOTHING),
    "constant lambda from the start": (mirai_e(Schedule(kind="constant", values=(2.0,))), NOTHING, NOTHING),
    "step after warm-up": (mirai_e(), NOTHING, NOTHING),
    "step to 0.5": (mirai_e(Schedule(kind="step", values=(2.0, 0.5))), NOTHING, NOTHING),
    "thirds": (mirai_e(Schedule(kind="thirds", values=(2.0, 1.0, 0.5))), NOTHING, NOTHING),
    "lambda off and on again": (mirai_e(Schedule(kind="thirds", values=(2.0, 0.0, 1.0))), NOTHING, NOTHING),
    "cosine of lambda": (mirai_e(COSINE), NOTHING, NOTHING),
    "cosine of the learning rate": (mirai_e(), {"lr_schedule": "cosine"}, NOTHING),
    "baseline with a cosine of the learning rate": (None, {"lr_schedule": "cosine"}, NOTHING),
    "pretrained teacher": (mirai_e(Schedule(kind="step", values=(2.0, 1.0)), **PRETRAINED), NOTHING, NOTHING),
    "pretrained teacher after warm-up, all cosines": (
        mirai_e(COSINE, **PRETRAINED),
        {"lr_schedule": "cosine"},
        NOTHING,
    ),
    "encoder": (MIRAI_I, NOTHING, NOTHING),
    "output level": (mirai_e(level="output", source=None), NOTHING, NOTHING),
    "transformer head": (mirai_e(head=Head(kind="causal-transformer")), NOTHING, NOTHING),
    "1D": (mirai_e(layout="1D", offsets=scan_offsets(3)), NOTHING, NOTHING),
    "another teacher layer, same slot": (mirai_e(layer=2, teacher_layer=1, ema_slot_shift=0), NOTHING, NOTHING),
    "PAR": (mirai_e(), NOTHING, {"token_order": "par-4x"}),
    "PAR with its seams": (mirai_e(seams="keep"), NOTHING, {"token_order": "par-4x"}),
    "another seed": (mirai_e(), {"seed": 7}, NOTHING),
}


def run_of(axis: str) -> Run:
    foresight, training, model = AXES[axis]
    run = Run(
        data=tiny.DATA,
        tokenizer=tiny.TOKENIZER,
        model=tiny.MODEL.model_copy(update=model),
        foresight=foresight,
        training=tiny.TRAINING.model_copy(update=training),
        epochs=EPOCHS,
        sampling=Sampling(num_samples=1, batch_size=1),
        evaluation=EVALUATION,
    )
    return canonical_run(run)


def checksums(state: StateStage) -> dict[str, str]:
    """SHA-256 of a finished state's weights and of its resume point."""
    manifests = paths.manifest("state", state.key), paths.resume(state.key)
    return {name: entry["sha256"] for path in manifests for name, entry in read_json(path)["payloads"].items()}


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two projects with the same codes: for trainings in one go, and for those of all axes, which share their trunks."""
    alone, shared = tmp_path_factory.mktemp("alone"), tmp_path_factory.mktemp("shared")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(alone)
        tiny.make_codes()
    shutil.copytree(alone, shared, dirs_exist_ok=True)
    return alone, shared


def make(state: StateStage, parent: StateStage | None = None) -> None:
    """Train a state after its teachers, unless another axis has made it."""
    for teacher in filter(None, map(state.teacher_stage, state.timeline)):
        make(teacher)
    if not is_published(paths.manifest("state", state.key)):
        tiny.run(state, parent)


def grow(state: StateStage) -> list[int]:
    """Make a state out of its ancestors -> their epochs and its own."""
    epoch = parent_epoch(state, LADDER)
    parent = None if epoch is None else state.at(epoch)
    through = [] if parent is None else grow(parent)
    make(state, parent)
    assert read_json(paths.resume(state.key))["started_at_step"] == 4 * (epoch or 0), "it went on from its parent"
    return [*through, state.epoch]


@pytest.mark.parametrize("axis", AXES)
def test_a_state_grown_through_shared_trunks_is_the_one_trained_in_one_go(
    axis: str, stores: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    state = state_stage(run_of(axis))
    monkeypatch.chdir(stores[0])
    make(state)
    alone = checksums(state)
    monkeypatch.chdir(stores[1])
    assert grow(state) == sorted({*LADDER, *state.boundaries(), EPOCHS})
    assert checksums(state) == alone
    assert set(alone) == {"weights", "state"}


def test_every_axis_is_a_training_of_its_own() -> None:
    assert len({state_stage(run_of(axis)).key for axis in AXES}) == len(AXES)
