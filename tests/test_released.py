"""Released checkpoint files: every layout is read, nothing in them runs, and what does not fit is named."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch
from torch import nn

from mirai.errors import UserError
from mirai.released import load_strictly, read_checkpoint

WEIGHTS = {"norm.weight": torch.arange(3.0)}


def saved(file: Path, content: object, *, zipped: bool = True) -> Path:
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    return file


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("key", ["model", "module", "state_dict"])
def test_weights_are_found_under_each_key_that_the_training_programs_use(
    key: str, zipped: bool, tmp_path: Path
) -> None:
    training = {
        "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}},
        "steps": 5,
        "ema": {"norm.weight": -torch.ones(3)},
    }
    arguments = argparse.Namespace(gpt_model="GPT-B", image_size=256)
    file = saved(tmp_path / "a.pt", {key: WEIGHTS, "args": arguments, **training}, zipped=zipped)
    found = read_checkpoint(file)
    assert found.tensors["norm.weight"].tolist() == [0, 1, 2]
    assert found.arguments == {"gpt_model": "GPT-B", "image_size": 256}
    assert read_checkpoint(file, ema=True).tensors["norm.weight"].tolist() == [-1, -1, -1]


def test_a_bare_state_dict_is_read_as_the_sharded_trainings_leave_it(tmp_path: Path) -> None:
    found = read_checkpoint(saved(tmp_path / "a.pt", WEIGHTS))
    assert found.tensors["norm.weight"].tolist() == [0, 1, 2]
    assert found.arguments == {}


class Touch:
    """Touches a file when it is unpickled by a careless reader."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.path), "w")


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("place", ["model", "args"])
def test_nothing_pickled_in_a_file_runs(place: str, zipped: bool, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    hidden = (
        {"model": Touch(trace)} if place == "model" else {"model": WEIGHTS, "args": argparse.Namespace(x=Touch(trace))}
    )
    file = saved(tmp_path / "a.pt", hidden, zipped=zipped)
    with pytest.raises(UserError, match=r"a\.pt holds a pickled \S*open, which is not read from foreign files"):
        read_checkpoint(file)
    assert not trace.exists()
    torch.load(file, weights_only=False)
    assert trace.exists(), "the file would have run its code"


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.pt does not exist"):
        read_checkpoint(tmp_path / "a.pt")


@pytest.mark.parametrize("kept", [0, 1, 100, 600])
def test_a_truncated_file_is_named(kept: int, tmp_path: Path) -> None:
    file = saved(tmp_path / "a.pt", {"model": {"norm.weight": torch.zeros(4096)}})
    file.write_bytes(file.read_bytes()[:kept] if kept < 600 else file.read_bytes()[:-kept])
    with pytest.raises(UserError, match=r"a\.pt (is truncated or no checkpoint|holds no plain tensors)"):
        read_checkpoint(file)


def test_a_flipped_bit_is_found_by_the_checksum_of_its_record(tmp_path: Path) -> None:
    file = saved(tmp_path / "a.pt", {"model": {"norm.weight": torch.full((4096,), 3.0)}})
    content = bytearray(file.read_bytes())
    content[content.index(torch.full((9,), 3.0).numpy().tobytes()) + 7] ^= 1
    file.write_bytes(content)
    assert torch.load(file)["model"]["norm.weight"].sum() != 3 * 4096, "torch reads it without a word"
    with pytest.raises(UserError, match=r"a\.pt is damaged: its record a/data/0 does not have its checksum"):
        read_checkpoint(file)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    ("trouble", "sentence"),
    [
        (PermissionError(13, "Permission denied"), r"a\.pt cannot be read: Permission denied$"),
        (OSError(5, "Input/output error"), r"a\.pt cannot be read: Input/output error$"),
    ],
)
def test_a_fault_of_the_disk_is_told_as_such(
    trouble: OSError, sentence: str, zipped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = saved(tmp_path / "a.pt", {"model": WEIGHTS}, zipped=zipped)

    def failing(*_: object, **__: object) -> object:
        raise trouble

    monkeypatch.setattr(torch, "load", failing)
    with pytest.raises(UserError, match=sentence):
        read_checkpoint(file)


def test_lack_of_memory_is_no_fault_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object, **__: object) -> object:
        raise MemoryError

    monkeypatch.setattr(torch, "load", failing)
    with pytest.raises(MemoryError):
        read_checkpoint(saved(tmp_path / "a.pt", {"model": WEIGHTS}))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ([1, 2], "holds a list, no dictionary of weights"),
        (
            {"optimizer": {}, "steps": 3},
            "no weights under model or module or state_dict; its keys are optimizer, steps",
        ),
        ({"model": {"norm.weight": torch.ones(3), "config": 3}}, "among its weights that are no tensors: config"),
    ],
)
def test_a_file_without_weights_says_what_it_holds(content: object, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=sentence):
        read_checkpoint(saved(tmp_path / "a.pt", content))


def test_a_file_without_averaged_weights_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no weights under ema; its keys are model"):
        read_checkpoint(saved(tmp_path / "a.pt", {"model": WEIGHTS}), ema=True)


def test_every_difference_of_keys_and_shapes_is_listed(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4))
    tensors = {
        "0.weight": torch.ones(3, 2),
        "0.bias": torch.ones(4),
        "1.weight": torch.ones(4, 3),
        "2.bias": torch.ones(1),
    }
    with pytest.raises(UserError) as refused:
        load_strictly(model, tensors, tmp_path / "a.pt", "a small model")
    assert str(refused.value).endswith(
        "a.pt does not hold the weights of a small model: missing: 1.bias; extra: 2.bias; "
        "of another shape: 0.bias (4,) instead of (3,)"
    )
    assert not (model[0].weight == 1).all(), "nothing was loaded"
    load_strictly(model, model.state_dict(), tmp_path / "a.pt", "a small model")


def test_a_long_list_of_differences_is_cut(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"extra: x0, x1, x2, x3, x4, x5 and 4 more$"):
        load_strictly(nn.Module(), {f"x{n}": torch.ones(1) for n in range(10)}, tmp_path / "a.pt", "nothing")
