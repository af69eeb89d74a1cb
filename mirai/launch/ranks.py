"""Starting the ranks of one job on this machine. All run the same command, their places in the environment."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence

GRACE = 60.0  # seconds for the ranks that are left to end by themselves once one has failed
STOPPED = 130  # exit code of a rank that was asked to stop: the others were too, and are saving


def is_rank() -> bool:
    """Whether this process was started as one of several ranks, here or by torchrun."""
    return "RANK" in os.environ


def is_first_rank() -> bool:
    """Whether this process speaks for all of its job's ranks; a lone process does."""
    return os.environ.get("RANK", "0") == "0"


def run_ranks(
    arguments: list[str],
    count: int,
    inherited: Sequence[int] = (),
    *,
    program: str = "mirai",
    numbered: Sequence[str] = (),
) -> int:
    """Run `python -m <program> <arguments>` as `count` local ranks -> exit code of the first that failed, or 0.

    They inherit the file descriptors that hold their GPUs, and find their number under the names `numbered` too. Where
    one fails the others are stopped. SIGTERM and SIGUSR2 are passed on; a Ctrl-C reaches all ranks without that.
    """
    ranks: list[subprocess.Popen[bytes]] = []

    def pass_on(number: int, _: object) -> None:
        for rank in ranks:
            rank.send_signal(number)

    previous = {
        signal.SIGTERM: signal.signal(signal.SIGTERM, pass_on),
        signal.SIGUSR2: signal.signal(signal.SIGUSR2, pass_on),
        signal.SIGINT: signal.signal(signal.SIGINT, lambda *_: None),
    }
    place = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    try:
        for rank in range(count):
            # like torchrun: ranks side by side do not take all cores each, unless the user or the scale says so
            own = dict.fromkeys(("RANK", "LOCAL_RANK", *numbered), str(rank))
            environment = {"OMP_NUM_THREADS": "1"} | os.environ | place | own
            command = [sys.executable, "-m", program, *arguments]
            ranks.append(subprocess.Popen(command, env=environment, pass_fds=inherited))
        return _wait(ranks)
    finally:
        for process in ranks:
            process.kill()
            process.wait()
        for number, handler in previous.items():
            signal.signal(number, handler)


def _wait(ranks: list[subprocess.Popen[bytes]]) -> int:
    code, deadline = 0, float("inf")
    while running := [rank for rank in ranks if rank.poll() is None]:
        failed = next((rank.returncode for rank in ranks if rank.returncode), 0)
        if failed and not code:
            code, deadline = failed, time.monotonic() + GRACE
        if code not in (0, STOPPED) and time.monotonic() > deadline:
            for rank in running:
                rank.kill()
        time.sleep(0.1)
    code = code or next((rank.returncode for rank in ranks if rank.returncode), 0)
    return code if code >= 0 else 128 - code  # killed by a signal, as a shell counts


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
