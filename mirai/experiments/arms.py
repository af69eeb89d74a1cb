"""The paper's methods by name, with the defaults of Sec. 2.3 and 3.1; a grid's row starts from one of them."""

from __future__ import annotations

from typing import Literal

from mirai.experiments.offsets import grid_offsets
from mirai.experiments.recipe import Encoder, Foresight, Head, Schedule

Arm = Literal["baseline", "mirai-i", "mirai-e", "output-level"]


def arm_of(foresight: Foresight | None) -> Arm:
    """The arm that foresight is of, with whatever settings: None is the baseline's."""
    if foresight is None:
        return "baseline"
    if foresight.level == "output":
        return "output-level"
    return "mirai-i" if foresight.source == "encoder" else "mirai-e"


def arm_foresight(arm: Arm, *, encoder: Encoder, head: Head) -> Foresight | None:
    """Foresight of an arm on a 12-layer model. Encoder and head width are the scale's; None for the baseline."""
    # Table 3 and Sec. B: lambda steps from 2 to 1 at the midpoint, after 15 epochs of plain next-token training.
    step = Schedule(kind="step", values=(2.0, 1.0), warmup_epochs=15)
    match arm:
        case "baseline":
            return None
        case "mirai-i":  # Table 7: constant 2; Fig. 4 and Table 5: the current position alone
            constant = Schedule(kind="constant", values=(2.0,))
            return Foresight(
                source="encoder", encoder=encoder, offsets=grid_offsets(1), layer=8, head=head, schedule=constant
            )
        case "mirai-e":  # Fig. 4: K = 3, i.e. current, right, below (Table 5)
            return Foresight(source="ema", offsets=grid_offsets(3), layer=8, head=head, schedule=step)
        case "output-level":  # Table 1, rows "Output", with the schedule of Mirai-E as "same setup" (reading 9.14)
            return Foresight(level="output", source=None, offsets=grid_offsets(3), layer=None, head=None, schedule=step)
