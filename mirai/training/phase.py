"""What one phase of a timeline trains with: its targets and its differentiable loss, made at its boundary."""

from __future__ import annotations

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from mirai.data.codes import CodeStore
from mirai.experiments.schedules import lambda_at
from mirai.experiments.stages import Phase, StateStage
from mirai.foresight.sources import Sources
from mirai.ranks import Ranks
from mirai.training.loss import TrainingLoss
from mirai.training.state import TrainState
from mirai.training.targets import Targets


class ActivePhase:
    """The phase a step belongs to, with its foresight parts; `state` gains or loses heads when it is made."""

    def __init__(self, phase: Phase, state: TrainState, codes: CodeStore, sources: Sources, ranks: Ranks) -> None:
        self.phase = phase
        foresight = phase.foresight
        self.targets = None if foresight is None else Targets(foresight, state, codes, sources)
        state.enter(foresight, 0 if self.targets is None else self.targets.width)
        layer = None
        if foresight is not None:
            layer = foresight.layer if foresight.level == "internal" else state.model.model.num_layers
        loss = TrainingLoss(state.model, state.objective, layer)
        self.loss: nn.Module = loss
        if ranks.world > 1:
            # without a look at what is unused, the second step after each start would sum gradients in another order
            # than the first one, and a resumed training of more than two ranks would end in other bits
            self.loss = DistributedDataParallel(loss, broadcast_buffers=False, find_unused_parameters=True)

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
