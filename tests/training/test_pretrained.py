"""Mirai-E (Pretrained): the targets are states of the frozen EMA of a finished baseline (reading 9.16)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from mirai.errors import UserError
from mirai.experiments import paths
from mirai.experiments.plan import Planned
from mirai.experiments.recipe import Foresight, Teacher
from mirai.experiments.site import Site
from mirai.experiments.stages import Phase, StateStage
from mirai.make import make
from mirai.models.transformer import Transformer
from mirai.store import open_sources, open_state
from mirai.training.state import TrainState
from mirai.training.targets import Targets
from tests.training import tiny

PRETRAINED = Foresight.model_validate(
    {name: getattr(tiny.MIRAI_E, name) for name in Foresight.model_fields}
    | {"source": "pretrained", "teacher": Teacher(epochs=2, seed=3)}
)


@pytest.fixture
def state(project: Path) -> StateStage:
    """A state with a pretrained teacher from its first step, and its codes."""
    tiny.make_codes()
    return tiny.stage(
        (
            Phase(epochs=6, foresight=PRETRAINED, coefficient=2.0),
            Phase(epochs=1, foresight=PRETRAINED, coefficient=1.0),
        ),
        learning_rate=5e-3,
    )


def teacher_of(state: StateStage) -> StateStage:
    teacher = state.teacher_stage(state.timeline[0])
    assert teacher is not None
    return teacher


def test_targets_are_states_of_the_teachers_ema_whatever_the_trained_model_is(state: StateStage) -> None:
    teacher = teacher_of(state)
    tiny.run(teacher)
    student = Transformer(tiny.MODEL, num_classes=10, codebook_size=16, grid_side=4)
    sources = open_sources(state, tiny.NUMERICS, Site(), torch.device("cpu"))
    targets = Targets(PRETRAINED, TrainState(student, tiny.TRAINING), None, sources)  # type: ignore[arg-type]
    tokens, labels = torch.arange(32).view(2, 16) % 16, torch.tensor([1, 2])
    ema, raw = (open_state(teacher, weights, tiny.NUMERICS) for weights in ("ema", "raw"))
    given = targets(tokens, labels, None, None)  # type: ignore[arg-type]
    assert torch.equal(given, ema.hidden_states(tokens, labels, 1, consumed=True))
    assert not torch.equal(given, raw.hidden_states(tokens, labels, 1, consumed=True))
    assert targets.width == 16


def test_phases_that_differ_in_lambda_alone_share_one_frozen_teacher(state: StateStage) -> None:
    tiny.run(teacher_of(state))
    sources = open_sources(state, tiny.NUMERICS, Site(), torch.device("cpu"))
    first, second = (sources.teacher(phase.foresight) for phase in state.timeline if phase.foresight)
    assert first is second
    assert not any(parameter.requires_grad for parameter in first.parameters())


def test_a_training_towards_a_pretrained_teacher_learns_its_targets(state: StateStage) -> None:
    tiny.run(teacher_of(state))
    before = paths.manifest("state", teacher_of(state).key).read_bytes()
    tiny.run(state)
    lines = [json.loads(line) for line in (paths.folder("state", state.key) / "log.jsonl").read_text().splitlines()]
    assert lines[-1]["foresight"] < lines[0]["foresight"] - 0.1
    assert paths.manifest("state", teacher_of(state).key).read_bytes() == before


def test_a_training_whose_teacher_is_not_there_is_refused_before_anything_else(state: StateStage) -> None:
    with pytest.raises(UserError) as caught:
        make(Planned(state, "digits"))
    missing = paths.manifest("state", teacher_of(state).key)
    target = paths.manifest("state", state.key)
    assert str(caught.value) == f"{missing} is missing; `snakemake --cores 2 {target}` makes all that is needed"
