"""A grid's table: what was measured, beside what the paper reports.

Changes are relative to each one's own baseline, ours to ours and the paper's to the paper's; numbers of different
scales are never subtracted from each other. Only at the paper's scale is the difference to the paper given too.
"""

from __future__ import annotations

import csv
import io
import json
import statistics
from dataclasses import dataclass
from typing import Any

from mirai.experiments import paths
from mirai.experiments.grid import METRICS, Grid, Row
from mirai.experiments.plan import record_key, row_metrics, table_key
from mirai.experiments.recipe import Run
from mirai.experiments.stages import metrics_stage
from mirai.states import read_json, write_text

Cell = str | int | float | None

HEADINGS = {"fid": "FID↓", "sfid": "sFID↓", "inception_score": "IS↑", "precision": "Prec.↑", "recall": "Rec.↑"}


@dataclass(frozen=True)
class Measured:
    """One metric of a row: mean and standard deviation over seeds, and over random halves of one state's samples."""

    mean: float
    over_seeds: float | None
    over_halves: float | None


def write_table(grid: Grid) -> None:
    """Write the grid's CSV and Markdown; all its metrics must be there."""
    records = [record(grid, row) for row in grid.rows]
    columns = list(dict.fromkeys(name for one in records for name in one))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows([{name: _plain(value) for name, value in one.items()} for one in records])
    write_text(paths.table(grid.scale, grid.name, ".md"), markdown(grid))
    write_text(paths.table(grid.scale, grid.name), text.getvalue())
    record_key(paths.table(grid.scale, grid.name), table_key(grid.name, grid.scale))


def record(grid: Grid, row: Row) -> dict[str, Cell]:
    """One row of the CSV."""
    result: dict[str, Cell] = {"model": row.label, **{name: row.axes.get(name) for name in grid.columns}}
    if row.unavailable is not None:
        cited = {f"paper_{metric}": value for metric, value in row.paper.items()}
        return result | {"note": f"not at this scale: {row.unavailable}"} | cited
    documents = metrics_of(row.runs)
    run = row.runs[0]
    result |= {
        "epochs": run.epochs,
        "guidance": run.sampling.guidance,
        "seeds": len(row.runs),
        "samples": documents[0]["num_samples"],
    }
    paper_baseline = _paper_baseline(grid, row)
    for metric in METRICS:
        measured = summary(documents, metric)
        result[metric] = measured.mean
        result[f"{metric}_sd_over_seeds"] = measured.over_seeds
        result[f"{metric}_sd_over_halves"] = measured.over_halves
        result[f"{metric}_change_percent"] = change(grid, row, metric)
        if metric in row.paper:
            result[f"paper_{metric}"] = row.paper[metric]
            result[f"paper_{metric}_change_percent"] = _percent(row.paper[metric], paper_baseline.get(metric))
            if grid.scale == paths.PAPER_SCALE:
                result[f"{metric}_minus_paper"] = measured.mean - row.paper[metric]
    for name, floor in documents[0]["coherence_of_reference"].items():
        result[name] = statistics.fmean(document["coherence"][name]["mean"] for document in documents)
        result[f"{name}_of_reference"] = floor["mean"]
    result["states"] = " ".join(stage.samples.state.key for stage in row_metrics(row))
    layouts = {json.dumps(document["state_numerics"], sort_keys=True) for document in documents}
    result["note"] = "states of different numerics" if len(layouts) > 1 else None
    return result


def metrics_of(runs: tuple[Run, ...]) -> list[dict[str, Any]]:
    """The metrics.json of each run."""
    return [read_json(paths.manifest("metrics", metrics_stage(run).key)) for run in runs]


def summary(documents: list[dict[str, Any]], metric: str) -> Measured:
    """Mean over seeds with both spreads; the one over halves is the mean of the seeds' own."""
    values = [document[metric] for document in documents]
    spreads = [document["spread"][metric] for document in documents if metric in document["spread"]]
    return Measured(
        mean=statistics.fmean(values),
        over_seeds=statistics.stdev(values) if len(values) > 1 else None,
        over_halves=statistics.fmean(spreads) if spreads else None,
    )


