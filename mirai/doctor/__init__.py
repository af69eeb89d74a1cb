"""`mirai doctor`: what trainings need of this machine and its SLURM, looked at before anything is queued."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

from mirai.doctor import cluster, machine
from mirai.doctor.finding import Finding
from mirai.experiments import paths
from mirai.experiments.scale import load_scale
from mirai.experiments.site import load_site


def examine(grid: str | None, scale: str, *, wait: int) -> Iterator[Finding]:
    """Look at one thing after the other, what later ones depend on first; `wait` seconds for a compute node."""
    site, cuda = load_site(), load_scale(scale).numerics.device == "cuda"
    yield machine.inputs(site, grid, scale)
    with machine.results_folder() as finding:
        yield finding
        if site.slurm is None:
            there = shutil.which("sbatch") is not None
            says = (
                f"{paths.SITE} has no section 'slurm', which `--profile slurm` reads"
                if there
                else "not on this machine"
            )
            yield Finding("SLURM", None, says)
            yield machine.here(cuda=cuda, ranks=site.ranks)
            return
        answers = list(cluster.answers())
        yield from answers
        if not all(answer.well for answer in answers):
            return
        yield from cluster.others()
        yield from cluster.account(site.slurm)
        yield from cluster.partition(site.slurm, cuda=cuda)
        fits = list(cluster.fits(site, cuda=cuda))
        yield from fits
        if all(one.well for one in fits):
            yield from cluster.compute_node(site, cuda=cuda, wait=wait)
