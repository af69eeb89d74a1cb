"""Tables say what was measured, and compare only what can be compared."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import yaml

from mirai.analysis.tables import write_table
from mirai.experiments import paths
from mirai.experiments.grid import METRICS, Grid
from mirai.experiments.plan import plan_grid, row_metrics
from mirai.states import publish

pytestmark = pytest.mark.usefixtures("project")


def pretend(grid: Grid, fid: dict[tuple[str, int], float], **more: Any) -> None:
    """Metrics for every run of a grid: FID by (label, seed), the other metrics 1."""
    for row in grid.available():
        for run, stage in zip(row.runs, row_metrics(row), strict=True):
            document = {
                **dict.fromkeys(METRICS, 1.0),
                "fid": fid[row.label, run.training.seed],
                "num_samples": 2000,
                "num_reference": 1500,
                "spread": {"fid": 0.25},
                "coherence": {},
                "coherence_of_reference": {},
                "state_numerics": {"threads": 1},
            }
            publish(paths.manifest("metrics", stage.key), {**document, **more.get(row.label, {})})


def rows_of(grid: Grid) -> list[dict[str, str]]:
    with paths.table(grid.scale, grid.name).open() as file:
        return list(csv.DictReader(file))


def edited_demo(**changes: Any) -> None:
    path = Path("experiments/demo.yaml")
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **changes}))


ONE_SEED = {("LlamaGen-B", 0): 40.0, ("+ Mirai-I", 0): 30.0, ("+ Mirai-E", 0): 50.0}


def test_changes_are_relative_to_each_ones_own_baseline() -> None:
    grid = plan_grid("demo", "digits")
    pretend(grid, ONE_SEED)
    write_table(grid)
    baseline, mirai_i, mirai_e = rows_of(grid)
    assert baseline["fid_change_percent"] == ""
    assert (float(mirai_i["fid_change_percent"]), float(mirai_e["fid_change_percent"])) == (-25.0, 25.0)
    assert float(mirai_i["paper_fid_change_percent"]) == pytest.approx(100 * (4.77 - 6.36) / 6.36, abs=1e-3)


def test_differences_to_the_paper_appear_at_its_own_scale_only() -> None:
    for scale, expected in (("digits", None), ("imagenet256", 40 - 6.36)):
        grid = plan_grid("demo", scale)
        pretend(grid, ONE_SEED)
        write_table(grid)
        difference = rows_of(grid)[0].get("fid_minus_paper")
        assert (difference and float(difference)) == (expected and pytest.approx(expected))
    assert paths.table("imagenet256", "demo") == Path("results/demo.csv")


def test_several_seeds_give_mean_and_deviation_and_one_seed_gives_none() -> None:
    grid = plan_grid("demo", "digits")
    pretend(grid, ONE_SEED)
    write_table(grid)
    assert rows_of(grid)[0]["fid_sd_over_seeds"] == ""
    assert float(rows_of(grid)[0]["fid_sd_over_halves"]) == 0.25
    assert "one seed" in paths.table("digits", "demo", ".md").read_text()

    plan_grid.cache_clear()
    edited_demo(seeds=[0, 1])
    grid = plan_grid("demo", "digits")
    pretend(grid, ONE_SEED | {(label, 1): value + 2 for (label, _), value in ONE_SEED.items()})
    write_table(grid)
    row = rows_of(grid)[1]
    assert (row["seeds"], float(row["fid"])) == ("2", 31.0)
    assert float(row["fid_sd_over_seeds"]) == pytest.approx(2**0.5, abs=1e-4)
    assert len(row["states"].split()) == 2
    assert "31.00 ± 1.41" in paths.table("digits", "demo", ".md").read_text()


def test_rows_that_a_scale_cannot_have_stay_in_the_table_with_the_papers_value() -> None:
    rows = yaml.safe_load(Path("experiments/demo.yaml").read_text())["rows"]
    edited_demo(rows=[*rows, {"label": "LlamaGen-XL", "arm": "baseline", "size": "XL", "paper": {"fid": 3.16}}])
    grid = plan_grid("demo", "digits")
    pretend(grid, ONE_SEED)
    write_table(grid)
    last = rows_of(grid)[-1]
    assert last["note"].startswith("not at this scale")
    assert (last["fid"], last["paper_fid"]) == ("", "3.16")
    assert "not at this scale" in paths.table("digits", "demo", ".md").read_text()


def test_states_of_different_numerics_are_marked() -> None:
    edited_demo(seeds=[0, 1])
    grid = plan_grid("demo", "digits")
    pretend(grid, ONE_SEED | {(label, 1): value for (label, _), value in ONE_SEED.items()})
    first = row_metrics(grid.rows[1])[0]
    document = {**dict.fromkeys(METRICS, 1.0), "num_samples": 1, "num_reference": 1, "spread": {}, "coherence": {}}
    content = {**document, "coherence_of_reference": {}, "state_numerics": {"threads": 2}}
    publish(paths.manifest("metrics", first.key), content)
    write_table(grid)
    notes = [row["note"] for row in rows_of(grid)]
    assert notes == ["", "states of different numerics", ""]


def test_markdown_names_the_stand_ins_and_warns_about_absolute_values() -> None:
    grid = plan_grid("demo", "digits")
    pretend(grid, ONE_SEED)
    write_table(grid)
    text = paths.table("digits", "demo", ".md").read_text()
    assert "tiny ViT (supervised)" in text
    assert "pixel-moment network" in text
    assert "its absolute values cannot" in text
    assert "DINO" not in text
