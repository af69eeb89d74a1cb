"""Starting the ranks of one training on this machine. Rank processes run the same command under torchrun's environment."""

from __future__ import annotations

import os
import subprocess
import sys


def is_rank() -> bool:
    """Whether this process was started as one of several ranks."""
    return "RANK" in os.environ


def run_ranks(arguments: list[str], count: int) -> int:
    """Run `mirai <arguments>` as `count` local ranks -> exit code of the first that failed, or 0."""
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={count}",
        "-m",
        "mirai",
    ]
    return subprocess.run([*command, *arguments], check=False).returncode
