"""Table 13: what a method costs per image, by the paper's arithmetic and counted, and what its faster convergence is worth."""

from __future__ import annotations

import functools

from mirai.analysis.columns import MEASURED, label, label_columns, note_on, notes_on_rows, title, without_runs
from mirai.analysis.convergence import Goal, Interval, epochs_to_reach, goal, metric_of, speed_up
from mirai.analysis.records import percent, with_baselines
from mirai.analysis.rendering import HEADINGS, NOTHING, Cell, Column, Record, Table, shown_count
from mirai.experiments import paths
from mirai.experiments.grid import Grid, Row
from mirai.experiments.plan import plan_grid
from mirai.experiments.recipe import Run

FORMULA_NOTE = (
    "Parameters: of the model, and of the projection heads that training adds. FLOPs of training on one image while "
    "foresight is on, by the paper's arithmetic: 6 for each parameter (embeddings included) and token, for model and "
    "heads, and one forward pass of the EMA's first blocks; attention counted in the EMA's pass only, no encoder."
)
COUNTED_NOTE = (
    "Counted: all matrix products that torch's FLOP counter sees, forward and backward of model (attention included) and "
    "heads, forward of the EMA or the encoder (its whole picture, at its own resolution). Neither counts element-wise "
    "operations, the optimiser, the EMA's update, or data loading."
)


def compute_table(grid: Grid) -> Table:
    """The table of `report: flops`."""
    assert grid.convergence is not None
    converging = plan_grid(grid.convergence, grid.scale)
    end, needed = goal(converging), epochs_to_reach(converging)
    records = tuple(_record(grid, row, baseline, end, needed.get(row.label)) for row, baseline in with_baselines(grid))
    return Table(title(grid), tuple(_columns(grid)), records, tuple(_notes(grid, converging, end, records)))


def _record(grid: Grid, row: Row, baseline: Row | None, end: Goal, needed: Interval | None) -> Record:
    paper: Record = {f"paper_{name}": value for name, value in row.paper.items()}
    if not row.runs:
        return label(grid, row) | paper | without_runs(row)
    result = label(grid, row) | costs(row.runs[0]) | paper
    if baseline is not None and baseline is not row:
        plain = costs(baseline.runs[0])
        for name, overhead in (("flops", "overhead_percent"), ("counted_total", "counted_overhead_percent")):
            mine, theirs = result[name], plain[name]
            assert isinstance(mine, int)
            assert isinstance(theirs, int)
            result[overhead] = percent(mine, theirs)
    if needed is not None:
        result |= {"baseline_epochs": end.epochs, "epochs_after": needed.after, "epochs_up_to": needed.upto}
        extras = (
            ("epoch_", 0.0),
            ("", result.get("overhead_percent")),
            ("counted_", result.get("counted_overhead_percent")),
        )
        for prefix, extra in extras:
            if isinstance(extra, float):
                low, high = speed_up(needed, end, cost=1 + extra / 100)
                result |= {f"{prefix}speed_up_from": low, f"{prefix}speed_up_below": high}
    result |= {"status": MEASURED, "note": note_on(baseline)}
    return result


@functools.cache
def costs(run: Run) -> Record:
    """Parameters and FLOPs of a run; not to be changed by who gets it."""
    from mirai.analysis import flops, parameters  # import torch

    counted = flops.counted(run)
    return {
        "parameters": parameters.parameters(run),
        "heads": len(parameters.bare_heads(run)),
        "head_parameters": parameters.head_parameters(run),
        "encoder_parameters": parameters.encoder_parameters(run),
        "flops": flops.by_formula(run),
        "counted_model": counted.model,
        "counted_model_attention": counted.attention,
        "counted_heads": counted.heads,
        "counted_targets": counted.targets,
        "counted_total": counted.total,
    }


def _columns(grid: Grid) -> list[Column]:
    return [
        *label_columns(grid),
        Column("parameters", _parameters),
        Column("FLOPs", lambda one: _scientific(one.get("flops"))),
        Column("FLOPs paper", lambda one: _scientific(one.get("paper_flops")), "paper"),
        Column("overhead", lambda one: _percent(one.get("overhead_percent"))),
        Column("overhead paper", lambda one: _percent(one.get("paper_overhead_percent")), "paper"),
        Column("counted: model", lambda one: _scientific(one.get("counted_model"))),
        Column("of it attention", lambda one: _scientific(one.get("counted_model_attention"))),
        Column("heads", lambda one: _scientific(one.get("counted_heads"))),
        Column("EMA or encoder", lambda one: _scientific(one.get("counted_targets"))),
        Column("counted: total", lambda one: _scientific(one.get("counted_total"))),
        Column("overhead, counted", lambda one: _percent(one.get("counted_overhead_percent"))),
        Column("epochs needed", _epochs_needed),
        Column("speed-up in epochs", lambda one: _range(one, "epoch_")),
        Column("in FLOPs", lambda one: _range(one, "")),
        Column("in FLOPs, paper", lambda one: _times(one.get("paper_speed_up")), "paper"),
        Column("in counted FLOPs", lambda one: _range(one, "counted_")),
    ]


def _parameters(one: Record) -> str:
    """Of the model, and of what only training has."""
    model, heads, head = one.get("parameters"), one.get("heads"), one.get("head_parameters")
    if not isinstance(model, int):
        return NOTHING if model is None else str(model)
    extra = f" + {heads} × {shown_count(head)}" if heads and isinstance(head, int) else ""
    return shown_count(model) + extra


def _scientific(value: Cell) -> str:
    return f"{value:.2e}" if isinstance(value, int | float) and value else NOTHING


def _percent(value: Cell) -> str:
    return NOTHING if value is None else f"{value:.1f} %"


def _times(value: Cell) -> str:
    return NOTHING if value is None else f"{value:.1f}×"


def _epochs_needed(one: Record) -> str:
    if "baseline_epochs" not in one:
        return NOTHING
    after, upto = one["epochs_after"], one["epochs_up_to"]
    assert not isinstance(after, str | float)
    assert not isinstance(upto, str | float)
    return str(Interval(after, upto))


def _range(one: Record, prefix: str) -> str:
    low, high = (one.get(f"{prefix}speed_up_{end}") for end in ("from", "below"))
    if low is None:
        return NOTHING if high is None else f"< {_times(high)}"
    return f"≥ {_times(low)}" if high is None else f"{low:.1f}–{_times(high)}"


def _notes(grid: Grid, converging: Grid, end: Goal, records: tuple[Record, ...]) -> list[str]:
    metric = HEADINGS[metric_of(converging)].rstrip("↓↑")
    seeds = f"means over {len(converging.seeds)} seeds" if len(converging.seeds) > 1 else "one seed"
    notes = [
        FORMULA_NOTE,
        COUNTED_NOTE,
        f"Epochs needed: until {metric} is as good as that of {end.label} after {end.epochs} epochs ({end.value:.2f}), as an "
        f"interval between measured points of {converging.name} ({seeds}). Speed-up: the baseline's epochs over these, and "
        "over these at the method's own cost; an epoch of warm-up, which costs less, counts as one with foresight.",
    ]
    notes += notes_on_rows(records)
    if grid.scale != paths.PAPER_SCALE:
        notes.append(
            f"Scale {grid.scale}: other networks than the paper's; overheads can be compared with it, FLOPs cannot."
        )
    return notes
