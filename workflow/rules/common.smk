# What rules ask of the package. Every stage of the store is named by its key; its inputs follow from the key alone.
import os
import sys

from mirai import costs, preflight
from mirai.errors import UserError
from mirai.experiments import grid_files, paths, plan
from mirai.launch import resources as launch_resources


def told(function, *arguments, leave=os._exit):
    """The user's mistakes as one sentence and exit code 2, not as a traceback.

    Snakemake turns whatever an input function raises, SystemExit included, into a page of context and exit code 1.
    """
    try:
        return function(*arguments)
    except UserError as mistake:
        print(f"mirai: {mistake}", file=sys.stderr, flush=True)
        leave(2)


def stage_inputs(wildcards):
    return told(plan.inputs, wildcards.key)


def restore_inputs(wildcards):
    return told(plan.restore_inputs, wildcards.key)


def table_inputs(wildcards):
    told(preflight.check, wildcards.grid, paths.scale_of(wildcards.prefix))
    return told(plan.table_inputs, wildcards.grid, paths.scale_of(wildcards.prefix))


def figure_inputs(wildcards):
    scale = paths.scale_of(wildcards.prefix)
    told(preflight.check, wildcards.grid, scale)
    return told(plan.figure_inputs, wildcards.grid, scale)


def all_inputs(wildcards):
    scale = paths.scale_of(wildcards.prefix)
    for name in told(plan.grids_of_paper, scale):
        told(preflight.check, name, scale)
    return told(plan.paper_products, scale)


def page_inputs(wildcards):
    """What shows that a table or figure was made anew. Not these themselves: a page of what is there trains nothing."""
    scale = paths.scale_of(wildcards.prefix)
    records = map(paths.key_record, told(plan.made_products, scale))
    begun = [paths.costs(scale)] if costs_inputs(wildcards) else []
    return [*filter(os.path.exists, records), *begun]


def scale_of(wildcards):
    return paths.scale_of(wildcards.prefix)


def grid_title(wildcards):
    """What Snakemake's report says of a table or figure."""
    planned = told(plan.plan_grid, wildcards.grid, scale_of(wildcards))
    return {"Grid": planned.source or planned.name, "Shows": planned.title}


def one_of(names):
    """A wildcard's constraint to some names, which may be none."""
    return "|".join(sorted(names, key=len, reverse=True)) or "(?!)"


def costs_inputs(wildcards):
    return told(costs.inputs, paths.scale_of(wildcards.prefix))


def stage_gpus(wildcards):
    return told(launch_resources.stage_gpus, wildcards.key)


def figure_gpus(wildcards):
    return told(launch_resources.gpus, "figure", paths.scale_of(wildcards.prefix))


def training_gpus(wildcards):
    """Of this machine: a job on a cluster has its own."""
    return 0 if launcher == "slurm" else stage_gpus(wildcards)


def stage_cores(wildcards):
    return told(launch_resources.stage_cores, wildcards.key)


def training_options(wildcards):
    """How `mirai train` is to train: here, or in a job that it waits for and that goes on with the next states."""
    if launcher == "here":
        return ""
    chain = told(plan.chain, wildcards.key)
    return f"--launcher {launcher}" + (f" --then {' '.join(chain)}" if chain else "")


def refuse_launcher():
    """Jobs for a cluster need a site that describes it. Where stages go to one, trainings must too: never into the process
    of whoever sits on a login node.
    """
    if launcher == "slurm":
        launch_resources.require_cluster()
    if workflow.executor_plugin.common_settings.non_local_exec and launcher != "slurm":
        raise UserError(
            f"the profile sends jobs to a cluster and trainings would run here (launcher={launcher}): what --config "
            "says takes the place of the profile's; add launcher=slurm to it"
        )


# Grids that give a picture with data of its own, and no table.
drawings = [
    name for name, kind in grid_files.kinds().items() if grid_files.is_drawing(kind)
]

# slurm, in its profile; local and debug are the same code without SLURM
launcher = config.get("launcher", "here")
on_cluster = told(launch_resources.of_cluster) if launcher == "slurm" else {}
on_cluster_by_stage = {**on_cluster, "cpus_per_task": stage_cores} if on_cluster else {}
rank_threads = on_cluster.get(
    "cpus_per_task", 1
)  # Snakemake sets OMP_NUM_THREADS to it
if on_cluster and not workflow.is_main_process:  # in a job, on a node
    shell.prefix(launch_resources.before_commands())


wildcard_constraints:
    key="[0-9a-f]{16}",
    grid=r"(?!costs\.)[A-Za-z0-9][A-Za-z0-9_-]*?",
    prefix="((?!imagenet256/)[a-z0-9][a-z0-9-]*/)?",
