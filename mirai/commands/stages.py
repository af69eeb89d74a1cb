"""Making one stage of the store by its key, and collecting what finished stages leave."""

from __future__ import annotations

import argparse

from mirai.commands.parsing import Commands, add_command, add_log
from mirai.errors import UserError

# command -> (kind of stage, what it does, what it reads, what it leaves in results/store/<kind>/<key>/)
STAGE_COMMANDS = {
    "tokenizer": ("tokenizer", "train a tokenizer or take in released weights", "images", "tokenizer.json"),
    "codes": ("codes", "encode every view of every training image", "images, tokenizer", "codes.json, codes.bin"),
    "encoder": ("encoder", "train a small foresight encoder", "images", "encoder.json"),
    "features": ("features", "train the network behind the Frechet distances", "images", "features.json"),
    "reference": ("reference", "compute statistics of the reference images", "images, features", "reference.json"),
    "train": (
        "state",
        "train the AR model up to a state, going on where it was stopped",
        "codes, encoder, parent state",
        "weights.json, resume.json, log.jsonl, log.txt",
    ),
}


def add(commands: Commands) -> None:
    """The commands of rules that make one stage each, and gc."""
    for name, (kind, purpose, reads, writes) in STAGE_COMMANDS.items():
        command = add_command(
            commands,
            name,
            purpose,
            f"Reads {reads}; writes {writes} in results/store/{kind}/KEY/. Example: mirai {name} 0cc8d0c3dc213c9f",
        )
        command.add_argument("key", help=f"key of the {kind} stage; `mirai plan` lists keys")
        if name == "train":
            command.add_argument("--save-every-steps", type=int, help="a resume point every so many steps, not minutes")
            command.add_argument("--restore", action="store_true", help="a finished state's optimiser, deleted by gc")
            command.add_argument(
                "--launcher",
                choices=("here", "local", "debug", "slurm"),
                default="here",
                help="a job to wait for: of SLURM, or without it (local: outlives this command, debug: in this process)",
            )
            command.add_argument(
                "--then", nargs="*", default=[], metavar="KEY", help="states that the job goes on with"
            )
        add_log(command)
        command.set_defaults(run=make_stage, kind=kind)
    command = add_command(
        commands,
        "gc",
        "delete the optimisers of finished states",
        "Reads results/store/state/; deletes resume.json and resume.safetensors there. Tables stay as they are; a later "
        "fork retrains the trunk it needs, and a dry run shows that. Example: mirai gc --dry-run",
    )
    command.add_argument("--dry-run", action="store_true", help="only say what would go")
    command.set_defaults(run=gc)


def make_stage(options: argparse.Namespace) -> int:
    """Make the stage `options.key` of kind `options.kind`, in several local ranks where the site says so."""
    from mirai.experiments.plan import freeze, lookup
    from mirai.launch.ranks import is_first_rank, is_rank, run_ranks
    from mirai.launch.resources import ranks_of_kind
    from mirai.launch.slots import held_for
    from mirai.launch.slurm import refuse_if_queued

    planned = lookup(options.key)
    if planned.stage.kind != options.kind:
        raise UserError(f"{options.key} is a {planned.stage.kind} stage, not a {options.kind} one")
    if getattr(options, "launcher", "here") != "here":
        return _train_in_a_job(options)
    freeze(planned)
    if options.kind == "state" and not is_rank():
        refuse_if_queued(options.key)
    ranks = ranks_of_kind(planned.stage.kind)
    with held_for(planned.stage.kind, planned.scale, ranks) as inherited:
        if ranks > 1 and not is_rank():
            return run_ranks(options.arguments, ranks, inherited)
        from mirai.make import make

        training = {name: getattr(options, name) for name in ("save_every_steps", "restore") if hasattr(options, name)}
        if not make(planned, **training) and is_first_rank():
            print(f"mirai: {planned.stage.kind} {options.key} is there already")
        return 0


def _train_in_a_job(options: argparse.Namespace) -> int:
    """Wait for a job that trains `options.key`; submit it unless it is there."""
    from mirai.launch.slurm import train
    from mirai.launch.submit import Order

    return train(Order(options.key, tuple(options.then), options.launcher, options.restore, options.save_every_steps))


def gc(options: argparse.Namespace) -> None:
    """Delete the optimisers of finished states."""
    from mirai.experiments import paths
    from mirai.experiments.collect import collect_optimisers

    paths.refuse_elsewhere()
    collect_optimisers(dry_run=options.dry_run)
