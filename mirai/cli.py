"""The command line: one command per rule of the workflow, and what a user does by hand. Parsing only; torch comes later."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from mirai.errors import UserError
from mirai.states import DISK_TROUBLE

Commands = Any  # what add_subparsers returns has no public type

# command -> (kind of stage, what it does, what it reads, what it leaves in results/store/<kind>/<key>/)
STAGE_COMMANDS = {
    "tokenizer": ("tokenizer", "train a small tokenizer or take in released weights", "images", "tokenizer.json"),
    "codes": ("codes", "encode every view of every training image", "images, tokenizer", "codes.json, codes.bin"),
    "encoder": ("encoder", "train a small foresight encoder", "images", "encoder.json"),
    "features": ("features", "train the network behind the Frechet distances", "images", "features.json"),
    "reference": ("reference", "compute statistics of the reference images", "images, features", "reference.json"),
    "train": (
        "state",
        "train the AR model up to a state, going on where it was stopped",
        "codes, encoder, parent state",
        "weights.json, resume.json, log.jsonl",
    ),
    "evaluate": ("metrics", "decode samples and score them", "samples, tokenizer, reference, features", "metrics.json"),
}


def main(arguments: list[str] | None = None) -> int:
    """Run one command -> exit code: 2 for a user's mistake (one sentence on stderr), 130 when interrupted."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = build_parser().parse_args(arguments, argparse.Namespace(arguments=arguments))
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(_logged(getattr(options, "log", None)))
            return int(options.run(options) or 0)
        except UserError as mistake:
            return _told(str(mistake), 2)
        except KeyboardInterrupt as interruption:
            return _told(str(interruption) or "interrupted; the same command goes on from what is saved", 130)
        except Exception as error:
            if isinstance(error, OSError) and error.errno in DISK_TROUBLE:  # in a write that is not an atomic one
                return _told(
                    f"{DISK_TROUBLE[error.errno]}; mend that, and the same command goes on from what is saved", 2
                )
            traceback.print_exc()  # a bug of ours: its traceback belongs into the log too
            return 1


def _told(sentence: str, code: int) -> int:
    print(f"mirai: {sentence}", file=sys.stderr)
    return code


