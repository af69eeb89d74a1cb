"""Ranks as forked processes."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable

import torch

from mirai.errors import UserError


def fork(world: int, work: Callable[[], None]) -> list[int]:
    """Work in forked processes that are ranks -> their exit codes, negative for a signal."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(world):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_PORT": port}
                os.environ.update({name: str(value) for name, value in place.items()}, MASTER_ADDR="127.0.0.1")
                torch.set_num_threads(1)
                work()
                code = 0
            except UserError as error:
                print(f"rank {rank}: {error}", file=sys.stderr, flush=True)
                code = 2
            except SystemExit as end:
                code = int(end.code or 0)
            finally:
                os._exit(code)
        children.append(child)
    ended, deadline = dict[int, int](), time.monotonic() + 60
    while len(ended) < world:
        for child in set(children) - ended.keys():
            found, status = os.waitpid(child, os.WNOHANG)
            if found:
                ended[child] = os.waitstatus_to_exitcode(status)
        assert time.monotonic() < deadline, "a rank waits for ever"
        time.sleep(0.01)
    return [ended[child] for child in children]
