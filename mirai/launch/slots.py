"""GPUs of a machine without SLURM: a job takes as many free ones as it computes on, for itself or for a share of it.

A slot is an flock on one file per GPU in the machine's temporary folder, so it holds between results folders and users,
and ends with the last process of its job, kill -9 included. Jobs of a scale whose `jobs_per_gpu` is above 1 lock that
file as readers do, and one of so many places beside it. What torch sees of it is CUDA_VISIBLE_DEVICES.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from mirai.errors import UserError
from mirai.experiments import paths
from mirai.experiments.scale import ON_CPU, load_scale
from mirai.launch.ranks import is_rank

VISIBLE = "CUDA_VISIBLE_DEVICES"
LOOK_EVERY = 1.0  # seconds, while waiting for a free GPU


def gpus(kind: str, scale_name: str, ranks: int = 1) -> int:
    """How many GPUs a job computes on: one per rank, none where its kind of stage or its scale has the CPU do it."""
    on_cpu = kind in ON_CPU or load_scale(scale_name).numerics.device == "cpu"
    return 0 if on_cpu else ranks


def held_for(kind: str, scale_name: str, ranks: int = 1) -> contextlib.AbstractContextManager[tuple[int, ...]]:
    """`held` with as many GPUs as such a job computes on, shared as its scale has it."""
    return held(gpus(kind, scale_name, ranks), load_scale(scale_name).jobs_per_gpu)


def held_beside(device: str | None, ranks: int = 1) -> contextlib.AbstractContextManager[tuple[int, ...]]:
    """`held` for a command that makes no stage: a GPU per rank for itself, unless its `device` is the CPU."""
    return held(0 if device == "cpu" else ranks)


@contextlib.contextmanager
def held(count: int, sharing: int = 1) -> Iterator[tuple[int, ...]]:
    """While open, this job has `count` GPUs, and sees no others -> file descriptors that its ranks inherit.

    For itself, or with `sharing` - 1 other jobs at most, which must be sharing ones too. A job that wants a GPU for itself
    waits until none share it, however many come.
    Waits until so many are free. Does nothing in a rank, whose parent or whose SLURM job holds them, or where no GPU is
    found: then torch tells. UserError where this machine has fewer. Must be entered before torch looks at the GPUs.
    """
    elsewhere = is_rank() or os.environ.get("SUBMITIT_EXECUTOR") == "slurm"  # whose ranks have no number yet
    found = {} if count == 0 or elsewhere else visible()
    if not found:
        yield ()
        return
    if len(found) < count:
        raise UserError(
            f"{count} ranks need {count} GPUs and {len(found)} are visible here; `ranks` is in {paths.SITE}"
        )
    outer, taken = os.environ.get(VISIBLE), _wait_for(count, found, sharing)
    descriptors = tuple(descriptor for locks in taken.values() for descriptor in locks)
    os.environ[VISIBLE] = ",".join(taken)
    try:
        yield descriptors
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
        if outer is None:
            os.environ.pop(VISIBLE, None)
        else:
            os.environ[VISIBLE] = outer


def visible() -> dict[str, str]:
    """GPUs that this process may use, by their names for CUDA_VISIBLE_DEVICES -> their names on this machine."""
    uuids = _uuids()
    outer = os.environ.get(VISIBLE)
    if outer is None:
        return {uuid: uuid for uuid in uuids}
    result = {}
    for name in filter(None, (part.strip() for part in outer.split(","))):
        if name.startswith("-"):  # CUDA: nothing from here on
            break
        if name.isdigit():
            result[name] = uuids[int(name)] if int(name) < len(uuids) else name
        else:  # a UUID, possibly shortened
            result[name] = next((uuid for uuid in uuids if uuid.startswith(name)), name)
    return result


def _uuids() -> list[str]:
    """UUIDs of this machine's GPUs in the order of their indices, without torch, which would take one."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60, check=True)
        return re.findall(r"UUID: (GPU-[0-9A-Za-z-]+)", done.stdout)
    drivers = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))  # containers may lack nvidia-smi
    return [uuid for path in drivers for uuid in re.findall(r"GPU UUID:\s*(GPU-[0-9A-Za-z-]+)", path.read_text())]


def _wait_for(count: int, found: dict[str, str], sharing: int) -> dict[str, tuple[int, ...]]:
    """Names of `count` GPUs with the descriptors that hold them. All at once or none: two jobs never wait for each other."""
    said = False
    while True:
        with _one_at_a_time():
            taken: dict[str, tuple[int, ...]] = {}
            for name, gpu in found.items():
                if locks := _take(gpu, sharing):
                    taken[name] = locks
                if len(taken) == count:
                    return taken
            for locks in taken.values():
                for descriptor in locks:
                    os.close(descriptor)
        if not said:
            print(f"waiting for {count} of {len(found)} GPUs: other jobs hold them", file=sys.stderr, flush=True)
            said = True
        time.sleep(LOOK_EVERY)


def _take(gpu: str, sharing: int) -> tuple[int, ...]:
    """Descriptors that hold a GPU, or one of its `sharing` places; none where it is full."""
    whole = _locked(gpu, fcntl.LOCK_EX if sharing == 1 else fcntl.LOCK_SH)
    if whole is None or sharing == 1:
        return () if whole is None else (whole,)
    for place in range(sharing):
        part = _locked(f"{gpu}-{place}", fcntl.LOCK_EX)
        if part is not None:
            return whole, part
    os.close(whole)
    return ()


def _locked(name: str, kind: int) -> int | None:
    """A descriptor with a lock on a file of slots; None where others hold it."""
    descriptor = _open(name)
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


@contextlib.contextmanager
def _one_at_a_time() -> Iterator[None]:
    descriptor = _open("all")
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _open(gpu: str) -> int:
    """A lock file, readable for all users: an flock needs no more, and another user's file opens only so in /tmp."""
    path = Path(tempfile.gettempdir()) / f"mirai-gpu-{gpu}.lock"
    with contextlib.suppress(FileNotFoundError):
        return os.open(path, os.O_RDONLY)
    descriptor = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    with contextlib.suppress(PermissionError):  # another user was first
        os.fchmod(descriptor, 0o644)  # whatever the umask
    return descriptor
