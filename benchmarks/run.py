"""All benchmarks, one after the other: `make bench`. They print ratios within this run, since machines are noisy."""

from __future__ import annotations

import torch

from benchmarks import evaluation, sampling, step


def main() -> None:
    """Run all, on one thread."""
    torch.set_num_threads(1)
    for benchmark in (step, sampling, evaluation):
        benchmark.main()


if __name__ == "__main__":
    main()
