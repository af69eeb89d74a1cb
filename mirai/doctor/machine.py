"""The doctor on any machine: images and weights, the results folder, and what torch sees."""

from __future__ import annotations

import contextlib
import fcntl
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mirai.doctor.finding import Answer, Finding, ask
from mirai.doctor.node import LOCK, lock_state
from mirai.errors import UserError
from mirai.experiments import paths
from mirai.experiments.grid import Grid, NoRowAtThisScale
from mirai.experiments.grid_files import grid_names
from mirai.experiments.places import refuse_missing_places
from mirai.experiments.plan import plan_grid
from mirai.experiments.site import Site
from mirai.experiments.tree import stages_behind
from mirai.states import is_published

NODE = (sys.executable, "-m", "mirai.doctor.node", str(paths.RESULTS))
LOCK_MEND = "put results/ on a file system with flock (Lustre: mounted with -o flock; NFS: version 4, no nolock)"


def inputs(site: Site, grid: str | None, scale: str) -> Finding:
    """Images and released weights of what is still to be made of a grid, or of all."""
    what = "data, weights"
    try:
        grids = [plan_grid(grid, scale)] if grid else _grids(scale)
        stages = [stage for one in grids for stage in stages_behind(one)]
        refuse_missing_places((one for one in stages if not is_published(paths.manifest(one.kind, one.key))), site)
    except UserError as mistake:
        return Finding(what, False, str(mistake))
    return Finding(what, True, f"all that {grid or 'the grids'} at scale {scale} still read are here")


def _grids(scale: str) -> list[Grid]:
    """All grids of which the scale can have a row."""
    grids = []
    for name in grid_names():
        with contextlib.suppress(NoRowAtThisScale):
            grids.append(plan_grid(name, scale))
    return grids


@contextmanager
def results_folder() -> Iterator[Finding]:
    """Whether the results folder takes files and locks. While open its test lock is held, for another node to see."""
    path = paths.RESULTS / LOCK
    with contextlib.ExitStack() as stack:
        try:
            paths.RESULTS.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(path.open("a"))
            stack.callback(path.unlink, missing_ok=True)
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            seen = lock_state(path)
        except BlockingIOError:
            seen = "another `mirai doctor` is running"
        except OSError as error:
            seen = str(error.strerror)
        folder = paths.RESULTS.resolve()
        says = (
            "can be written, and locks hold"
            if seen == "held"
            else f"cannot be written and locked ({seen}); {LOCK_MEND}"
        )
        yield Finding("results folder", seen == "held", f"{folder} {says}")


def here(*, cuda: bool, ranks: int) -> Finding:
    """torch on this machine, with a GPU for each rank."""
    answer = ask(*NODE, seconds=300)
    return gpus(json.loads(answer.out), cuda=cuda, ranks=ranks) if answer.code == 0 else broken(answer)


def broken(answer: Answer) -> Finding:
    """A node on which not even torch can be imported."""
    return Finding("torch", False, f"does not start: {answer.trouble}")


def gpus(report: dict[str, Any], *, cuda: bool, ranks: int = 1) -> Finding:
    """What torch sees on the node of a report."""
    what, on = ("GPUs" if cuda else "torch"), f"torch {report['torch']} on {report['host']}"
    if not cuda:
        return Finding(what, True, f"{on}; this scale computes on the CPU")
    if report["gpus"] >= ranks:
        return Finding(what, True, f"{on} sees {report['gpus']} x {report['gpu_name']}")
    if report["gpus"]:
        return Finding(what, False, f"{on} sees {report['gpus']}; ranks in {paths.SITE} is {ranks}, one a GPU")
    if report["cuda_build"] is None:
        return Finding(what, False, f"{on} is built for the CPU only; install the build for CUDA")
    return Finding(
        what, False, f"{on} sees no GPU; its driver must support CUDA {report['cuda_build']}, see `nvidia-smi`"
    )