def build_parser() -> argparse.ArgumentParser:
    """All commands with what they do, read and write, and an example each."""
    parser = argparse.ArgumentParser(
        prog="mirai",
        description="Autoregressive visual generation with foresight. Tables and figures are Snakemake targets "
        "(snakemake results/demo/table2.csv); these are the commands behind them.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_plan(commands)
    for name, (kind, purpose, reads, writes) in STAGE_COMMANDS.items():
        command = _command(
            commands,
            name,
            purpose,
            f"Reads {reads}; writes {writes} in results/store/{kind}/KEY/. Example: mirai {name} 0cc8d0c3dc213c9f",
        )
        command.add_argument("key", help=f"key of the {kind} stage; `mirai plan` lists keys")
        if name == "train":
            command.add_argument("--save-every-steps", type=int, help="a resume point every so many steps, not minutes")
            command.add_argument("--restore", action="store_true", help="a finished state's optimiser, deleted by gc")
        _add_log(command)
        command.set_defaults(run=_make, kind=kind)
    _add_sample(commands)
    _add_report(commands)
    _add_export(commands)
    _add_gc(commands)
    return parser


def _command(commands: Commands, name: str, purpose: str, detail: str) -> argparse.ArgumentParser:
    description = f"{purpose[0].upper()}{purpose[1:]}. {detail}"
    parser: argparse.ArgumentParser = commands.add_parser(name, help=purpose, description=description)
    return parser


def _add_log(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--log", type=Path, help="also write what is printed to this file, one progress line at a time"
    )


def _add_plan(commands: Commands) -> None:
    command = _command(
        commands,
        "plan",
        "print the tree of states behind a grid",
        "Reads experiments/ and results/store/; writes nothing. Example: mirai plan table2 --scale demo",
    )
    command.add_argument("grid", help="name of a file in experiments/, without .yaml")
    _add_scale(command)
    command.set_defaults(run=_plan)


def _add_scale(command: argparse.ArgumentParser) -> None:
    command.add_argument("--scale", default="imagenet256", help="demo, digits, folder-<name>, imagenet256 (default)")


def _add_sample(commands: Commands) -> None:
    command = _command(
        commands,
        "sample",
        "sample codes for a table, or a picture grid of chosen classes",
        "With KEY: reads weights.json; writes samples.json and shards in results/store/samples/KEY/. With --state: reads "
        "weights.json and its tokenizer; writes a picture. "
        "Example: mirai sample --state 0cc8d0c3dc213c9f --classes 0 3 5 --grid out.png",
    )
    command.add_argument("key", nargs="?", help="key of a samples stage")
    command.add_argument("--state", help="key of a trained state")
    command.add_argument("--classes", type=int, nargs="+", help="class numbers, one column each")
    command.add_argument("--grid", type=Path, help="PNG to write")
    command.add_argument("--rows", type=int, default=4, help="samples per class (default 4)")
    command.add_argument("--guidance", type=float, default=2.0, help="guidance scale (default 2)")
    command.add_argument("--top-k", type=int, default=0, help="sample from the k likeliest codes only (default 0: all)")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--weights", choices=["raw", "ema"], default="raw")
    _add_log(command)
    command.set_defaults(run=_sample, kind="samples")


def _add_report(commands: Commands) -> None:
    table = _command(
        commands,
        "table",
        "write a grid's table",
        "Reads metrics.json of all rows; writes results/[SCALE/]GRID.csv and .md. Example: mirai table demo --scale demo",
    )
    figure = _command(
        commands,
        "figure",
        "draw a grid's sample grid or token maps",
        "Reads samples or states; writes results/[SCALE/]GRID_FIGURE.png and .pdf. "
        "Example: mirai figure samples demo --scale demo",
    )
    figure.add_argument("figure", choices=["samples", "token_maps"])
    summary = _command(
        commands,
        "summary",
        "say where a grid's results are, what they show and how long they took",
        "Reads results/; writes nothing. Example: mirai summary demo --scale demo",
    )
    for command, run in ((table, _table), (figure, _figure), (summary, _summary)):
        command.add_argument("grid", help="name of a file in experiments/, without .yaml")
        _add_scale(command)
        _add_log(command)
        command.set_defaults(run=run)


def _add_export(commands: Commands) -> None:
    command = _command(
        commands,
        "export",
        "decode samples to pixels for other tools",
        "Reads a samples stage and its tokenizer; writes an ADM .npz (arr_0, uint8) or a folder of PNGs. "
        "Example: mirai export 5d1a0f3b6c7e8d92 --npz samples.npz",
    )
    command.add_argument("key", help="key of a samples stage")
    target = command.add_mutually_exclusive_group(required=True)
    target.add_argument("--npz", type=Path, help="file to write")
    target.add_argument("--png", type=Path, help="folder to write")
    command.set_defaults(run=_export)


def _add_gc(commands: Commands) -> None:
    command = _command(
        commands,
        "gc",
        "delete the optimisers of finished states",
        "Reads results/store/state/; deletes resume.json and resume.safetensors there. Tables stay as they are; a later "
        "fork retrains the trunk it needs, and a dry run shows that. Example: mirai gc --dry-run",
    )
    command.add_argument("--dry-run", action="store_true", help="only say what would go")
    command.set_defaults(run=_gc)


def _plan(options: argparse.Namespace) -> None:
    from mirai.experiments.overview import print_tree

    print_tree(options.grid, options.scale)


def _make(options: argparse.Namespace) -> int:
    from mirai.experiments.plan import freeze, lookup
    from mirai.experiments.site import load_site
    from mirai.launch import is_rank, run_ranks

    planned = lookup(options.key)
    if planned.stage.kind != options.kind:
        raise UserError(f"{options.key} is a {planned.stage.kind} stage, not a {options.kind} one")
    freeze(planned)
    ranks = load_site().ranks
    if planned.stage.kind == "state" and ranks > 1 and not is_rank():
        return run_ranks(options.arguments, ranks)
    from mirai.make import make

    training = {name: getattr(options, name) for name in ("save_every_steps", "restore") if hasattr(options, name)}
    if not make(planned, **training):
        print(f"mirai: {planned.stage.kind} {options.key} is there already")
    return 0


def _sample(options: argparse.Namespace) -> int:
    if (options.key is None) == (options.state is None):
        raise UserError("mirai sample takes the key of a samples stage, or --state with --classes and --grid")
    if options.key is not None:
        return _make(options)
    if not options.classes or options.grid is None:
        raise UserError("mirai sample --state needs --classes and --grid")
    from mirai.analysis.report import sample_picture

    sample_picture(
        options.state,
        classes=options.classes,
        rows=options.rows,
        guidance=options.guidance,
        top_k=options.top_k,
        seed=options.seed,
        weights=options.weights,
        path=options.grid,
    )
    return 0


def _table(options: argparse.Namespace) -> None:
    from mirai.analysis.tables import write_table
    from mirai.experiments.plan import plan_grid

    write_table(plan_grid(options.grid, options.scale))


def _figure(options: argparse.Namespace) -> None:
    from mirai.analysis.report import draw
    from mirai.experiments.plan import plan_grid

    draw(options.figure, plan_grid(options.grid, options.scale))


def _summary(options: argparse.Namespace) -> None:
    from mirai.experiments.overview import print_summary

    print_summary(options.grid, options.scale)


def _export(options: argparse.Namespace) -> None:
    from mirai.analysis.report import export_samples

    export_samples(options.key, npz=options.npz, png=options.png)


def _gc(options: argparse.Namespace) -> None:
    from mirai.experiments.collect import collect_optimisers

    collect_optimisers(dry_run=options.dry_run)


class _Tee:
    """A stream that also goes to a log file. Progress bars become lines, so that jobs side by side stay readable."""

    def __init__(self, stream: TextIO, log: TextIO) -> None:
        self.stream = stream
        self.log = log

    def write(self, text: str) -> int:
        lines = text.replace("\r", "\n") if text.strip() else text
        if lines.startswith("\n") and lines != "\n":
            lines = lines.removeprefix("\n").rstrip("\n") + "\n"
        self.stream.write(lines)
        with contextlib.suppress(OSError):  # a full disk is for the work itself to tell
            self.log.write(lines)
            self.log.flush()
        return len(text)

    def flush(self) -> None:
        self.stream.flush()

    def isatty(self) -> bool:
        return False


@contextlib.contextmanager
def _logged(path: Path | None) -> Iterator[None]:
    """Copy stdout and stderr to a log file while a command runs."""
    if path is None:
        yield
        return
    os.environ.setdefault("TQDM_MININTERVAL", "10")  # seconds; read when tqdm is imported, which is after this
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        log = path.open("a")
    except OSError as error:
        raise UserError(f"cannot write the log {path}: {error.strerror}") from None
    try:
        with contextlib.redirect_stdout(_Tee(sys.stdout, log)), contextlib.redirect_stderr(_Tee(sys.stderr, log)):
            yield
    finally:
        with contextlib.suppress(OSError):
            log.close()
