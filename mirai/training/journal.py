"""What a training tells while it runs: log.jsonl for programs, log.txt for eyes (tail -f), TensorBoard events if asked.

One line each per interval of steps. Means are over the interval's steps and all ranks; the first rank writes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mirai.ranks import Ranks
from mirai.states import write_text


class Journal:
    """Collects terms on the device and writes their means. A resumed run drops the JSON lines that it does again.

    `seconds` of a line are those since the line before, saving and start included: they add up over interruptions.
    """

    def __init__(
        self, folder: Path, first_step: int, last_step: int, batch_size: int, ranks: Ranks, *, tensorboard: bool = False
    ) -> None:
        self.path, self.text = folder / "log.jsonl", folder / "log.txt"
        self.last_step = last_step
        self.batch_size = batch_size
        self.ranks = ranks
        self._terms: list[dict[str, Tensor]] = []
        self._since = time.monotonic()
        self._events: Any = None  # torch's SummaryWriter
        if not ranks.writes:
            return
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= first_step]
        write_text(self.path, "".join(line + "\n" for line in kept))
        self._tell(f"from step {first_step} to {last_step}")
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter  # an optional package, whose absence the site tells

            self._events = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step + 1)

    def add(self, terms: dict[str, Tensor]) -> None:
        """Terms of one step, still on the device: nothing waits for it here."""
        self._terms.append(terms)

    def write(self, step: int, epoch: float, coefficient: float) -> dict[str, float]:
        """One line with the means since the last one -> those means. Here the device is waited for."""
        names = [name for name in self._terms[-1] if all(name in terms for terms in self._terms)]
        sums = torch.stack([torch.stack([terms[name].float() for name in names]) for terms in self._terms])
        means = dict(zip(names, self.ranks.mean(sums.mean(dim=0)).tolist(), strict=True))
        now, steps = time.monotonic(), len(self._terms)
        seconds = now - self._since
        self._terms, self._since = [], now
        if not self.ranks.writes:
            return means
        line = {
            "step": step,
            "last_step": self.last_step,
            "epoch": round(epoch, 4),
            "lambda": coefficient,
            **means,
            "images_per_second": steps * self.batch_size / seconds,
            "seconds": round(seconds, 3),
            "ranks": self.ranks.world,
            "eta_s": round((self.last_step - step) * seconds / steps, 1),
            **_gpu_memory(self.ranks.device),
        }
        with self.path.open("a") as file:
            file.write(json.dumps({name: _number(value) for name, value in line.items()}) + "\n")
        self._tell(_readable(line, self.last_step, means))
        if self._events is not None:
            for name in line.keys() - {"step", "last_step", "ranks"}:
                self._events.add_scalar(name, line[name], step)
            self._events.flush()
        return means

    def close(self) -> None:
        """No more lines."""
        if self._events is not None:
            self._events.close()

    def _tell(self, text: str) -> None:
        with self.text.open("a") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {text}\n")


def _gpu_memory(device: torch.device) -> dict[str, float]:
    """The most that torch has held of the first rank's GPU so far, in GB; nothing on the CPU."""
    return {"gpu_memory_gb": round(torch.cuda.max_memory_reserved(device) / 1e9, 2)} if device.type == "cuda" else {}


def _readable(line: dict[str, Any], last_step: int, means: Iterable[str]) -> str:
    terms = "  ".join(f"{name} {line[name]:.4f}" for name in means)
    memory = f"  gpu {line['gpu_memory_gb']:.1f} GB" if "gpu_memory_gb" in line else ""
    minutes, seconds = divmod(round(line["eta_s"]), 60)
    return (
        f"step {line['step']}/{last_step}  epoch {line['epoch']:g}  {terms}  {line['images_per_second']:.1f} images/s"
        f"{memory}  eta {minutes // 60}:{minutes % 60:02}:{seconds:02}"
    )


def _number(value: float) -> float | str:
    """Numbers as JSON has them; NaN and infinity as text, so that the file stays valid JSON."""
    return value if value == value and abs(value) != float("inf") else str(value)
