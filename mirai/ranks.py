"""Ranks of one job: who computes which part of it, and how they agree. One rank needs no process group."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from mirai.errors import UserError

# For ranks that work at their own speed, one of which is done long before the others. A dead one is noticed at once.
PATIENCE = timedelta(days=2)


@dataclass(frozen=True)
class Ranks:
    """This process among its peers. They meet on the CPU over `meeting`, whatever the device they compute on."""

    rank: int
    world: int
    device: torch.device
    meeting: dist.ProcessGroup | None = None

    @property
    def writes(self) -> bool:
        """Whether this rank writes files and prints."""
        return self.rank == 0

    def wait(self) -> None:
        """All ranks reach this line before any goes on."""
        self._gather(0)

    def agree(self, number: int, what: str) -> None:
        """UserError unless all ranks have the same number, which is checked once all have come here."""
        if len(numbers := set(self._gather(number))) > 1:
            raise UserError(f"the ranks do not agree on {what}: {sorted(numbers)}; the same command tries again")

    @contextmanager
    def together(self) -> Iterator[None]:
        """A block that all ranks leave together, or none of them: an error in one ends all, and is told once."""
        try:
            yield
        except Exception as error:
            code = 2 if isinstance(error, UserError | OSError) else 1
            codes = [code]
            with contextlib.suppress(UserError):  # of a rank that died meanwhile
                codes = self._gather(code)
            if code == 2 and any(codes[: self.rank]):
                raise SystemExit(code) from error
            raise
        if code := max(self._gather(0)):
            raise SystemExit(code)

    def _gather(self, number: int) -> list[int]:
        """The numbers of all ranks, on all of them; UserError if one of them is no more."""
        if self.world == 1:
            return [number]
        numbers = torch.zeros(self.world, dtype=torch.int64)
        numbers[self.rank] = number
        try:
            dist.all_reduce(numbers, group=self.meeting)
        except RuntimeError as error:
            raise UserError(
                f"another of the {self.world} ranks was stopped; the same command goes on from what is saved"
            ) from error
        return numbers.tolist()

    def mean(self, values: Tensor) -> Tensor:
        """Mean of a tensor over ranks, on all of them."""
        if self.world > 1:
            dist.all_reduce(values)
        return values / self.world

    def any(self, flag: bool) -> bool:
        """Whether the flag is up on any rank, e.g. the signal that only one of them received."""
        return any(self._gather(int(flag)))


def lost_a_peer(error: BaseException) -> bool:
    """Whether an error of this rank only says that another one is gone, whose own error or death is the cause, or that the
    ranks never met, or not at one state."""
    signs = ("closed by peer", "reset by peer", "Broken pipe", "ranks was stopped", "ranks do not agree", "NCCL")
    return isinstance(error, dist.DistError) or any(sign in str(error) for sign in signs)


@contextmanager
def ranks_of(device: str) -> Iterator[Ranks]:
    """Join the process group that torchrun or srun describes in the environment; a lone process is rank 0 of 1."""
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "a GPU is asked for (numerics.device of the scale, or --device) and torch sees none on this machine"
        )
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
        meeting = dist.new_group(backend="gloo", timeout=PATIENCE)
        assert isinstance(meeting, dist.ProcessGroup)
        yield Ranks(rank, world, where, meeting)
    finally:
        dist.destroy_process_group()
