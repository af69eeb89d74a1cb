"""Trainings in queues: what they do, ending them, what a cluster needs, and what they have cost."""

from __future__ import annotations

import argparse
from pathlib import Path

from mirai.commands.parsing import Commands, add_command, add_log
from mirai.errors import UserError


def add(commands: Commands) -> None:
    """jobs, cancel, status, costs, doctor."""
    command = add_command(
        commands,
        "jobs",
        "list the trainings that are queued or running",
        "Each state with its job, what the queue says, progress, time left and log. Reads results/store/state/ and asks "
        "squeue at most once a minute; writes nothing else. Example: mirai jobs",
    )
    command.set_defaults(run=print_jobs)

    command = add_command(
        commands,
        "cancel",
        "end the jobs that train given states",
        "What is saved stays, and the same target goes on from there. Reads results/store/state/KEY/job.json; writes "
        "nothing. Example: mirai cancel 0cc8d0c3dc213c9f",
    )
    command.add_argument("keys", nargs="*", metavar="KEY", help="states; `mirai jobs` lists them")
    command.add_argument("--all", action="store_true", help="all your jobs of this results folder")
    command.set_defaults(run=cancel)

    command = add_command(
        commands,
        "status",
        "show what of a table is done, running, queued, missing",
        "Reads experiments/ and results/store/; writes nothing. Example: mirai status results/table2.csv",
    )
    command.add_argument("target", metavar="TARGET", help="results/[SCALE/]GRID.csv, or the name of a grid")
    command.add_argument("--scale", help="of a grid given by its name (default: imagenet256)")
    command.set_defaults(run=print_status)

    command = add_command(
        commands,
        "costs",
        "write what the trainings of a scale have cost",
        "GPU-hours per state and per table, by SLURM and by the journals. Reads results/store/state/ and asks sacct; "
        "writes results/[SCALE/]costs.csv. Example: mirai costs --scale demo",
    )
    command.add_argument("--scale", default="imagenet256", help="demo, digits, folder-<name>, imagenet256 (default)")
    add_log(command)
    command.set_defaults(run=write_costs)

    command = add_command(
        commands,
        "doctor",
        "look at what trainings need of this machine and its SLURM, before anything is queued",
        "One line for each thing looked at, with the mend; exit code 1 where something fails. Reads config/site.yaml; "
        "writes nothing that stays, and starts one short job where the site has SLURM. Example: mirai doctor --scale demo",
    )
    command.add_argument("grid", nargs="?", help="look for the data and weights of one grid only (default: all)")
    command.add_argument("--scale", default="imagenet256", help="demo, digits, folder-<name>, imagenet256 (default)")
    command.add_argument("--wait", type=int, default=120, help="seconds to wait for a compute node (default: 120)")
    command.set_defaults(run=examine)


def print_jobs(options: argparse.Namespace) -> None:
    """List the trainings that are queued or running."""
    from mirai.experiments import paths
    from mirai.launch import jobs

    paths.refuse_elsewhere()
    jobs.print_jobs()


def cancel(options: argparse.Namespace) -> None:
    """End jobs."""
    from mirai.experiments import paths
    from mirai.launch import jobs

    paths.refuse_elsewhere()
    if bool(options.keys) == options.all:
        raise UserError("mirai cancel takes the keys of states, or --all; `mirai jobs` lists what there is")
    if options.all:
        jobs.cancel_all()
    else:
        jobs.cancel(options.keys)


def print_status(options: argparse.Namespace) -> None:
    """Show where the stages of a table stand."""
    from mirai.experiments import paths
    from mirai.launch import jobs

    named = paths.grid_of(Path(options.target))
    if named is None and "/" in options.target:
        raise UserError(
            f"{options.target} is no table or figure; a target is results/[SCALE/]GRID.csv, or GRID with --scale"
        )
    if named is not None and options.scale is not None:
        raise UserError(f"{options.target} names its scale, {named[1]}; leave --scale out")
    grid, scale = named or (options.target, options.scale or paths.PAPER_SCALE)
    jobs.print_status(grid, scale)


def write_costs(options: argparse.Namespace) -> None:
    """Write what trainings have cost, and say the sums."""
    from mirai import costs

    path = costs.write_costs(options.scale)
    header, *rows = path.read_text().splitlines()
    print("\n".join([header, *(row for row in rows if row.split(",")[1] == costs.ALL)]))
    print(f"all states are in {path}")


def examine(options: argparse.Namespace) -> int:
    """Say what is well and what is not -> 1 if anything is not."""
    from mirai.doctor import examine

    failed = False
    for finding in examine(options.grid, options.scale, wait=options.wait):
        print(finding, flush=True)
        failed |= finding.well is False
    return int(failed)
