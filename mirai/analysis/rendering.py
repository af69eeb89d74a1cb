"""One table as CSV with all its numbers, and for reading as Markdown, LaTeX and HTML."""

from __future__ import annotations

import csv
import html
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Cell = str | int | float | None
Record = dict[str, Cell]  # a row of the CSV
Kind = Literal["text", "number", "paper", "verdict"]

NOTHING = "–"
HEADINGS = {"fid": "FID↓", "sfid": "sFID↓", "inception_score": "IS↑", "precision": "Prec.↑", "recall": "Rec.↑"}


@dataclass(frozen=True)
class Column:
    """A column for reading: how it prints a record. `paper`: a number that was not measured here."""

    heading: str
    show: Callable[[Record], str]
    kind: Kind = "number"


@dataclass(frozen=True)
class Table:
    """Records with all there is to know, columns of what is read, and notes below them."""

    title: str
    columns: tuple[Column, ...]
    records: tuple[Record, ...]
    notes: tuple[str, ...]

    def cells(self) -> list[list[str]]:
        """What is read, row by row."""
        return [[column.show(record) for column in self.columns] for record in self.records]


def csv_text(table: Table) -> str:
    """Every field of every record; columns in the order of the fullest one."""
    fullest_first = sorted(table.records, key=len, reverse=True)
    text = io.StringIO()
    writer = csv.DictWriter(
        text, list(dict.fromkeys(name for one in fullest_first for name in one)), lineterminator="\n"
    )
    writer.writeheader()
    writer.writerows([{name: _plain(value) for name, value in one.items()} for one in table.records])
    return text.getvalue()


def _plain(value: Cell) -> Cell:
    return round(value, 4) if isinstance(value, float) else value


def markdown(table: Table) -> str:
    """A pipe table under its title."""
    lines = [[column.heading for column in table.columns], *table.cells()]
    rows = ["| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines]
    rule = "|" + "".join(":--|" if column.kind in ("text", "verdict") else "--:|" for column in table.columns)
    return "\n\n".join([f"# {table.title}", "\n".join([rows[0], rule, *rows[1:]]), *table.notes]) + "\n"


TEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        **{letter: f"\\{letter}" for letter in "&%$#_{}"},
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": "$<$",
        ">": "$>$",
        "|": r"\textbar{}",
        "–": "--",
        "↓": r"$\downarrow$",
        "↑": r"$\uparrow$",
        "→": r"$\to$",
        "±": r"$\pm$",
        "×": r"$\times$",
        "≤": r"$\le$",
        "≥": r"$\ge$",
        "†": r"$^\dagger$",
        "λ": r"$\lambda$",
    }
)
# With the package booktabs its rules, without it LaTeX's own.
TEX_RULES = "\n".join(rf"\providecommand{{\{rule}rule}}{{\hline}}" for rule in ("top", "mid", "bottom"))


def latex(table: Table) -> str:
    r"""A tabular to \input, with its notes below."""
    shape = "".join("l" if column.kind in ("text", "verdict") else "r" for column in table.columns)

    def line(cells: list[str]) -> str:
        return " & ".join(cell.translate(TEX) for cell in cells) + r" \\"

    heading = line([column.heading for column in table.columns])
    body = [r"\toprule", heading, r"\midrule", *(line(cells) for cells in table.cells()), r"\bottomrule"]
    title = "% " + " ".join(table.title.split())
    notes = [r"\par\smallskip{\footnotesize " + note.translate(TEX) + r"\par}" for note in table.notes]
    return "\n".join([title, TEX_RULES, rf"\begin{{tabular}}{{{shape}}}", *body, r"\end{tabular}", *notes]) + "\n"


def html_fragment(table: Table) -> str:
    """A <table> with a caption, and its notes; classes for whoever styles it, no style and no script of its own."""
    heading = "".join(
        f'<th scope="col" class="{column.kind}">{html.escape(column.heading)}</th>' for column in table.columns
    )
    rows = []
    for record, cells in zip(table.records, table.cells(), strict=True):
        first, *others = map(html.escape, cells)
        data = [_html_cell(cell, column) for cell, column in zip(others, table.columns[1:], strict=True)]
        status = str(record["status"]).replace(" ", "-")
        rows.append(f'<tr class="{status}"><th scope="row">{first}</th>{"".join(data)}</tr>')
    return "\n".join(
        [
            '<table class="results">',
            f"<caption>{html.escape(table.title)}</caption>",
            f"<thead><tr>{heading}</tr></thead>",
            "<tbody>",
            *rows,
            "</tbody>",
            "</table>",
            *(f'<p class="note">{html.escape(note)}</p>' for note in table.notes),
            "",
        ]
    )


def _html_cell(cell: str, column: Column) -> str:
    """`cell` is escaped; of a verdict its word is a class of its own."""
    words = f"verdict {cell.replace(' ', '-')}" if column.kind == "verdict" and cell != NOTHING else column.kind
    return f'<td class="{words}">{cell}</td>'


def shown_change(percent: Cell) -> str:
    """A relative change, to stand behind a number."""
    return "" if percent is None else f" ({percent:+.1f} %)"


def shown_count(number: int) -> str:
    """A number of parameters to three digits, as 111M or 7.34M."""
    for unit, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= 0.9995 * unit:
            return f"{number / unit:.3g}{letter}"
    return str(number)
