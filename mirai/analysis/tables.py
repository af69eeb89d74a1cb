"""A grid's table: what was measured, beside what the paper reports.

Changes are relative to each one's own baseline, ours to ours and the paper's to the paper's; numbers of different
scales are never subtracted from each other. Only at the paper's scale is the difference to the paper given too.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

from mirai.analysis.columns import (
    ABSENT,
    MEASURED,
    label,
    label_columns,
    note_on,
    notes_on_rows,
    title,
    without_runs,
)
from mirai.analysis.compute import compute_table
from mirai.analysis.records import (
    Document,
    best_of_sweep,
    metrics_of,
    numerics_of,
    percent,
    summary,
    with_baselines,
)
from mirai.analysis.rendering import (
    HEADINGS,
    NOTHING,
    Column,
    Record,
    Table,
    csv_text,
    html_fragment,
    latex,
    markdown,
    shown_change,
)
from mirai.analysis.verdicts import RULE, verdict
from mirai.experiments import paths
from mirai.experiments.grid import Grid, Row
from mirai.experiments.grid_files import METRICS
from mirai.experiments.plan import record_key, row_metrics, table_key
from mirai.states import write_text


def write_table(grid: Grid) -> None:
    """Write the grid's table as CSV, Markdown, LaTeX and HTML; all its metrics must be there."""
    table = compute_table(grid) if grid.report == "flops" else metrics_table(grid)
    for suffix, render in ((".md", markdown), (".tex", latex), (".html", html_fragment), (".csv", csv_text)):
        write_text(paths.product(grid.scale, grid.name, suffix), render(table))
    record_key(paths.product(grid.scale, grid.name), table_key(grid.name, grid.scale))


def metrics_table(grid: Grid) -> Table:
    """The table of a grid's metrics."""
    records = tuple(record(grid, row, baseline) for row, baseline in with_baselines(grid))
    return Table(title(grid), tuple(_columns(grid, records)), records, tuple(_notes(grid, records)))


def record(grid: Grid, row: Row, baseline: Row | None) -> Record:
    """One row of the CSV."""
    result = label(grid, row)
    paper_baseline = {} if baseline is None or baseline is row else baseline.paper
    paper: Record = {}
    for metric, value in row.paper.items():
        paper[f"paper_{metric}"] = value
        paper[f"paper_{metric}_change_percent"] = percent(value, paper_baseline.get(metric))
    if not row.runs:
        return result | paper | without_runs(row)
    documents, run = metrics_of(row.runs), row.runs[0]
    result |= {
        "epochs": run.at_epoch or run.epochs,
        "guidance": run.sampling.guidance,
        "seeds": len(row.runs),
        "samples": documents[0]["num_samples"],
    }
    for metric in METRICS:
        result |= _measured(metric, documents, row, baseline)
        for name in (f"paper_{metric}", f"paper_{metric}_change_percent"):
            if name in paper:
                result[name] = paper[name]
        if grid.scale == paths.PAPER_SCALE and metric in row.paper:
            result[f"{metric}_minus_paper"] = summary(documents, metric).mean - row.paper[metric]
    if (best := best_of_sweep(row)) is not None:
        result |= {"best_fid": best.fid, "best_fid_guidance": best.guidance}
        result["best_fid_at_the_sweeps_end"] = "yes" if best.at_the_end else "no"
    for name, floor in documents[0]["coherence_of_reference"].items():
        result[name] = statistics.fmean(document["coherence"][name]["mean"] for document in documents)
        result[f"{name}_of_reference"] = floor["mean"]
    result["states"] = " ".join(stage.samples.state.key for stage in row_metrics(row))
    result["status"] = MEASURED
    beside = [] if baseline is None else metrics_of(baseline.runs)
    result["note"] = note_on(baseline, unequal=len(numerics_of(documents + beside)) > 1)
    return result


def _measured(metric: str, documents: list[Document], row: Row, baseline: Row | None) -> Record:
    """A metric with its spreads, and against the row's own baseline, if the grid has that row."""
    mine = summary(documents, metric)
    result: Record = {
        metric: mine.mean,
        f"{metric}_sd_over_seeds": mine.over_seeds,
        f"{metric}_sd_over_halves": mine.over_halves,
        f"{metric}_by_seed": " ".join(str(round(document[metric], 4)) for document in documents),
    }
    change = found = None
    if baseline is not None and baseline is not row:
        theirs = metrics_of(baseline.runs)
        change = percent(mine.mean, summary(theirs, metric).mean)
        found = verdict(_by_seed(row, documents, metric), _by_seed(baseline, theirs, metric), metric)
    result[f"{metric}_change_percent"] = change
    result[f"{metric}_verdict"] = None if found is None else found.word
    result[f"{metric}_difference"] = None if found is None else found.difference
    result[f"{metric}_difference_low"] = None if found is None else found.low
    result[f"{metric}_difference_high"] = None if found is None else found.high
    return result


