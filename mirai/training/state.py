"""Everything a training is at one step: model, EMA, heads, optimiser. Saved and restored as one flat set of tensors."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from mirai.experiments.recipe import Foresight, Training
from mirai.foresight.objective import ForesightObjective
from mirai.models.transformer import Transformer
from mirai.randomness import torch_generator

MOMENTS = ("exp_avg", "exp_avg_sq", "step")  # AdamW's state of one parameter


class TrainState:
    """Model, EMA, foresight objective (only while a phase has one) and AdamW, with the number of steps done."""

    def __init__(self, model: Transformer, training: Training) -> None:
        self.model = model
        self.ema = copy.deepcopy(model).eval().requires_grad_(False)  # starts as a copy at step 0 (reading 9.8)
        self.training = training
        self.foresight: Foresight | None = None
        self.objective: ForesightObjective | None = None
        self.step = 0
        self.optimizer = torch.optim.AdamW(
            self._groups(model), lr=training.learning_rate, betas=training.betas, fused=True
        )

    def _groups(self, module: nn.Module) -> list[dict[str, object]]:
        """Matrices decay, embeddings and head included; norm weights and biases do not (LlamaGen groups by dimension)."""
        parameters = list(module.parameters())
        return [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": self.training.weight_decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ]

    def enter(self, foresight: Foresight | None, target_width: int) -> None:
        """Create what a phase's foresight needs, at its boundary; a phase that only changes lambda keeps its heads."""
        if foresight == self.foresight:
            return
        if self.objective is not None:
            for parameter in self.objective.parameters():
                self.optimizer.state.pop(parameter, None)
            del self.optimizer.param_groups[2:]
            self.objective = None
        if foresight is not None:
            # A stream of its own: heads change neither the model's initialisation nor its dropout.
            generator = torch_generator(self.training.seed, "foresight-heads")
            model = self.model
            self.objective = ForesightObjective(
                foresight, model.model.width, target_width, model.grid_side, generator, model.order.positions()
            ).to(next(model.parameters()).device)
            for group in self._groups(self.objective):
                if group["params"]:
                    self.optimizer.add_param_group(group)
        self.foresight = foresight

    def clip_gradients(self) -> dict[str, Tensor]:
        """Clip the global norm over model and heads together (reading 9.20) -> norms before clipping, by part."""
        parts = {"grad_norm_model": list(self.model.parameters())}
        if self.objective is not None and (heads := list(self.objective.parameters())):
            parts["grad_norm_heads"] = heads  # none for the current token alone at the output level
        norms = {
            name: nn.utils.get_total_norm([p.grad for p in part if p.grad is not None]) for name, part in parts.items()
        }
        total = torch.linalg.vector_norm(torch.stack(list(norms.values())))
        everything = [parameter for part in parts.values() for parameter in part]
        nn.utils.clip_grads_with_norm_(everything, self.training.clip_norm, total)
        return {"grad_norm": total, **norms}

    def set_learning_rate(self, progress: float | None) -> None:
        """Constant for progress None; a cosine to 0 over progress 0 to 1 otherwise (Sec. 3.1: LlamaGen-XL)."""
        factor = 1.0 if progress is None else 0.5 * (1 + math.cos(math.pi * progress))
        for group in self.optimizer.param_groups:
            group["lr"] = self.training.learning_rate * factor

    @torch.no_grad()
    def update_ema(self) -> None:
        """phi <- tau phi + (1 - tau) theta, after every optimiser step, in float32."""
        averages: list[Tensor] = list(self.ema.parameters())
        weights: list[Tensor] = list(self.model.parameters())
        torch._foreach_lerp_(averages, weights, 1 - self.training.ema_decay)

    def _trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        for name, parameter in self.model.named_parameters():
            yield f"model/{name}", parameter
        if self.objective is not None:
            for name, parameter in self.objective.named_parameters():
                yield f"heads/{name}", parameter

    def tensors(self) -> dict[str, Tensor]:
        """The whole state by name; views, not copies."""
        result = {name: parameter.detach() for name, parameter in self._trained()}
        result |= {f"ema/{name}": parameter for name, parameter in self.ema.named_parameters()}
        for name, parameter in self._trained():
            for moment in MOMENTS:
                result[f"{moment}/{name}"] = self.optimizer.state[parameter][moment]
        return result

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor], step: int) -> None:
        """Restore `tensors()` of the same phase; call `enter` first. Names and shapes must match exactly."""
        for name, parameter in self._trained():
            parameter.copy_(tensors.pop(name))
            moments = {moment: tensors.pop(f"{moment}/{name}") for moment in MOMENTS}
            self.optimizer.state[parameter] = {
                moment: value if moment == "step" else value.to(parameter.device) for moment, value in moments.items()
            }
            if parameter.device.type == "cuda":
                self.optimizer.state[parameter]["step"] = moments["step"].to(parameter.device)
        for name, parameter in self.ema.named_parameters():
            parameter.copy_(tensors.pop(f"ema/{name}"))
        assert not tensors, f"tensors of another model: {sorted(tensors)[:3]}"
        self.step = step
