"""Is a row better than its own baseline? Paired over common seeds, with the uncertainty of few seeds."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from scipy.special import stdtrit

from mirai.analysis.records import LOWER_IS_BETTER

Word = Literal["better", "worse", "within noise", "one seed"]

CONFIDENCE = 0.95
RULE = (
    "Verdict: the row's FID minus its own baseline's, seed by seed; better or worse where the 95 % t-interval of the mean "
    "difference excludes 0, else within noise. Every row is judged by itself: of twenty rows without any effect, one is "
    "expected to get a verdict."
)


@dataclass(frozen=True)
class Verdict:
    """Mean paired difference to the baseline with its t-interval, and what follows from it."""

    word: Word
    seeds: int  # common ones
    difference: float
    low: float | None = None
    high: float | None = None


def verdict(mine: Mapping[int, float], baseline: Mapping[int, float], metric: str) -> Verdict | None:
    """Compare a metric by seed; None without a common seed."""
    differences = [mine[seed] - baseline[seed] for seed in sorted(mine.keys() & baseline.keys())]
    count = len(differences)
    if count == 0:
        return None
    mean = statistics.fmean(differences)
    if count == 1:
        return Verdict("one seed", 1, mean)
    quantile = float(stdtrit(count - 1, (1 + CONFIDENCE) / 2))
    margin = quantile * statistics.stdev(differences) / count**0.5
    low, high = mean - margin, mean + margin
    if low <= 0 <= high:
        return Verdict("within noise", count, mean, low, high)
    lower = high < 0
    return Verdict("better" if lower == (metric in LOWER_IS_BETTER) else "worse", count, mean, low, high)
