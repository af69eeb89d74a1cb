"""A PAR training is like any other: it learns, its foresight leaves out the seams, and it resumes to the bit."""

from __future__ import annotations

import json
import math
import os
import signal
from pathlib import Path

import pytest

from mirai.experiments import paths
from mirai.experiments.stages import Phase, StateStage
from mirai.models.transformer import Transformer
from mirai.training import loop
from mirai.training.state import TrainState
from tests.training import tiny
from tests.training.test_resume import at_call

pytestmark = pytest.mark.full

MODEL = tiny.MODEL.model_copy(update={"token_order": "par-4x"})


@pytest.fixture(autouse=True)
def _codes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny.make_codes()


def par(timeline: tuple[Phase, ...] = tiny.TIMELINE, **training: object) -> StateStage:
    return tiny.stage(timeline, **training).model_copy(update={"model": MODEL})


def journal(state: StateStage) -> list[dict[str, float]]:
    return [json.loads(line) for line in (paths.folder("state", state.key) / "log.jsonl").read_text().splitlines()]


def test_par_begins_at_guessing_and_learns_with_foresight_of_its_ema() -> None:
    state = par((Phase(epochs=12, foresight=tiny.MIRAI_E, coefficient=2.0),), learning_rate=5e-3)
    kept = tiny.run(state)
    lines = journal(state)
    assert lines[0]["next_token"] == pytest.approx(math.log(16), abs=0.05)
    assert lines[-1]["next_token"] < lines[0]["next_token"] - 0.1
    assert lines[-1]["foresight"] < lines[0]["foresight"]
    assert kept["exp_avg_sq/model/spe_tok_embeddings.special_embeddings.weight"].all()
    assert kept["ema/spe_tok_embeddings.special_embeddings.weight"].shape == (3, 16)


def test_interrupted_par_training_ends_in_the_same_bits() -> None:
    whole = tiny.run(par())
    paths.folder("state", par().key).rename(paths.folder("state", "whole"))
    assert os.WTERMSIG(tiny.run_and_die(par(), at_call(loop, "batch_indices", 14))) == signal.SIGKILL
    assert tiny.same_bits(tiny.run(par(), save_every_steps=3), whole)


def test_par_and_raster_trainings_are_different_states() -> None:
    assert par().key != tiny.stage().key
    assert par().codes_stage().key == tiny.stage().codes_stage().key


@pytest.mark.parametrize(("order", "pairs"), [("raster", [16, 12, 12]), ("par-4x", [16, 8, 8])])
def test_foresight_pairs_of_a_phase_leave_out_borders_and_what_the_model_wrote_before(
    order: str, pairs: list[int]
) -> None:
    size = tiny.MODEL.model_copy(update={"token_order": order})
    state = TrainState(Transformer(size, num_classes=10, codebook_size=16, grid_side=4), tiny.TRAINING)
    state.enter(tiny.MIRAI_E, 16)
    assert state.objective is not None
    assert state.objective.valid.sum(dim=0).tolist() == pairs
