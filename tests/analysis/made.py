"""Results of the digits scale as if they had been made: tables, a figure, sample pictures, costs."""

from __future__ import annotations

import numpy as np
from PIL import Image

from mirai.analysis.rendering import Column, Record, Table, csv_text, html_fragment
from mirai.experiments import paths
from mirai.experiments.plan import figure_key, record_key, table_key

SCALE = "digits"
TABLES, PICTURES = ("table2", "table6", "demo"), ("figure2", "figure8")
MISSING = ("table3", "figure3")
WIDTH, HEIGHT = 2000, 400  # pixels of the pictures
COSTS = """table,state,epoch,unit,slurm_hours,log_hours
table2,all,,CPU rank,,0.5000
table2,0123456789abcdef,80,CPU rank,,0.1234
all,all,,CPU rank,,0.7500
"""


def table(title: str) -> Table:
    """Three rows that are far too wide for a phone."""
    columns = (
        Column("Model", lambda record: str(record["model"]), "text"),
        *(Column(f"a long heading {number}", lambda record: str(record["fid"])) for number in range(8)),
        Column("FID↓ paper", lambda record: str(record["paper_fid"]), "paper"),
        Column("verdict (FID)", lambda record: "within noise", "verdict"),
    )
    records: tuple[Record, ...] = tuple(
        {"model": model, "fid": fid, "paper_fid": paper, "status": "measured"}
        for model, fid, paper in (("LlamaGen-B", 41.25, 6.36), ("+ Mirai-I", 31.5, 4.77), ("+ Mirai-E", 33.75, 5.22))
    )
    return Table(title, columns, records, ("Scale digits: one seed; ± is over random halves.",))


def make_results() -> None:
    """Write them into the working directory's results/, where experiments/ keeps a few grids only."""
    for path in paths.EXPERIMENTS.glob("[tf]*.yaml"):
        if path.stem not in (*TABLES, *PICTURES, *MISSING):
            path.unlink()
    for name in TABLES:
        made = paths.product(SCALE, name)
        made.parent.mkdir(parents=True, exist_ok=True)
        made.write_text(csv_text(table(name)))
        made.with_suffix(".html").write_text(html_fragment(table(name)))
        record_key(made, table_key(name, SCALE))
    colours = np.random.default_rng(0).integers(0, 256, (HEIGHT // 50, WIDTH // 50, 3), dtype=np.uint8)
    for name in PICTURES:
        made = paths.product(SCALE, name, ".png")
        Image.fromarray(colours.repeat(50, axis=0).repeat(50, axis=1)).convert("RGBA").save(made)
        made.with_suffix(".pdf").write_bytes(b"%PDF")
        made.with_suffix(".csv").write_text("a\n1\n")
        record_key(made, figure_key(name, SCALE))
    paths.costs(SCALE).write_text(COSTS)
