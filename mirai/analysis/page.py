"""One page with all that there is of a scale: tables, figures, costs, runs. A file that needs no other and no network.

Equal results give equal bytes: nothing on it depends on when or where it was made. Links lead to files beside it.
"""

from __future__ import annotations

import base64
import csv
import io
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from html import escape
from pathlib import Path

from PIL import Image

from mirai.analysis.style import DPI
from mirai.errors import UserError
from mirai.experiments import paths
from mirai.experiments.figures import Convergence, Curve, Samples, TokenMaps
from mirai.experiments.grid import Grid
from mirai.experiments.grid_files import grid_names, paper_grids
from mirai.experiments.overview import tree_lines
from mirai.experiments.plan import figure_key, plan_grid, row_metrics, suffixes, table_key
from mirai.experiments.scale import load_scale
from mirai.experiments.tree import Tree
from mirai.states import write_text

LARGEST = (1600, 2400)  # pixels of a picture on the page, which links to the whole one
MAGNIFIED = 1.7  # a figure on the page against print: its type is then about as large as the page's
LOSSLESS_BYTES = 400_000  # a larger picture is compressed with loss
# No script, and nothing is fetched: pictures are in the page itself.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
STYLE = Path(__file__).with_name("page.css")


@dataclass(frozen=True)
class Product:
    """A grid at a scale with what has been made of it, or why nothing can be."""

    name: str
    grid: Grid | None
    refusal: str = ""
    made: tuple[Path, ...] = ()
    missing: tuple[Path, ...] = ()  # targets of Snakemake

    @property
    def heading(self) -> str:
        """What it is called: by the paper if it is in the paper, else by the name of its file."""
        return self.label if self.grid is None else f"{self.label}: {self.grid.title}"

    @property
    def label(self) -> str:
        """The same, short."""
        return (self.grid.source if self.grid and self.name in paper_grids() else None) or self.name


def write_page(scale: str) -> Path:
    """Write the page of a scale; UserError for an unknown scale. What is not made yet is listed, not waited for."""
    load_scale(scale)
    page = paths.index(scale)
    products = [_product(name, scale) for name in _in_order()]
    shown = [one for one in products if one.made]
    papers = set(paper_grids())
    parts = {
        "The paper's tables": [one for one in shown if one.name in papers and one.name.startswith("table")],
        "The paper's figures": [one for one in shown if one.name in papers and one.name.startswith("figure")],
        "Own grids": [one for one in shown if one.name not in papers],
    }
    sections = {
        title: "\n".join(_article(one, scale, page) for one in group) for title, group in parts.items() if group
    }
    sections["Not made yet"] = _not_made(products, scale)
    sections["Costs"] = _costs(scale, page)
    made = sum(one.name in papers and not one.missing for one in shown)
    summary = f"Made at this scale: {made} of the paper's {len(papers)} tables and figures."
    write_text(page, _document(f"Mirai: results at scale {escape(scale)}", summary, sections, parts))
    return page


def _in_order() -> list[str]:
    papers = paper_grids()
    return [*papers, *(name for name in grid_names() if name not in papers)]


def _product(name: str, scale: str) -> Product:
    try:
        grid = plan_grid(name, scale)
    except UserError as refusal:
        return Product(name, None, str(refusal))
    targets = [paths.product(scale, name, suffix) for suffix in suffixes(grid)]
    files = [path for suffix in paths.SUFFIXES if (path := paths.product(scale, name, suffix)).is_file()]
    there = any(target in files for target in targets)  # without a first output others are left-overs
    missing = tuple(target for target in targets if target not in files)
    return Product(name, grid, made=tuple(files) if there else (), missing=missing)


# Parts of the page. All take and return text that is escaped already, but for what comes from files and grids.


