"""How far an extraction is: a note of each image, kept by every process that takes part and read by all after a restart."""

from __future__ import annotations

import contextlib
import json
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mirai.states import atomic_file

RECORDS = "progress*"  # of all processes that ever took part

Note = tuple[int, bool, str]  # state, enlarged, PIL's mode
Notes = npt.NDArray[np.void]
NOTE = np.dtype([("state", "u1"), ("enlarged", "?"), ("mode", "S6")])
ENCODED, SKIPPED = 1, 2  # states; 0: still to do


def read_notes(folder: Path, request: Mapping[str, Any]) -> Notes:
    """Notes (images,) of what all processes have done for a request together; a damaged record counts for nothing."""
    notes = np.zeros(request["source_images"], NOTE)
    for path in folder.glob(RECORDS):
        with contextlib.suppress(OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
            with np.load(path) as record:
                wanted, found = str(record["request"]), record["notes"]
            if wanted == _text(request):
                known = found["state"] > 0
                notes[known] = found[known]
    return notes


def write_notes(folder: Path, rank: int, request: Mapping[str, Any], notes: Notes) -> None:
    """Replace the record of one process. `notes` are what it found on starting and what it has done since."""
    with atomic_file(folder / f"progress-{rank}.npz") as file:
        np.savez_compressed(file, request=np.array(_text(request)), notes=notes)


def _text(request: Mapping[str, Any]) -> str:
    return json.dumps(request, sort_keys=True)


def deal(notes: Notes, batch: int, ranks: int) -> tuple[list[list[range]], int]:
    """Rounds with a chunk of images for each rank, and how many images they hold.

    What is in a chunk depends on `batch` alone: whoever encodes it, and after whatever kill, the arithmetic is the same.
    """
    done = notes["state"] > 0
    chunks = [range(first, min(first + batch, len(done))) for first in range(0, len(done), batch)]
    todo = [chunk for chunk in chunks if not done[chunk.start : chunk.stop].all()]
    return [todo[first : first + ranks] for first in range(0, len(todo), ranks)], sum(map(len, todo))
