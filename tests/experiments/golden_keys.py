"""Keys of the paper's first grids, kept in keys.json so that no edit renames results unnoticed.

After raising a REVISION on purpose: `python -m tests.experiments.golden_keys` from the project's root, and commit.
"""

from __future__ import annotations

from pathlib import Path

from mirai.experiments import plan
from mirai.experiments.stages import Stage
from mirai.states import write_json

KEYS = Path(__file__).with_name("keys.json")
GRIDS = ("demo", "table2", "table5")  # at imagenet256 alone: small scales are still tuned


def stages_behind(stage: Stage) -> dict[str, Stage]:
    """A stage and all it needs, trunks of states included, by kind and key."""
    found = {f"{stage.kind} {stage.key}": stage}
    parent = plan.lookup(stage.key).parent
    trunk = [] if parent is None else [plan.lookup(parent).stage]
    for needed in (*stage.needs(), *trunk):
        found |= stages_behind(needed)
    return found


def current_keys() -> dict[str, dict[str, str]]:
    """Key of every stage behind the final metrics, by `grid row label` and kind."""
    result: dict[str, dict[str, str]] = {}
    for name in GRIDS:
        for number, row in enumerate(plan.plan_grid(name, "imagenet256").rows):
            (metrics,) = plan.row_metrics(row)
            stages = [metrics, metrics.reference_stage(), metrics.samples, metrics.samples.state]
            for stage in list(stages):
                stages += [needed for needed in stage.needs() if needed not in stages]
            result[f"{name} row {number} {row.label}"] = {stage.kind: stage.key for stage in stages}
    return result


if __name__ == "__main__":
    write_json(KEYS, current_keys())
    print(f"wrote {KEYS}")
