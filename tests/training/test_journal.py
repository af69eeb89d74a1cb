"""What a training tells while it runs: numbers that add up, a text to follow, and events for TensorBoard if asked."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch

from mirai.errors import UserError
from mirai.experiments import paths
from mirai.experiments.site import load_site
from mirai.ranks import Ranks
from mirai.training import journal
from mirai.training.journal import Journal
from tests.training import tiny

CPU = torch.device("cpu")


class Clock:
    """A time of its own: ten seconds from one look to the next."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 10.0
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal.time, "monotonic", Clock())


def told(folder: Path, steps: range, *, last: int, rank: int = 0, tensorboard: bool = False) -> None:
    """A journal of a training that looks up every second step."""
    written = Journal(folder, steps.start, last, 8, Ranks(rank, 1, CPU), tensorboard=tensorboard)
    for step in steps:
        written.add({"loss": torch.tensor(float(step)), "next_token": torch.tensor(1.0)})
        if step % 2:
            written.write(step + 1, (step + 1) / 4, 0.0)
    written.close()


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_seconds_add_up_to_the_time_spent_and_the_rest_is_estimated_from_the_last_interval(
    tmp_path: Path, clock: None
) -> None:
    told(tmp_path, range(6), last=20)
    assert [(line["step"], line["seconds"], line["ranks"]) for line in lines(tmp_path)] == [
        (2, 10.0, 1),
        (4, 10.0, 1),
        (6, 10.0, 1),
    ]
    assert [line["eta_s"] for line in lines(tmp_path)] == [90.0, 80.0, 70.0]
    assert lines(tmp_path)[0]["images_per_second"] == 1.6
    assert "gpu_memory_gb" not in lines(tmp_path)[0], "there is none on the CPU"


def test_the_text_has_one_readable_line_per_interval_and_keeps_those_of_an_interrupted_run(
    tmp_path: Path, clock: None
) -> None:
    told(tmp_path, range(4), last=20)
    told(tmp_path, range(2, 4), last=20)
    text = [line.split("  ", 1) for line in (tmp_path / "log.txt").read_text().splitlines()]
    assert [line for _, line in text] == [
        "from step 0 to 20",
        "step 2/20  epoch 0.5  loss 0.5000  next_token 1.0000  1.6 images/s  eta 0:01:30",
        "step 4/20  epoch 1  loss 2.5000  next_token 1.0000  1.6 images/s  eta 0:01:20",
        "from step 2 to 20",
        "step 4/20  epoch 1  loss 2.5000  next_token 1.0000  1.6 images/s  eta 0:01:20",
    ]
    assert all(len(time) == len("2025-01-01 00:00:00") for time, _ in text)
    assert [line["step"] for line in lines(tmp_path)] == [2, 4]


def test_the_memory_of_a_gpu_is_in_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: None) -> None:
    monkeypatch.setattr(journal, "_gpu_memory", lambda device: {"gpu_memory_gb": 31.25})
    told(tmp_path, range(2), last=2)
    assert lines(tmp_path)[0]["gpu_memory_gb"] == 31.25
    assert "  gpu 31.2 GB  eta 0:00:00" in (tmp_path / "log.txt").read_text()


def test_only_the_first_rank_writes(tmp_path: Path) -> None:
    told(tmp_path, range(2), last=2, rank=1, tensorboard=True)
    assert not list(tmp_path.iterdir())


def test_events_are_written_where_asked_for_and_start_after_the_step_that_is_gone_on_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    class SummaryWriter:
        def __init__(self, folder: str, purge_step: int) -> None:
            seen.append((folder, purge_step))

        def add_scalar(self, name: str, value: float, step: int) -> None:
            seen.append((name, step))

        def flush(self) -> None:
            pass

        def close(self) -> None:
            seen.append("closed")

    fake = types.ModuleType("torch.utils.tensorboard")
    fake.SummaryWriter = SummaryWriter  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", fake)
    told(tmp_path, range(2, 4), last=4, tensorboard=True)
    assert seen[0] == (str(tmp_path / "tensorboard"), 3)
    assert {("loss", 4), ("images_per_second", 4), ("lambda", 4)} <= set(seen)
    assert seen[-1] == "closed"


def test_real_events_lie_in_the_state_folder(project: Path) -> None:
    pytest.importorskip("tensorboard", reason="the optional package tensorboard is not installed")
    tiny.make_codes()
    state = tiny.stage((tiny.NEXT_TOKEN,))
    tiny.run(state, tensorboard=True)
    (events,) = (paths.folder("state", state.key) / "tensorboard").iterdir()
    assert b"images_per_second" in events.read_bytes()


def test_a_missing_package_is_told_while_planning(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths.SITE.parent.mkdir()
    paths.SITE.write_text("tensorboard: true\n")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError) as caught:
        load_site()
    assert str(caught.value) == (
        "config/site.yaml line 1: key 'tensorboard' has value True: the package is missing; `pip install mirai[tensorboard]`"
    )
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    assert load_site().tensorboard