def _by_seed(row: Row, documents: list[Document], metric: str) -> dict[int, float]:
    return {run.training.seed: document[metric] for run, document in zip(row.runs, documents, strict=True)}


def _columns(grid: Grid, records: tuple[Record, ...]) -> list[Column]:
    """The paper's columns, ours and the paper's side by side; all five metrics where the paper has none."""
    columns = label_columns(grid)
    cited = [metric for metric in METRICS if any(metric in row.paper for row in grid.rows)]
    for place, metric in enumerate(cited or METRICS):
        columns.append(Column(HEADINGS[metric], _metric_cell(metric, says_absent=place == 0)))
        if cited:
            columns.append(Column(f"{HEADINGS[metric]} paper", _paper_cell(metric, records), "paper"))
    if any("best_fid" in one for one in records):
        columns.append(Column("best FID↓ of the sweep", _best_cell))
    if any(one.get("fid_verdict") for one in records):
        columns.append(Column("verdict (FID)", lambda one: str(one.get("fid_verdict") or NOTHING), "verdict"))
    return columns


def _metric_cell(metric: str, *, says_absent: bool) -> Callable[[Record], str]:
    digits = 3 if metric in ("precision", "recall") else 2

    def show(one: Record) -> str:
        mean, over_seeds, over_halves = (one.get(f"{metric}{end}") for end in ("", "_sd_over_seeds", "_sd_over_halves"))
        if mean is None:
            return ABSENT if says_absent and one["status"] == ABSENT else NOTHING
        spread = over_halves if over_seeds is None else over_seeds
        shown = f"{mean:.{digits}f}" + (f" ± {spread:.{digits}f}" if spread is not None else "")
        return shown + shown_change(one[f"{metric}_change_percent"])

    return show


def _paper_cell(metric: str, records: tuple[Record, ...]) -> Callable[[Record], str]:
    """With as many digits as the paper prints in this column."""
    printed = [f"{one[f'paper_{metric}']:g}" for one in records if f"paper_{metric}" in one]
    digits = max(len(number.partition(".")[2]) for number in printed)

    def show(one: Record) -> str:
        value = one.get(f"paper_{metric}")
        return NOTHING if value is None else f"{value:.{digits}f}" + shown_change(one[f"paper_{metric}_change_percent"])

    return show


def _best_cell(one: Record) -> str:
    if "best_fid" not in one:
        return NOTHING
    end = ", the sweep's end" if one["best_fid_at_the_sweeps_end"] == "yes" else ""
    return f"{one['best_fid']:.2f} at {one['best_fid_guidance']:g}{end}"


def _notes(grid: Grid, records: tuple[Record, ...]) -> list[str]:
    """What the numbers are and are not."""
    notes = []
    if any(one.get("fid_change_percent") is not None for one in records):
        notes.append(
            "In brackets: the change against each one's own baseline, ours to ours and the paper's to the paper's."
        )
    if grid.available():
        notes.insert(0, _what_was_measured(grid))
    if any(one.get("fid_verdict") for one in records):
        notes.append(RULE + (" One seed gives no verdict." if len(grid.seeds) == 1 else ""))
    if any("best_fid" in one for one in records):
        notes.append(
            "The sweep's best is picked by the FID that is printed, on the same samples, and flatters every row a little; "
            "at its end, a scale outside the sweep might be better still."
        )
    notes += notes_on_rows(records)
    if grid.available() and grid.scale != paths.PAPER_SCALE:
        notes.append(
            "Another data set, model and feature network than the paper's: only signs and sizes of changes against each "
            "one's own baseline can be compared with the paper, its absolute values cannot."
        )
    return notes


def _what_was_measured(grid: Grid) -> str:
    first = grid.available()[0]
    document = metrics_of(first.runs[:1])[0]
    if len(grid.seeds) > 1:
        spread = f"mean ± standard deviation over {len(grid.seeds)} seeds"
    elif first.runs[0].evaluation.halves:
        spread = "one seed; ± is over random halves of one state's samples and says nothing about other seeds"
    else:
        spread = "one seed, and so no spread"
    runs = [run for row in grid.available() for run in row.runs]
    encoders = sorted({run.foresight.encoder.name for run in runs if run.foresight and run.foresight.encoder})
    return (
        f"Scale {grid.scale}: {spread}. {document['num_samples']} samples against {document['num_reference']} references, "
        f"features of: {first.runs[0].evaluation.features.name}."
        + (f" Encoder of Mirai-I: {', '.join(encoders)}." if encoders else "")
    )
