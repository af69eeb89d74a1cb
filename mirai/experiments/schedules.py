"""lambda of Eq. 10 over a run, and the run cut into phases of equal settings.

Epoch e runs from progress e to e + 1. A phase's settings are what enters a state's key: a number (0.0 is plain
next-token training, whatever the schedule is called), or a cosine, which depends on the total length.
"""

from __future__ import annotations

import math
from typing import TypedDict

from mirai.experiments.recipe import Schedule


class Cosine(TypedDict):
    """A stretch of a cosine from `cosine[0]` at epoch 0 to `cosine[1]` at epoch `total_epochs`."""

    cosine: list[float]
    total_epochs: int


Settings = float | Cosine
Phase = tuple[int, int, Settings]  # first epoch, epoch after the last, settings


def phases(schedule: Schedule, epochs: int) -> list[Phase]:
    """The run as maximal stretches of equal settings, JSON-able and canonical.

    Switches lie at fractions of the total epochs, warm-up included, and at the first whole epoch not before the
    fraction: 80 epochs step at 40, 5 epochs at 3 (reading 9.9). During warm-up lambda is 0.
    """
    values = schedule.values
    pieces: list[tuple[int, Settings]]  # (first epoch of the piece, its settings), warm-up ignored
    match schedule.kind:
        case "constant":
            pieces = [(0, values[0])]
        case "step":
            pieces = [(0, values[0]), (math.ceil(epochs / 2), values[1])]
        case "thirds":
            pieces = [(0, values[0]), (-(-epochs // 3), values[1]), (-(-2 * epochs // 3), values[2])]
        case "cosine" if values[0] == values[1]:
            pieces = [(0, values[0])]
        case "cosine":
            pieces = [(0, {"cosine": list(values), "total_epochs": epochs})]
    ends = [start for start, _ in pieces[1:]] + [epochs]
    warmup = min(schedule.warmup_epochs, epochs)
    timeline: list[Phase] = [(0, warmup, 0.0)]
    timeline += [(max(start, warmup), end, settings) for (start, settings), end in zip(pieces, ends, strict=True)]
    return _merged([phase for phase in timeline if phase[0] < phase[1]])


def _merged(timeline: list[Phase]) -> list[Phase]:
    merged: list[Phase] = []
    for start, end, settings in timeline:
        if merged and merged[-1][2] == settings:
            merged[-1] = (merged[-1][0], end, settings)
        else:
            merged.append((start, end, settings))
    return merged


def lambda_at(settings: Settings, epoch: float) -> float:
    """lambda at a progress in epochs, inside a phase with these settings. A cosine moves with every step."""
    if not isinstance(settings, dict):
        return settings
    start, end = settings["cosine"]
    return end + (start - end) * (1 + math.cos(math.pi * epoch / settings["total_epochs"])) / 2


def coefficient(schedule: Schedule, epoch: float, epochs: int) -> float:
    """lambda of a whole run of `epochs` epochs at a progress in epochs; the end of the run belongs to its last phase."""
    timeline = phases(schedule, epochs)
    return next((lambda_at(settings, epoch) for _, end, settings in timeline if epoch < end), lambda_at(timeline[-1][2], epoch))
