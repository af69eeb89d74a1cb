"""Released weights: fetching them, and taking them into this project's format."""

from __future__ import annotations

import argparse
from pathlib import Path

from mirai.commands.parsing import Commands, add_command
from mirai.errors import UserError


def add(commands: Commands) -> None:
    """import, download."""
    command = add_command(
        commands,
        "import",
        "take a released checkpoint into this project's format",
        "Reads LlamaGen's or PAR's .pt file, without running what is pickled in it; writes weights.safetensors and a "
        "manifest with sizes and SHA-256 in imported/NAME/. Example: mirai import llamagen c2i_B_256.pt",
    )
    command.add_argument("kind", choices=["llamagen", "par", "vq"])
    command.add_argument("file", type=Path)
    command.add_argument("--to", type=Path, help="folder to write (default: imported/ and the file's name)")
    command.add_argument("--resolution", type=int, help="pixels per side, where neither the file nor its name says it")
    command.add_argument("--ema", action="store_true", help="the averaged weights of a training checkpoint")
    command.set_defaults(run=import_file)

    command = add_command(
        commands,
        "download",
        "fetch released weights and reference files",
        "Reads config/downloads.yaml; writes checked files to weights/, where they are found without an entry in "
        "config/site.yaml. Without names it lists all. Example: mirai download vq_ds16_c2i inception",
    )
    command.add_argument("names", nargs="*", metavar="NAME")
    command.add_argument("--all", action="store_true", help="every file")
    command.add_argument("--to", type=Path, default=Path("weights"), help="folder to write (default: weights)")
    command.add_argument(
        "--list", action="store_true", help="say of these, or of all, how large they are and what is here"
    )
    command.set_defaults(run=download)


def import_file(options: argparse.Namespace) -> None:
    """Convert one file."""
    from mirai import imports

    folder = options.to or Path("imported") / options.file.stem
    if options.kind == "vq":
        if options.resolution is not None:
            raise UserError("mirai import vq takes no --resolution: a tokenizer works at any")
        imports.import_vq(options.file, folder, ema=options.ema)
    else:
        imports.import_transformer(
            options.file, folder, order=options.kind, resolution=options.resolution, ema=options.ema
        )
    print(f"{options.file} is in {folder}")


def download(options: argparse.Namespace) -> None:
    """Fetch files, or list them."""
    from mirai import downloads

    if options.names and options.all:
        raise UserError(f"mirai download takes names or --all, not both: {' '.join(options.names)} and --all")
    if options.list or not (options.names or options.all):
        downloads.print_files(options.names, folder=options.to)
    else:
        downloads.download(options.names, everything=options.all, folder=options.to)