def _document(title: str, summary: str, sections: dict[str, str], parts: dict[str, list[Product]]) -> str:
    links = [f'<li><a href="#{_anchor(name)}">{name}</a>{_contents(parts.get(name, []))}</li>' for name in sections]
    body = [
        f'<section aria-labelledby="{_anchor(name)}">\n<h2 id="{_anchor(name)}">{name}</h2>\n{content}\n</section>'
        for name, content in sections.items()
    ]
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            '<link rel="icon" href="data:,">',  # else a browser asks the server for one
            f"<title>{title}</title>",
            f"<style>\n{STYLE.read_text()}</style>",
            "</head>",
            "<body>",
            '<a class="skip" href="#content">Skip to the results</a>',
            f"<header>\n<h1>{title}</h1>\n<p>{summary}</p>\n</header>",
            '<nav aria-label="Contents">\n<ul>',
            *links,
            '</ul>\n</nav>\n<main id="content" tabindex="-1">',
            *body,
            "</main>",
            "</body>",
            "</html>",
            "",
        ]
    )


def _contents(products: list[Product]) -> str:
    names = [(one.name, one.label.partition(" (")[0]) for one in products]
    links = [f'<li><a href="#grid-{name}">{escape(label)}</a></li>' for name, label in names]
    return f"<ul>{''.join(links)}</ul>" if links else ""


def _article(product: Product, scale: str, page: Path) -> str:
    assert product.grid is not None
    grid, files = product.grid, {path.suffix: path for path in product.made}
    content = [f'<h3 id="grid-{product.name}">{escape(product.heading)}</h3>', *_outdated(product, scale)]
    if ".png" in files and ".png" in suffixes(grid):
        content.append(_picture(files[".png"], _alternative(grid), page))
    if ".html" in files:
        content.append(_scrolling(files[".html"].read_text(), escape(product.heading)))
    content += [f"<p>Not made yet: <code>snakemake {path}</code></p>" for path in product.missing]
    links = ", ".join(_link(path, path.name, page) for path in product.made)
    content.append(f'<p class="files">Files: {links}</p>')
    if grid.available():
        content.append(_details("Runs: recipes, logs, keys", _scrolling(_runs(grid, page), "Runs")))
        content.append(_details("Tree of states", _scrolling(f"<pre>{escape(_tree(grid))}</pre>", "Tree of states")))
    return f'<article aria-labelledby="grid-{product.name}">\n' + "\n".join(content) + "\n</article>"


def _outdated(product: Product, scale: str) -> list[str]:
    """Says so where a table or figure was made for other rows than the grid's file has today."""
    keys: dict[str, Callable[[str, str], str]] = {".csv": table_key, ".png": figure_key}
    assert product.grid is not None
    result = []
    for path in product.made:
        if path.suffix not in suffixes(product.grid):
            continue
        record = paths.key_record(path)
        if record.exists() and record.read_text().strip() != keys[path.suffix](product.name, scale):
            result.append(f'<p class="warning">Its grid was edited since: <code>snakemake {path}</code></p>')
    return result


def _picture(path: Path, alternative: str, page: Path) -> str:
    with Image.open(path) as opened:
        image = Image.new("RGB", opened.size, "white")
        image.paste(opened, mask=opened.getchannel("A") if opened.mode == "RGBA" else None)
    inches = image.width / DPI * MAGNIFIED
    image.thumbnail(LARGEST, Image.Resampling.LANCZOS)
    data = _webp(image, lossless=True)
    data = data if len(data) <= LOSSLESS_BYTES else _webp(image, lossless=False)
    source = f"data:image/webp;base64,{base64.b64encode(data).decode()}"
    width, height = image.size
    return (
        f'<figure><a href="{_relative(path, page)}"><img src="{source}" width="{width}" height="{height}" '
        f'style="width:min(100%,{inches:.2f}in)" alt="{escape(alternative)}"></a></figure>'
    )


def _webp(image: Image.Image, *, lossless: bool) -> bytes:
    file = io.BytesIO()
    image.save(file, "WEBP", lossless=lossless, quality=90)
    return file.getvalue()


def _alternative(grid: Grid) -> str:
    """What a figure shows, for those who do not see it."""
    labels = ", ".join(dict.fromkeys(row.label for row in grid.available()))
    below = "the numbers are in the table below"
    match grid.figure:
        case Curve(x=axis, metric=metric):
            return f"Plot of {_words(metric)} against {_words(axis)} for {labels}; {below}."
        case Convergence(metric=metric):
            return f"Samples of the same classes and seeds, and {_words(metric)} against epochs, for {labels}; {below}."
        case Samples():
            return f"Sampled pictures of the same classes and seeds for {labels}."
        case TokenMaps():
            return f"Hidden states as colours on the token grid beside their images for {labels}."
        case _:
            return "The foresight positions of a token on the token grid, by layout and number of tokens."


