"""What the loop promises beside exact resume: ranks, phases, the journal, and stopping on nonsense."""

from __future__ import annotations

import json
import math
import os
import signal
import socket
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp

from mirai.data.codes import CodeStore
from mirai.errors import UserError
from mirai.experiments import paths
from mirai.experiments.offsets import grid_offsets
from mirai.experiments.recipe import Cosine, Encoder, EncoderTraining, Foresight, Head
from mirai.experiments.stages import Phase, StateStage
from mirai.ranks import Ranks
from mirai.states import Lock
from mirai.training import loop
from tests.forked import fork
from tests.training import tiny

pytestmark = pytest.mark.full


@pytest.fixture(autouse=True)
def _codes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny.make_codes()


def journal(state) -> list[dict]:
    return [json.loads(line) for line in (paths.folder("state", state.key) / "log.jsonl").read_text().splitlines()]


def test_first_loss_is_the_logarithm_of_the_codebook_size():
    state = tiny.stage((Phase(epochs=1),), learning_rate=1e-12)
    tiny.run(state)
    assert journal(state)[0]["next_token"] == pytest.approx(math.log(16), abs=1e-5)


def test_journal_has_loss_terms_norms_lambda_and_speed_of_every_phase():
    state = tiny.stage()
    tiny.run(state)
    lines = journal(state)
    assert [line["step"] for line in lines] == [4, 8, 12, 16, 20, 24]
    assert [line["lambda"] for line in lines] == [0, 0, 2, 2, 1, 1]
    assert "foresight" not in lines[1]
    assert {
        "loss",
        "next_token",
        "foresight",
        "grad_norm",
        "grad_norm_model",
        "grad_norm_heads",
        "images_per_second",
    } <= set(lines[2])
    assert lines[2]["loss"] == pytest.approx(lines[2]["next_token"] + 2 * lines[2]["foresight"], rel=1e-5)


def test_resumed_journal_repeats_no_line():
    state = tiny.stage()
    tiny.run_and_die(state, lambda die: setattr(loop, "drop_labels", _dying(loop.drop_labels, 12, die)))
    tiny.run(state)
    steps = [line["step"] for line in journal(state)]
    assert steps == sorted(set(steps))


def _dying(original, number, die):
    calls = []

    def counted(*arguments):
        calls.append(None)
        return die() if len(calls) == number else original(*arguments)

    return counted


def test_non_finite_loss_stops_with_step_and_phase_and_publishes_nothing(monkeypatch):
    state = tiny.stage()
    original = loop.drop_labels
    calls = []

    def poisoned(labels, dropped, null_class):
        calls.append(None)
        if len(calls) == 11:
            for parameter in models[0].parameters():
                parameter.data.fill_(float("nan"))
        return original(labels, dropped, null_class)

    models = []
    build = loop._build_model
    monkeypatch.setattr(loop, "_build_model", lambda *a: models.append(build(*a)) or models[-1])
    monkeypatch.setattr(loop, "drop_labels", poisoned)
    with pytest.raises(UserError, match=r"not finite before step 12, phase foresight \(ema\).*progress-000000009.json"):
        tiny.run(state, save_every_steps=3)
    assert not paths.manifest("state", state.key).exists()
    monkeypatch.undo()


def test_foresight_heads_change_neither_initialisation_nor_dropout_nor_data():
    """With lambda next to nothing the model goes the baseline's way, although heads exist and draw random numbers."""
    loss_free = Phase(epochs=1, foresight=tiny.MIRAI_E, coefficient=1e-30)
    baseline, mirai = (tiny.run(tiny.stage((phase,), clip_norm=1e9)) for phase in (Phase(epochs=1), loss_free))
    for name in baseline:
        torch.testing.assert_close(mirai[name], baseline[name], rtol=0, atol=1e-6)
    assert any(name.startswith("heads/") for name in mirai)


def test_ema_and_optimiser_states_are_kept_for_every_parameter():
    kept = tiny.run(tiny.stage())
    model = {name for name in kept if name.startswith("model/")}
    heads = {name for name in kept if name.startswith("heads/")}
    assert len(heads) == 3 * 6  # three offsets, three linear maps with biases
    for prefix in ("exp_avg", "exp_avg_sq", "step"):
        assert {name for name in kept if name.startswith(f"{prefix}/")} == {
            f"{prefix}/{name}" for name in model | heads
        }
    assert {name.replace("ema/", "model/") for name in kept if name.startswith("ema/")} == model
    some_head = next(iter(heads))
    assert kept[f"step/{some_head}"] == 16  # steps since the phase began
    assert kept["step/model/norm.weight"] == 24


@pytest.mark.parametrize("class_dropout", [0.0, 0.5])
def test_dropped_labels_train_the_null_class_and_nothing_else_does(class_dropout):
    model = tiny.MODEL.model_copy(update={"class_dropout": class_dropout})
    kept = tiny.run(tiny.stage((Phase(epochs=2),)).model_copy(update={"model": model}))
    null_row = kept["exp_avg_sq/model/cls_embedding.embedding_table.weight"][10]
    assert bool(null_row.any()) == (class_dropout > 0)


OTHER_FORESIGHT = {
    "mirai-i": Foresight(
        source="encoder",
        offsets=grid_offsets(1),
        layer=1,
        head=Head(width=8),
        encoder=Encoder(
            name="fixed",
            training=EncoderTraining(
                objective="none",
                width=8,
                num_layers=1,
                num_heads=1,
                steps=0,
                batch_size=1,
                learning_rate=1.0,
                num_images=1,
            ),
        ),
    ),
    "output-level": Foresight(level="output", source=None, offsets=grid_offsets(3), layer=None, head=None),
    "another teacher layer": tiny.MIRAI_E.model_copy(update={"layer": 2, "teacher_layer": 1, "ema_slot_shift": 0}),
}


