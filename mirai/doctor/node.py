"""What `mirai doctor` looks at where trainings run: `python -m mirai.doctor.node FOLDER INPUT...`, one line of JSON."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

LOCK = ".doctor.lock"


def look(folder: Path, *inputs: Path) -> dict[str, Any]:
    """Whether the results folder can be written here and shows another node's lock, which inputs are missing, and what
    torch sees.
    """
    import torch

    return {
        "host": socket.gethostname(),
        "python": sys.version.split()[0],
        "write_error": _write_error(folder),
        "lock": lock_state(folder / LOCK),
        "missing": [str(path) for path in inputs if not path.exists()],
        "torch": torch.__version__,
        "cuda_build": torch.version.cuda,
        "gpus": torch.cuda.device_count() if torch.cuda.is_available() else 0,
        "gpu_name": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
    }


def lock_state(path: Path) -> str:
    """`held` by another process, `free`, or why this file system cannot tell."""
    try:
        with path.open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return "free"
    except BlockingIOError:
        return "held"
    except OSError as error:
        return str(error.strerror)


def _write_error(folder: Path) -> str | None:
    file = folder / f".doctor.{socket.gethostname()}.{os.getpid()}"
    try:
        file.write_text("written")
        file.unlink()
    except OSError as error:
        return str(error.strerror)
    return None


if __name__ == "__main__":
    print(json.dumps(look(*map(Path, sys.argv[1:]))))
