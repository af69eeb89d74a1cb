"""log.jsonl of a state: one line per interval with loss terms, gradient norms and speed. Figures read it later."""

from __future__ import annotations

import json
import time
from pathlib import Path

import torch
from torch import Tensor

from mirai.states import write_text
from mirai.training.distributed import Ranks


class Journal:
    """Collects terms on the device and writes their means. A resumed run drops the lines that it does again."""

    def __init__(self, path: Path, first_step: int, batch_size: int, ranks: Ranks) -> None:
        self.path = path
        self.batch_size = batch_size
        self.ranks = ranks
        self._terms: list[dict[str, Tensor]] = []
        self._since = time.monotonic()
        if not ranks.writes:
            return
        lines = path.read_text().splitlines() if path.exists() else []
        kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= first_step]
        write_text(path, "".join(line + "\n" for line in kept))

    def add(self, terms: dict[str, Tensor]) -> None:
        """Terms of one step, still on the device: nothing waits for it here."""
        self._terms.append(terms)

    def write(self, step: int, epoch: float, coefficient: float) -> dict[str, float]:
        """One line with the means over steps and ranks since the last one -> those means. Here the device is waited for."""
        names = [name for name in self._terms[-1] if all(name in terms for terms in self._terms)]
        sums = torch.stack([torch.stack([terms[name].float() for name in names]) for terms in self._terms])
        means = dict(zip(names, self.ranks.mean(sums.mean(dim=0)).tolist(), strict=True))
        now = time.monotonic()
        speed = len(self._terms) * self.batch_size / (now - self._since)
        self._terms, self._since = [], now
        if not self.ranks.writes:
            return means
        line = {"step": step, "epoch": round(epoch, 4), "lambda": coefficient, **means, "images_per_second": speed}
        with self.path.open("a") as file:
            file.write(json.dumps({name: _number(value) for name, value in line.items()}) + "\n")
        return means


def _number(value: float) -> float | str:
    """Numbers as JSON has them; NaN and infinity as text, so that the file stays valid JSON."""
    return value if value == value and abs(value) != float("inf") else str(value)