def change(grid: Grid, row: Row, metric: str) -> float | None:
    """Percent against the row's own baseline, if the grid has that row; None for the baseline itself."""
    baseline = _baseline_row(grid, row)
    if baseline is None or baseline is row:
        return None
    mine, theirs = (summary(metrics_of(one.runs), metric).mean for one in (row, baseline))
    return _percent(mine, theirs)


def _baseline_row(grid: Grid, row: Row) -> Row | None:
    return next((other for other in grid.available() if other.runs == row.baselines), None)


def _paper_baseline(grid: Grid, row: Row) -> dict[str, float]:
    baseline = _baseline_row(grid, row)
    return {} if baseline is None or baseline is row else baseline.paper


def _percent(value: float, baseline: float | None) -> float | None:
    return None if not baseline else 100 * (value - baseline) / baseline


def _plain(value: Cell) -> Cell:
    return round(value, 4) if isinstance(value, float) else value


def markdown(grid: Grid) -> str:
    """The table for reading, with what its numbers are and are not."""
    metrics = [metric for metric in METRICS if any(metric in row.paper for row in grid.rows)] or list(METRICS)
    metrics += [metric for metric in METRICS if metric not in metrics]
    cited = [metric for metric in metrics if any(metric in row.paper for row in grid.rows)]
    header = ["Model", *grid.columns, *(HEADINGS[metric] for metric in metrics)]
    header += [f"{HEADINGS[metric]} change" for metric in cited] + [f"paper {HEADINGS[metric]}" for metric in cited]
    header += [f"paper {HEADINGS[metric]} change" for metric in cited]
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for row in grid.rows:
        lines.append("| " + " | ".join(_markdown_cells(grid, row, metrics, cited)) + " |")
    source = f" ({grid.source})" if grid.source else ""
    return f"# {grid.title}{source}\n\n" + "\n".join(lines) + "\n\n" + _footnote(grid) + "\n"


def _markdown_cells(grid: Grid, row: Row, metrics: list[str], cited: list[str]) -> list[str]:
    axes = [str(row.axes.get(name, "–")) for name in grid.columns]
    paper = [f"{row.paper[metric]:g}" if metric in row.paper else "–" for metric in cited]
    if row.unavailable is not None:
        return [
            row.label,
            *axes,
            *["not at this scale"] * len(metrics),
            *["–"] * len(cited),
            *paper,
            *["–"] * len(cited),
        ]
    documents = metrics_of(row.runs)
    baseline = _paper_baseline(grid, row)
    values = [_shown(metric, summary(documents, metric)) for metric in metrics]
    ours = [_signed(change(grid, row, metric)) for metric in cited]
    theirs = [
        _signed(_percent(row.paper[metric], baseline.get(metric)) if metric in row.paper else None) for metric in cited
    ]
    return [row.label, *axes, *values, *ours, *paper, *theirs]


def _shown(metric: str, measured: Measured) -> str:
    digits = 3 if metric in ("precision", "recall") else 2
    spread = measured.over_seeds if measured.over_seeds is not None else measured.over_halves
    return f"{measured.mean:.{digits}f}" + (f" ± {spread:.{digits}f}" if spread is not None else "")


def _signed(percent: float | None) -> str:
    return "–" if percent is None else f"{percent:+.1f} %"


def _footnote(grid: Grid) -> str:
    run = grid.available()[0].runs[0]
    evaluation, documents = run.evaluation, metrics_of(grid.available()[0].runs)
    spread = (
        f"mean ± standard deviation over {len(grid.seeds)} seeds"
        if len(grid.seeds) > 1
        else "one seed; ± is over random halves of one state's samples and says nothing about other seeds"
    )
    encoders = sorted(
        {r.foresight.encoder.name for row in grid.available() for r in row.runs if r.foresight and r.foresight.encoder}
    )
    parts = [
        f"Scale {grid.scale}: {spread}.",
        f"{documents[0]['num_samples']} samples against {documents[0]['num_reference']} references, "
        f"features of: {evaluation.features.name}.",
    ]
    if encoders:
        parts.append(f"Encoder of Mirai-I: {', '.join(encoders)}.")
    if grid.scale != paths.PAPER_SCALE:
        parts.append(
            "Another data set, model and feature network than the paper's: only signs and sizes of changes against each "
            "one's own baseline can be compared with the paper, its absolute values cannot."
        )
    return " ".join(parts)
