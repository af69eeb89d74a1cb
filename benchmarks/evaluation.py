"""Precision and recall: how neighbours are found, and the memory that blocks of distances take."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks.turns import compare
from mirai.evaluation.metrics import precision_recall

WIDTH = 256  # of the features; Inception's are 2048 wide, and only the products cost more for it


def main() -> None:
    """Compare ways to find the k-th neighbour, then the memory at two numbers of samples."""
    distances = torch.rand(2000, 2000)
    variants: dict[str, Callable[[], object]] = {
        "topk of the nearest four": lambda: distances.topk(4, dim=1, largest=False).values[:, 3],
        "kthvalue": lambda: distances.kthvalue(4, dim=1).values,
        "sort": lambda: distances.sort(dim=1).values[:, 3],
    }
    compare("Third neighbour of 2,000 vectors among 2,000, one thread", variants, rounds=6)
    print("\nMemory of precision and recall, n samples against 2,000, float32, beside the features themselves")
    for samples in (4_000, 16_000):
        for name, block in (("blocks of 2,000 x 2,000", 2_000), ("one block", samples)):
            print(f"  n = {samples:>6}, {name:<24} {_extra_megabytes(samples, block):8.0f} MB", flush=True)


def _extra_megabytes(samples: int, block: int) -> float:
    """Peak memory of a process of its own."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measure, args=(samples, block, sender))
    process.start()
    kilobytes: int = receiver.recv()
    process.join()
    return kilobytes / 1000


def _measure(samples: int, block: int, sender: multiprocessing.connection.Connection) -> None:
    torch.set_num_threads(1)
    generator = np.random.default_rng(0)
    reference, drawn = (generator.standard_normal((n, WIDTH), dtype=np.float32) for n in (2_000, samples))
    precision_recall(reference[:100], drawn[:100], block=(50, 50))  # what is loaded once
    Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak counts from here
    before = _peak_kilobytes()
    precision_recall(reference, drawn, block=(block, block))
    sender.send(_peak_kilobytes() - before)


def _peak_kilobytes() -> int:
    return next(int(line.split()[1]) for line in Path("/proc/self/status").open() if line.startswith("VmHWM"))
