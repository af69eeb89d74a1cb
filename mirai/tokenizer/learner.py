"""A network with the Adam that trains it, and the resume point of a training that takes days."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mirai.errors import UserError
from mirai.experiments.recipe import TokenizerTraining
from mirai.states import load_tensors, read_json, save_tensors, write_json

CLIP_NORM = 1.0  # LlamaGen's, of the tokenizer and of the discriminator
MANIFEST = "progress.json"


class Learner:
    """A network and its optimiser, as if it had been stepped `done` times with gradients of 0."""

    def __init__(self, network: nn.Module, plan: TokenizerTraining, done: int = 0) -> None:
        self.network, self.parameters = network, list(network.parameters())
        self.optimizer = torch.optim.Adam(self.parameters, lr=plan.learning_rate, betas=plan.betas, fused=True)
        for parameter in self.parameters:
            self.optimizer.state[parameter] = {
                "step": torch.tensor(float(done), device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }

    def step(self, learning_rate: float) -> None:
        """Clip the accumulated gradients, follow them and forget them."""
        torch.nn.utils.clip_grad_norm_(self.parameters, CLIP_NORM)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        self.optimizer.zero_grad()

    def tensors(self, prefix: str = "") -> dict[str, Tensor]:
        """Weights and moments by name; views, which follow the training."""
        result: dict[str, Tensor] = {}
        for name, parameter in self.network.named_parameters():
            result[f"{prefix}weights/{name}"] = parameter.detach()
            moments = self.optimizer.state[parameter].items()
            result |= {f"{prefix}{moment}/{name}": value for moment, value in moments}
        return result


def save_progress(folder: Path, step: int, tensors: Mapping[str, Tensor], source: Mapping[str, Any]) -> None:
    """Replace the folder's resume point: after `step` steps, of a training that reads its pictures from `source`."""
    entry = save_tensors(folder / f"progress-{step:09d}.safetensors", tensors)
    write_json(folder / MANIFEST, {"step": step, "source": dict(source), "payloads": {"progress": entry}})
    _delete_payloads(folder, but=entry["file"])


def load_progress(folder: Path, tensors: Mapping[str, Tensor], source: Mapping[str, Any]) -> int:
    """Fill `tensors` in place from the resume point, if there is one -> steps done, 0 if there is none.

    UserError if it is damaged or belongs to a training that read other pictures.
    """
    if not (folder / MANIFEST).exists():
        return 0
    content = read_json(folder / MANIFEST)
    if content["source"] != source:
        raise UserError(
            f"{folder / MANIFEST} is of a training on other images than the data set's now; "
            "put the images back, or delete this file to train from the start"
        )
    saved = load_tensors(folder, content["payloads"]["progress"])
    assert saved.keys() == tensors.keys(), "a resume point of other networks under the same key"
    for name, tensor in tensors.items():
        tensor.copy_(saved[name])
    step: int = content["step"]
    return step


def delete_progress(folder: Path) -> None:
    """Remove what a published tokenizer no longer needs."""
    (folder / MANIFEST).unlink(missing_ok=True)
    _delete_payloads(folder)


def _delete_payloads(folder: Path, but: str | None = None) -> None:
    for payload in folder.glob("progress-*.safetensors"):
        if payload.name != but:
            payload.unlink()
