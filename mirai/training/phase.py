"""What one phase of a timeline trains with: its targets and its differentiable loss, made at its boundary."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from mirai.data.codes import CodeStore
from mirai.experiments.recipe import Foresight
from mirai.experiments.schedules import lambda_at
from mirai.experiments.stages import Phase, StateStage
from mirai.foresight.encoders import ImageEncoder
from mirai.training.distributed import Ranks
from mirai.training.loss import TrainingLoss
from mirai.training.state import TrainState
from mirai.training.targets import Targets

OpenEncoder = Callable[[Foresight], ImageEncoder]


class ActivePhase:
    """The phase a step belongs to, with its foresight parts; `state` gains or loses heads when it is made."""

    def __init__(
        self, phase: Phase, state: TrainState, codes: CodeStore, open_encoder: OpenEncoder, ranks: Ranks
    ) -> None:
        self.phase = phase
        foresight = phase.foresight
        self.targets = None if foresight is None else Targets(foresight, state, codes, open_encoder)
        state.enter(foresight, 0 if self.targets is None else self.targets.width)
        layer = None
        if foresight is not None:
            layer = foresight.layer if foresight.level == "internal" else state.model.model.num_layers
        loss = TrainingLoss(state.model, state.objective, layer)
        self.loss: nn.Module = loss
        if ranks.world > 1:
            self.loss = DistributedDataParallel(loss, broadcast_buffers=False)

    def coefficient(self, epoch: float) -> float:
        """lambda at a progress in epochs; 0 in next-token phases."""
        return 0.0 if self.phase.coefficient is None else lambda_at(self.phase.coefficient, epoch)


class Timeline:
    """Phases by epoch; the active one is kept until a step leaves it."""

    def __init__(self, stage: StateStage, steps_per_epoch: int) -> None:
        self.phases = stage.timeline
        self.ends = [
            sum(phase.epochs for phase in self.phases[: i + 1]) * steps_per_epoch for i in range(len(self.phases))
        ]

    def phase_of(self, step: int) -> Phase:
        """The phase of a step, counted from 0."""
        return next(phase for phase, end in zip(self.phases, self.ends, strict=True) if step < end)
