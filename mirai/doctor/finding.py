"""One line of the doctor: what was looked at, whether it is well, and what was found or how to mend it."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass

OF_A_JOB = ("SLURM_", "SBATCH_", "SRUN_")  # variables from which srun would take the surrounding job's size


@dataclass(frozen=True)
class Finding:
    """`well` is None for what does not apply here or could not be looked at."""

    what: str
    well: bool | None
    says: str

    def __str__(self) -> str:
        mark = {True: "ok", False: "FAIL", None: "--"}[self.well]
        return f"{mark:<5} {self.what:<15} {self.says}"


@dataclass(frozen=True)
class Answer:
    """What a program said; `code` is None where it is not there or took too long."""

    code: int | None
    out: str
    error: str

    @property
    def trouble(self) -> str:
        """Its last line of complaint, before srun's own that a task has failed."""
        lines = [line for line in self.error.splitlines() if line.strip() and "Exited with exit code" not in line]
        return (lines or [f"exit code {self.code}"])[-1]


def ask(*command: str, seconds: float = 30.0) -> Answer:
    """Run a program to its end, as if this were no job itself."""
    ours = {name: text for name, text in os.environ.items() if not name.startswith(OF_A_JOB) or name == "SLURM_CONF"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False, env=ours)
    except FileNotFoundError:
        return Answer(None, "", f"{command[0]} is not on PATH")
    except subprocess.TimeoutExpired:
        return Answer(None, "", f"{command[0]} did not answer within {seconds:g} s")
    return Answer(done.returncode, done.stdout, done.stderr)
