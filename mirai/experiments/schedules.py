"""lambda of Eq. 10 over a run, and the run cut into phases of equal settings.

Epoch e runs from progress e to e + 1. A phase's settings are what enters a state's key: a number (0.0 is plain
next-token training, whatever the schedule is called), or a cosine, which depends on the total length.
"""

from __future__ import annotations

import math

from mirai.experiments.recipe import Cosine, Schedule

Coefficient = float | Cosine
Stretch = tuple[int, int, Coefficient]  # first epoch, epoch after the last, lambda


def phases(schedule: Schedule, epochs: int) -> list[Stretch]:
    """The run as maximal stretches of equal settings, in canonical form.

    Switches lie at fractions of the total epochs, warm-up included, and at the first whole epoch not before the
    fraction: 80 epochs step at 40, 5 epochs at 3 (reading 9.9). During warm-up lambda is 0.
    """
    values = schedule.values
    pieces: list[tuple[int, Coefficient]]  # (first epoch of the piece, its settings), warm-up ignored
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
            pieces = [(0, Cosine(start=values[0], end=values[1], total_epochs=epochs))]
    ends = [start for start, _ in pieces[1:]] + [epochs]
    warmup = min(schedule.warmup_epochs, epochs)
    timeline: list[Stretch] = [(0, warmup, 0.0)]
    timeline += [(max(start, warmup), end, settings) for (start, settings), end in zip(pieces, ends, strict=True)]
    return _merged([phase for phase in timeline if phase[0] < phase[1]])


def _merged(timeline: list[Stretch]) -> list[Stretch]:
    merged: list[Stretch] = []
    for start, end, settings in timeline:
        if merged and merged[-1][2] == settings:
            merged[-1] = (merged[-1][0], end, settings)
        else:
            merged.append((start, end, settings))
    return merged


def lambda_at(coefficient: Coefficient, epoch: float) -> float:
    """lambda at a progress in epochs, inside a phase with this coefficient. A cosine moves with every step."""
    if isinstance(coefficient, float):
        return coefficient
    start, end = coefficient.start, coefficient.end
    return end + (start - end) * (1 + math.cos(math.pi * epoch / coefficient.total_epochs)) / 2
