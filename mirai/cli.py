"""The command line: one command per rule of the workflow, and what a user does by hand. Its commands are in commands/."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from mirai.commands import evaluation, inspect, jobs, released, reports, sampling, schema, stages
from mirai.errors import UserError
from mirai.states import DISK_TROUBLE


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
        except BrokenPipeError:  # whoever reads has seen enough, as in `mirai status ... | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
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
    for part in (reports, inspect, stages, evaluation, sampling, jobs, released, schema):
        part.add(commands)
    return parser


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
