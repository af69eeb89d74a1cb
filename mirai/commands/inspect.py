"""Looking at one stage of the store, and comparing two."""

from __future__ import annotations

import argparse

from mirai.commands.parsing import Commands, add_command


def add(commands: Commands) -> None:
    """show, diff."""
    command = add_command(
        commands,
        "show",
        "tell all about one state, or another stage",
        "Reads results/store/ and experiments/; writes nothing. Prints the recipe, its difference from the scale's baseline "
        "B, timeline, ancestors, checksums, metrics, and the rows that it is the result of. Example: mirai show 0cc8d0c3",
    )
    command.add_argument("key", metavar="KEY", help="a key of `mirai plan`, or its beginning")
    command.set_defaults(run=print_stage)
    command = add_command(
        commands,
        "diff",
        "compare two recipes field by field",
        "Reads results/store/ and experiments/; writes nothing. Example: mirai diff 0cc8d0c3 5f1e2d3c",
    )
    for name in ("first", "second"):
        command.add_argument(name, metavar="KEY", help="a key of `mirai plan`, or its beginning")
    command.set_defaults(run=print_differences)


def print_stage(options: argparse.Namespace) -> None:
    """Print all about a stage."""
    from mirai.experiments.inspection import show

    print("\n".join(show(options.key)))


def print_differences(options: argparse.Namespace) -> None:
    """Print what tells two stages apart."""
    from mirai.experiments.inspection import diff

    print("\n".join(diff(options.first, options.second)))
