"""Fake programs of SLURM on PATH: each answers what a test has written for it, and notes how it was called."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


class Programs:
    """A folder of scripts before everything else on PATH."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        folder.mkdir()
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    def answer(self, name: str, out: str = "", *, error: str = "", code: int = 0, when: str = "") -> None:
        """What a program prints and its exit code; for calls with `when` among their arguments, or for all others."""
        case = self.folder / f"{name}.{len(list(self.folder.glob(f'{name}.*'))):03}"
        case.write_text(
            f"case \"$*\" in *\"{when}\"*) cat <<'E'\n{out}\nE\ncat >&2 <<'E'\n{error}\nE\nexit {code};; esac\n"
        )
        cases = "".join(path.read_text() for path in sorted(self.folder.glob(f"{name}.0*"), reverse=True))
        script = self.folder / name
        script.write_text(f'#!/bin/sh\necho "$*" >> {self.folder}/{name}-calls\n{cases}')
        script.chmod(0o755)

    def calls(self, name: str) -> list[str]:
        """The arguments of each call."""
        path = self.folder / f"{name}-calls"
        return path.read_text().splitlines() if path.exists() else []
