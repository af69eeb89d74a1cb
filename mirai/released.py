"""Released checkpoint files (.pt): read without running what is pickled in them, and compared key by key."""

from __future__ import annotations

import argparse
import errno
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mirai.errors import UserError

# Where LlamaGen's and PAR's programs keep the weights: DDP training, DeepSpeed, others; FSDP files have no top level.
WEIGHT_KEYS = ("model", "module", "state_dict")
DAMAGED = "is truncated or no checkpoint; download it again"
LISTED = 6  # names in a message before "and n more"


@dataclass(frozen=True)
class Checkpoint:
    """A file's weights, and the argument list that the training stored beside them (empty if it did not)."""

    file: Path
    tensors: Mapping[str, Tensor]
    arguments: Mapping[str, Any]


def read_checkpoint(file: Path, *, ema: bool = False) -> Checkpoint:
    """The weights of a .pt file, or with `ema` their moving average, mapped into memory rather than read.

    No pickled code runs: tensors, plain containers and an argparse Namespace are all that is accepted. UserError if the
    file is missing, damaged (a zip's checksums are compared), or holds anything else.
    """
    if not file.is_file():
        raise UserError(f"{file} does not exist; `mirai download --list` says which weights are public, and where")
    zipped = zipfile.is_zipfile(file)
    try:
        if zipped:
            _require_whole(file)
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(file, map_location="cpu", weights_only=True, mmap=zipped)
    except (UserError, MemoryError):
        raise
    except pickle.UnpicklingError as error:
        refused = re.search(r"GLOBAL (\S+) was not an allowed global", str(error))
        what = f"a pickled {refused[1]}, which is not read from foreign files" if refused else "no plain tensors"
        raise UserError(f"{file} holds {what}; is it the right file, and whole?") from None
    except OSError as error:
        cut = error.errno == errno.EINVAL  # zipfile looks for what is missing before the file's first byte
        raise UserError(f"{file} {DAMAGED if cut else f'cannot be read: {error.strerror or error}'}") from None
    except Exception:  # of a damaged pickle nearly any: IndexError, KeyError, struct.error, AssertionError, ...
        raise UserError(f"{file} {DAMAGED}") from None
    if not isinstance(content, dict):
        raise UserError(f"{file} holds a {type(content).__name__}, no dictionary of weights")
    arguments = content.get("args")
    if isinstance(arguments, argparse.Namespace):
        arguments = vars(arguments)
    return Checkpoint(file, _weights(file, content, ema), arguments if isinstance(arguments, dict) else {})


def load_strictly(model: nn.Module, tensors: Mapping[str, Tensor], file: Path, what: str) -> None:
    """Give a model exactly these tensors; UserError as `check_strictly`."""
    check_strictly(model, tensors, file, what)
    model.load_state_dict(tensors)


def check_strictly(model: nn.Module, tensors: Mapping[str, Tensor], file: Path, what: str) -> None:
    """UserError that lists what a file lacks of a model's tensors, what it has beyond them, and differing shapes."""
    own = model.state_dict()
    troubles = {
        "missing": [name for name in own if name not in tensors],
        "extra": [name for name in tensors if name not in own],
        "of another shape": [
            f"{name} {tuple(tensors[name].shape)} instead of {tuple(tensor.shape)}"
            for name, tensor in own.items()
            if name in tensors and tensors[name].shape != tensor.shape
        ],
    }
    found = [f"{trouble}: {_listed(names)}" for trouble, names in troubles.items() if names]
    if found:
        raise UserError(f"{file} does not hold the weights of {what}: {'; '.join(found)}")


def _require_whole(file: Path) -> None:
    """UserError if a record of a zip file has another checksum than was written with it, at which torch never looks."""
    with zipfile.ZipFile(file) as records:
        damaged = records.testzip()
    if damaged is not None:
        raise UserError(f"{file} is damaged: its record {damaged} does not have its checksum; download it again")


def _weights(file: Path, content: Mapping[str, Any], ema: bool) -> Mapping[str, Tensor]:
    keys = ("ema",) if ema else WEIGHT_KEYS
    weights = next((content[key] for key in keys if isinstance(content.get(key), dict)), None)
    if weights is None and not ema and any(isinstance(value, Tensor) for value in content.values()):
        weights = content  # a bare state dict
    if weights is None:
        raise UserError(
            f"{file} has no weights under {' or '.join(keys)}; its keys are {_listed([str(key) for key in content])}"
        )
    wrong = [str(name) for name, value in weights.items() if not isinstance(value, Tensor)]
    if wrong:
        raise UserError(f"{file} has entries among its weights that are no tensors: {_listed(wrong)}")
    return weights


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:LISTED])
    return shown if len(names) <= LISTED else f"{shown} and {len(names) - LISTED} more"
