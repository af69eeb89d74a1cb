# What rules ask of the package. Every stage of the store is named by its key; its inputs follow from the key alone.
import os
import sys

from mirai import preflight
from mirai.errors import UserError
from mirai.experiments import paths, plan


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
    return told(plan.figure_inputs, wildcards.grid, scale, wildcards.figure)


wildcard_constraints:
    key="[0-9a-f]{16}",
    grid="[A-Za-z0-9][A-Za-z0-9_-]*?",
    prefix="((?!imagenet256/)[a-z0-9][a-z0-9-]*/)?",
    figure="samples|token_maps",
