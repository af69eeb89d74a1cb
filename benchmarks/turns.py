"""Timing by turns: every variant once a round, so that a slow moment of the machine hits all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

WARMUP = 2  # rounds that are not counted


def compare(title: str, variants: Mapping[str, Callable[[], object]], rounds: int) -> None:
    """Print each variant's median, and its ratio to that of the first, which is the project's own choice."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(WARMUP + rounds):
        for name, run in variants.items():
            started = time.perf_counter()
            run()
            if turn >= WARMUP:
                seconds[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    own = next(iter(medians.values()))
    print(f"\n{title}, {rounds} rounds")
    for name, median in medians.items():
        print(f"  {name:<44} {1000 * median:8.1f} ms   {median / own:6.2f}", flush=True)