@pytest.mark.parametrize("name", OTHER_FORESIGHT)
def test_every_source_of_foresight_trains_and_its_loss_falls(name):
    state = tiny.stage((Phase(epochs=12, foresight=OTHER_FORESIGHT[name], coefficient=2.0),), learning_rate=5e-3)
    tiny.run(state)
    losses = [line["foresight"] for line in journal(state)]
    assert losses[-1] < losses[0]


def test_cosine_lambda_moves_within_its_phase_and_cosine_learning_rate_ends_near_zero():
    phase = Phase(
        epochs=4,
        foresight=tiny.MIRAI_E,
        coefficient=Cosine(start=2.0, end=0.0, total_epochs=4),
        learning_rate_over=4,
    )
    state = tiny.stage((phase,))
    tiny.run(state)
    values = [line["lambda"] for line in journal(state)]
    assert values == sorted(values, reverse=True)
    assert values[-1] == pytest.approx(1 + math.cos(math.pi * 15 / 16), rel=1e-6)


def _rank(rank: int, folder: str, stage: str, batches: Any, port: int) -> None:
    os.chdir(folder)
    place = {"RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()})
    original = CodeStore.codes

    def recorded(self: CodeStore, images: Any, views: Any) -> Any:
        batches.append((rank, images.tolist(), views.tolist()))
        return original(self, images, views)

    CodeStore.codes = recorded  # type: ignore[method-assign]
    tiny.run(StateStage.model_validate_json(stage))


def test_two_ranks_see_the_samples_of_one_and_share_its_gradient(tmp_path):
    """Without dropout, whose masks are each rank's own. After one step AdamW's first moment is a tenth of the gradient."""
    quiet = tiny.MODEL.model_copy(update={"token_dropout": 0.0, "attention_dropout": 0.0, "ffn_dropout": 0.0})
    state = tiny.stage((Phase(epochs=1, foresight=tiny.MIRAI_E, coefficient=2.0),), epoch_images=4)
    state = state.model_copy(update={"model": quiet})
    alone = tiny.run(state)
    paths.folder("state", state.key).rename(tmp_path / "alone")

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    batches = mp.Manager().list()
    mp.spawn(_rank, (str(tmp_path), state.model_dump_json(), batches, port), nprocs=2)

    (images0, views0), (images1, views1) = (next((i, v) for r, i, v in batches if r == rank) for rank in (0, 1))
    images, views = loop.batch_indices(0, seed=0, num_images=40, num_views=2, batch_size=4)
    assert (images0 + images1, views0 + views1) == (images.tolist(), views.tolist())
    for name, tensor in tiny.tensors(state).items():
        if name.startswith("exp_avg/"):
            torch.testing.assert_close(tensor, alone[name], rtol=1e-4, atol=1e-7)


def test_ranks_that_would_go_on_from_different_steps_stop_before_they_train(capfd):
    """A rank whose read of the newest point fails: DDP would average gradients of different weights in silence."""
    state = tiny.stage()
    parent = state.at(4)
    tiny.run(parent)

    def work() -> None:
        if os.environ["RANK"] == "1":
            loop.newest = lambda key, parent: None
        tiny.run(state, parent)

    assert fork(2, work) == [2, 2]
    assert "the ranks do not agree on the step to go on from: [0, 16]" in capfd.readouterr().err
    assert not paths.manifest("state", state.key).exists()


def test_no_rank_goes_on_or_leaves_while_the_first_one_saves(monkeypatch):
    events = []
    save, wait = loop.save_progress, Ranks.wait
    monkeypatch.setattr(loop, "save_progress", lambda *a: (save(*a), events.append("saved")))
    monkeypatch.setattr(Ranks, "wait", lambda self: (wait(self), events.append("all are here")))
    tiny.run(tiny.stage(), save_every_steps=8)
    assert events == ["saved", "all are here"] * 2 + ["all are here"]


def test_foresight_of_the_current_token_alone_at_the_output_level_has_no_heads_to_clip():
    foresight = Foresight(level="output", source=None, offsets=grid_offsets(1), layer=None, head=None)
    state = tiny.stage((tiny.NEXT_TOKEN, Phase(epochs=2, foresight=foresight, coefficient=2.0)))
    tiny.run(state)
    assert all("grad_norm" in line and "grad_norm_heads" not in line for line in journal(state))


def test_rank_count_that_does_not_divide_the_batch_is_refused(monkeypatch):
    with pytest.raises(UserError, match="3 ranks do not divide the global batch of 4"):
        loop._steps_per_epoch(
            tiny.stage(),
            CodeStore.open(paths.folder("codes", tiny.stage().codes_stage().key)),
            Ranks(0, 3, torch.device("cpu")),
        )


def test_second_trainer_of_one_state_is_refused():
    state = tiny.stage()
    with Lock(paths.folder("state", state.key) / "lock"), pytest.raises(UserError, match="is being written by process"):
        tiny.run(state)


def test_stop_signal_saves_and_the_same_command_goes_on(monkeypatch):
    state = tiny.stage()
    original = loop.drop_labels
    calls = []

    def signalling(*arguments):
        calls.append(None)
        if len(calls) == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments)

    monkeypatch.setattr(loop, "drop_labels", signalling)
    with pytest.raises(loop.Interrupted, match="stopped at step 8 of 24"):
        tiny.run(state)
    monkeypatch.setattr(loop, "drop_labels", original)
    resumed = tiny.run(state)
    other = tiny.stage().model_copy()
    paths.folder("state", other.key).rename(paths.folder("state", "interrupted"))
    assert tiny.same_bits(resumed, tiny.run(other))
