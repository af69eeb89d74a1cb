"""Ranks of one training: who computes which rows of the global batch. One rank needs no process group."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from mirai.errors import UserError


@dataclass(frozen=True)
class Ranks:
    """This process among its peers."""

    rank: int
    world: int
    device: torch.device

    @property
    def writes(self) -> bool:
        """Whether this rank writes files and prints."""
        return self.rank == 0

    def wait(self) -> None:
        """All ranks reach this line before any goes on."""
        if self.world > 1:
            dist.barrier()

    def mean(self, values: Tensor) -> Tensor:
        """Mean of a tensor over ranks, on all of them."""
        if self.world > 1:
            dist.all_reduce(values)
        return values / self.world

    def any(self, flag: bool) -> bool:
        """Whether the flag is up on any rank, e.g. the signal that only one of them received."""
        if self.world == 1:
            return flag
        value = torch.tensor(float(flag), device=self.device)
        dist.all_reduce(value, op=dist.ReduceOp.MAX)
        return bool(value.item())


@contextmanager
def ranks_of(device: str) -> Iterator[Ranks]:
    """Join the process group that torchrun or srun describes in the environment; a lone process is rank 0 of 1."""
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("this scale computes on a GPU (numerics.device: cuda) and torch sees none on this machine")
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    local = int(os.environ.get("LOCAL_RANK", 0))
    where = torch.device("cuda", local) if device == "cuda" else torch.device("cpu")
    if device == "cuda":
        torch.cuda.set_device(where)
    if world == 1:
        yield Ranks(0, 1, where)
        return
    dist.init_process_group("nccl" if device == "cuda" else "gloo")
    try:
        yield Ranks(rank, world, where)
    finally:
        dist.destroy_process_group()