def _words(name: str) -> str:
    return "FID" if name == "fid" else "sFID" if name == "sfid" else name.replace("_", " ")


def _runs(grid: Grid, page: Path) -> str:
    rows = []
    for row in grid.available():
        axes = " ".join(f"{name}={value}" for name, value in row.axes.items())
        for run, metrics in zip(row.runs, row_metrics(row), strict=True):
            state = metrics.samples.state
            log = paths.benchmark("state", state.key).with_suffix(".log")
            cells = [
                str(run.training.seed),
                str(state.epoch),
                _link(paths.frozen("state", state.key), state.key, page),
                _link(log, "log", page),
                _link(paths.frozen("metrics", metrics.key), metrics.key, page),
                _link(paths.manifest("metrics", metrics.key), "metrics", page),
            ]
            rows.append([escape(f"{row.label} {axes}".strip()), *cells])
    headings = ["Run", "Seed", "Epoch", "State, its recipe", "Training", "Metrics, their recipe", "Values"]
    return _table(headings, rows)


def _tree(grid: Grid) -> str:
    return "\n".join(tree_lines(Tree([grid])))


def _not_made(products: Iterable[Product], scale: str) -> str:
    missing = [f"{escape(one.heading)}: <code>snakemake {path}</code>" for one in products for path in one.missing]
    refused = [f"{escape(one.name)}: {escape(one.refusal)}" for one in products if one.refusal]
    everything = f"<p>All of the paper at this scale: <code>snakemake {paths.everything(scale)}</code></p>\n"
    content = everything + _list(missing) if missing else "<p>Everything is made.</p>"
    return content + (f"\n<p>Cannot be made at this scale:</p>\n{_list(refused)}" if refused else "")


def _costs(scale: str, page: Path) -> str:
    path = paths.costs(scale)
    if not path.exists():
        return f"<p>Not made yet: <code>snakemake {path}</code></p>"
    with path.open() as file:
        sums = [row for row in csv.DictReader(file) if row["state"] == "all"]
    headings = ["Table", "Hours of", "By SLURM's account", "By its journals"]
    rows = [[escape(row[name] or "–") for name in ("table", "unit", "slurm_hours", "log_hours")] for row in sums]
    about = "Hours of training behind each table; <code>all</code> counts shared states once. By state: "
    return f"<p>{about}{_link(path, path.name, page)}</p>\n{_scrolling(_table(headings, rows), 'Costs')}"


def _list(items: list[str]) -> str:
    return "\n".join(["<ul>", *(f"<li>{item}</li>" for item in items), "</ul>"])


def _table(headings: list[str], rows: list[list[str]]) -> str:
    head = "".join(f'<th scope="col">{heading}</th>' for heading in headings)
    body = [
        f'<tr><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in others)}</tr>'
        for first, *others in rows
    ]
    return f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n" + "\n".join(body) + "\n</tbody>\n</table>"


def _scrolling(content: str, label: str) -> str:
    """Tables and preformatted text in boxes of their own that scroll sideways, by keyboard too."""
    box = f'<div class="scroll" role="region" aria-label="{label}" tabindex="0">'
    return re.sub(r"<(table|pre)\b.*?</\1>", lambda found: f"{box}\n{found[0]}\n</div>", content, flags=re.DOTALL)


def _details(summary: str, content: str) -> str:
    return f"<details><summary>{summary}</summary>\n{content}\n</details>"


def _link(path: Path, text: str, page: Path) -> str:
    """A link to a file that is there, else the text alone."""
    return f'<a href="{_relative(path, page)}">{escape(text)}</a>' if path.exists() else escape(text)


def _relative(path: Path, page: Path) -> str:
    return escape(os.path.relpath(path, page.parent))


def _anchor(title: str) -> str:
    return re.sub(r"[^a-z]+", "-", f"part-{title}".lower())
