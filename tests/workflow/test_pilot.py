"""`make pilot` on a CPU: its own targets and grids, at a size whose stages take a second each."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import yaml
from PIL import Image

from tests.workflow.project import ROOT, Project

pytestmark = pytest.mark.workflow

TARGETS = re.findall(r"results/pilot/\S+", (ROOT / "Makefile").read_text())
KEPT = ("LlamaGen-B", "+ Foresight")  # one row each of Table 1: the trunk they share is the demo grid's


def shrink(scale_file: Path) -> None:
    """The pilot on a CPU: the same stages and grid of tokens; fewer and narrower of everything, and one seed."""
    scale = yaml.safe_load(scale_file.read_text())
    scale["data"]["num_images"] = 64
    scale["tokenizer"] |= {"channels": 4, "res_blocks": 1, "z_channels": 8, "codebook_size": 32}
    scale["tokenizer"]["training"] |= {"steps": 4, "batch_size": 8, "num_images": 64}
    scale["sizes"]["B"]["model"] |= {"num_heads": 2, "width": 16, "ffn_multiple": 16}
    for encoder in scale["encoders"].values():
        encoder["training"] |= {"width": 16, "num_heads": 2, "steps": 4, "batch_size": 8, "num_images": 64}
    scale["head"]["width"] = 16
    scale["training"] |= {"batch_size": 4, "epoch_images": 4, "ema_decay": 0.5}
    scale |= {"ladder": [15], "seeds": [3]}
    scale["sampling"] |= {"num_samples": 160, "batch_size": 160}
    scale["evaluation"] |= {"num_reference": 160, "is_split_size": 160, "halves": 2}
    scale["evaluation"]["features"] |= {
        "width": 4,
        "spatial_channels": 1,
        "steps": 4,
        "batch_size": 8,
        "num_images": 64,
    }
    scale["numerics"] |= {"device": "cpu", "threads": 1}
    scale_file.write_text(yaml.safe_dump(scale, sort_keys=False))


def cut(grid_file: Path) -> None:
    """The first row of each kind."""
    grid = yaml.safe_load(grid_file.read_text())
    grid["rows"] = [next(row for row in grid["rows"] if row["label"] == label) for label in KEPT]
    grid_file.write_text(yaml.safe_dump(grid, sort_keys=False))


def test_one_command_makes_tables_and_pictures_of_the_pilot(clone: Project) -> None:
    shrink(clone.root / "experiments/scales/pilot.yaml")
    cut(clone.root / "experiments/table1.yaml")
    assert {Path(target).stem for target in TARGETS} == {"demo", "table1", "demo_samples", "demo_token_maps"}
    clone.make(*TARGETS)
    for target in TARGETS:
        if target.endswith(".csv"):
            for row in clone.table(target):
                assert row["epochs"] == "80"
                assert math.isfinite(float(row["fid"])), row["model"]
        else:
            with Image.open(clone.root / target) as image:
                assert min(image.size) > 100
    first, second = (clone.table(f"results/pilot/{grid}.csv") for grid in ("demo", "table1"))
    assert [row["model"] for row in second] == list(KEPT)
    assert first[0]["states"] == second[0]["states"], "the baseline of both tables is one training"
    seeds = {clone.stage("state", key).training.seed for key in clone.stored("state")}  # type: ignore[attr-defined]
    assert seeds == {3}
    assert "Nothing to be done" in clone.make(*TARGETS)
