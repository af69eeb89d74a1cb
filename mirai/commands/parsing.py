"""What the parsers of several commands share."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

Commands = Any  # what add_subparsers returns has no public type


def add_command(commands: Commands, name: str, purpose: str, detail: str) -> argparse.ArgumentParser:
    """A command with its one line in the list of commands, and a description that adds inputs, outputs, an example."""
    description = f"{purpose[0].upper()}{purpose[1:]}. {detail}"
    parser: argparse.ArgumentParser = commands.add_parser(name, help=purpose, description=description)
    return parser


def add_log(command: argparse.ArgumentParser) -> None:
    """The option of every command that a rule runs."""
    command.add_argument(
        "--log", type=Path, help="also write what is printed to this file, one progress line at a time"
    )


def add_grid(command: argparse.ArgumentParser) -> None:
    """A grid at a scale."""
    command.add_argument("grid", help="name of a file in experiments/, without .yaml")
    command.add_argument("--scale", default="imagenet256", help="demo, digits, folder-<name>, imagenet256 (default)")
