"""Exact resume: whatever interrupts a training, running it again ends in the same bits."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from mirai.experiments import paths, plan
from mirai.experiments.stages import Phase
from mirai.make import _numerics_behind
from mirai.states import is_published, read_json
from mirai.training import checkpoints, loop
from mirai.training.state import TrainState
from tests.training import tiny

pytestmark = pytest.mark.full

Die = Callable[[], None]


def at_call(module: ModuleType, name: str, number: int) -> Callable[[Die], None]:
    """Die at the call of that number (from 1) of a function."""

    def plant(die: Die) -> None:
        original, calls = getattr(module, name), []

        def counted(*arguments: Any, **keywords: Any) -> Any:
            calls.append(None)
            if len(calls) == number:
                die()
            return original(*arguments, **keywords)

        setattr(module, name, counted)

    return plant


def at_step(owner: Any, name: str, step: int) -> Callable[[Die], None]:
    """Die in a method of the training state at a step."""

    def plant(die: Die) -> None:
        original = getattr(owner, name)
        setattr(owner, name, lambda self, *a: die() if self.step == step else original(self, *a))

    return plant


# Where the process kills itself. The run has 24 steps, 4 an epoch, and a resume point every 3.
FAULTS = {
    "in a step": at_step(TrainState, "update_ema", 10),
    "at a phase boundary": at_step(TrainState, "enter", 8),
    "before the first step of an epoch": at_call(loop, "batch_indices", 13),
    "in the middle of a save": at_call(os, "fsync", 7),
    "between write and rename": at_call(os, "replace", 9),
    "between a payload and its manifest": at_call(checkpoints, "write_json", 4),
    "between resume.json and weights.json": at_call(checkpoints, "publish", 2),
}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("whole"))
        tiny.make_codes()
        return tiny.run(tiny.stage())


@pytest.mark.parametrize("fault", FAULTS, ids=lambda name: name.replace(" ", "-"))
def test_killed_training_ends_in_the_same_bits(fault, uninterrupted, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny.make_codes()
    assert os.WTERMSIG(tiny.run_and_die(tiny.stage(), FAULTS[fault])) == signal.SIGKILL
    assert not is_published(paths.manifest("state", tiny.stage().key))
    assert tiny.same_bits(tiny.run(tiny.stage(), save_every_steps=3), uninterrupted)
    leftovers = [path.name for path in paths.folder("state", tiny.stage().key).iterdir() if "progress" in path.name]
    assert not leftovers


def test_state_grown_from_a_shared_trunk_equals_the_one_trained_alone(uninterrupted, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny.make_codes()
    whole = tiny.stage()
    parents = [whole.at(epoch) for epoch in (1, 2, 3, 4)]
    for parent, child in zip([None, *parents], [*parents, whole], strict=True):
        tiny.run(child, parent)
    assert parents[1].key == tiny.stage((Phase(epochs=2),)).key  # the trunk is the baseline itself
    assert tiny.same_bits(tiny.tensors(whole), uninterrupted)


def test_resume_point_frequency_changes_no_bit(uninterrupted, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny.make_codes()
    assert tiny.same_bits(tiny.run(tiny.stage(), save_every_steps=1), uninterrupted)


def test_damaged_resume_point_is_named_and_the_one_before_it_used(uninterrupted, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tiny.make_codes()
    tiny.run_and_die(tiny.stage(), FAULTS["before the first step of an epoch"])
    newest = sorted(paths.folder("state", tiny.stage().key).glob("progress-*.safetensors"))[-1]
    newest.write_bytes(newest.read_bytes()[:-1])
    assert tiny.same_bits(tiny.run(tiny.stage()), uninterrupted)
    assert f"{newest} is truncated" in capsys.readouterr().err


def test_behind_a_damaged_parent_its_own_parent_is_used(uninterrupted, tmp_path, monkeypatch, capsys, fresh_plan):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experiments").symlink_to(Path(__file__).parents[2] / "experiments")
    tiny.make_codes()
    whole = tiny.stage()
    parents = [whole.at(2), whole.at(4)]
    assert plan.register(whole, "digits").parent == parents[1].key
    for parent, child in zip([None, *parents], parents, strict=False):
        tiny.run(child, parent)
    damaged = paths.resume(parents[1].key).with_suffix(".safetensors")
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert tiny.same_bits(tiny.run(whole, parents[1]), uninterrupted)
    manifest = read_json(paths.manifest("state", whole.key))
    assert (manifest["started_at_step"], manifest["grown_from"]) == (8, parents[0].key)
    assert f"{damaged} is truncated" in capsys.readouterr().err


def test_a_state_remembers_all_numerics_that_it_was_trained_under(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny.make_codes()
    state = tiny.stage()
    tiny.run_and_die(state, FAULTS["at a phase boundary"])
    monkeypatch.setattr(tiny, "NUMERICS", tiny.NUMERICS.model_copy(update={"attention": "flash"}))
    tiny.run(state)
    manifest = read_json(paths.manifest("state", state.key))
    assert manifest["numerics"]["attention"] == "flash"
    assert [other["attention"] for other in manifest["earlier_numerics"]] == ["explicit"]
    assert manifest["grown_from"] is None
    assert _numerics_behind(state) == [manifest["numerics"], *manifest["earlier_numerics"]]

    paths.manifest("state", state.key).unlink()
    paths.manifest("state", state.key).with_name(".weights.json").unlink()
    monkeypatch.setattr(tiny, "NUMERICS", tiny.NUMERICS.model_copy(update={"attention": "explicit"}))
    tiny.run(state)  # which only writes its weights again
    assert read_json(paths.manifest("state", state.key)) == manifest


def test_another_seed_gives_other_bits(uninterrupted, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny.make_codes()
    assert not tiny.same_bits(tiny.run(tiny.stage(seed=1)), uninterrupted)
