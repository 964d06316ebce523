"""The comparison tables on a terminal, or as plain text if there is no terminal. Text is never cut off."""

from __future__ import annotations

import os
from collections.abc import Iterable

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text
from tabulate import SEPARATING_LINE, tabulate

from clbench.report.analysis.headline import LEADS
from clbench.report.model import Column, Report, Row, Section, Table

_ASCII = {"±": "+/-", "↑": "(up)", "↓": "(down)", "†": "(t)", "‡": "(own)", "§": "(all)", "¶": "(recipe)",
          "※": "(stale)", "△": "(underfit)", "○": "(chance)", "\N{EN DASH}": "-"}
_TITLE_OF_RANKS = "across settings"
MOST_NOTES = 5  # notes that are shown; report.md has all of them
_PADDING = 3  # characters between two cells, at most
_BEST = " *"  # after the best value of a column, if bold is not available
_WIDTH = 120  # characters, if neither a terminal nor COLUMNS gives the width


def standard_output() -> Console:
    """Return a console on standard output. Its width is that of the terminal, or COLUMNS, or 120 characters."""
    console = Console()
    if not console.is_terminal and not os.environ.get("COLUMNS", "").isdigit():
        console.width = max(console.width, _WIDTH)
    return console


def show(report: Report, console: Console | None = None) -> None:
    """Print each section's first lines, trials without a result, comparison table and notes.

    If a table is too wide for the console, its remaining columns follow below. The best value of a column is bold on a
    terminal and has a `*` elsewhere (in a file or a pipe).
    """
    console = console or standard_output()
    for section in report.sections:
        _line(section.title, console, "bold")
        _lines("", (f"{LEADS[topic]} {text}".strip() for topic, text in section.headline), console, "")
        _lines("no result: ", section.problems, console, "bold red")
        show_table(section.comparison, console)
        _lines("", notes_to_show(section), console, "dim")
        _lines("", (f"{name}: {value}" for name, value in section.setting), console, "dim")
        best = () if console.is_terminal else ("* marks bold.",)
        _lines("", (*section.footnote, *best), console, "dim")
        console.out()
    show_tables(_TITLE_OF_RANKS, report.rankings, report.ranking_verdicts, console)


def notes_to_show(section: Section) -> list[str]:
    """Return the first notes of a section, and how many more there are."""
    lines = [f"- {note}" for note in section.notes[:MOST_NOTES]]
    omitted_count = len(section.notes) - len(lines)
    if omitted_count > 1:
        return [*lines, f"{omitted_count} more notes are in report.md."]
    return [f"- {note}" for note in section.notes]


def show_tables(title: str, tables: Iterable[Table], verdicts: Iterable[str], console: Console) -> None:
    """Print tables with their titles and verdicts under one title. Print nothing if there are none."""
    tables, verdicts = list(tables), list(verdicts)
    if tables or verdicts:
        _line(title, console, "bold")
    for table in tables:
        _line(table.title, console, "dim")
        show_table(table, console)
    _lines("", verdicts, console, "")


def show_table(table: Table, console: Console) -> None:
    """Print one table, with an empty line before and after it."""
    for part in fit(table, console.width, "" if console.is_terminal else _BEST):
        console.out()
        if console.is_terminal:
            console.print(_rich(part, console))
        else:
            console.out(_format_plain(part, console), highlight=False)
    console.out()


def show_lines(lines: Iterable[str], console: Console, style: str = "") -> None:
    """Print lines as they are, without any markup."""
    _lines("", lines, console, style)


def fit(table: Table, width: int, best: str = "") -> list[Table]:
    """Split a table into several with the same rows, none wider than `width` unless a single column is.

    `best` is the mark after the best value of a column.
    """
    label_width = max(cell_len(text) for text in (table.corner, *(_label(row) for row in table.rows)))
    groups: list[list[int]] = [[]]
    used_width = label_width
    for j, column in enumerate(table.columns):
        texts = (cell.text + best * cell.bold for cell in (row.cells[j] for row in table.rows))
        column_width = _PADDING + max(map(cell_len, (*_header(column).split("\n"), *texts)))
        if groups[-1] and used_width + column_width > width:
            groups.append([])
            used_width = label_width
        groups[-1].append(j)
        used_width += column_width
    return [Table(table.title, tuple(table.columns[j] for j in group),
                  tuple(Row(r.label, tuple(r.cells[j] for j in group), r.marks, r.reference) for r in table.rows),
                  table.corner) for group in groups]


def _rich(table: Table, console: Console) -> RichTable:
    grid = RichTable(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    grid.add_column(Text(_make_encodable(table.corner, console)), overflow="fold")
    for column in table.columns:
        grid.add_column(Text(_make_encodable(_header(column), console)), overflow="fold",
                        justify="left" if column.unit == "text" else "right")
    for i, row in enumerate(table.rows):
        cells = [Text(_make_encodable(c.text, console), style="bold green" if c.bold else "") for c in row.cells]
        following = table.rows[i + 1:i + 2]
        grid.add_row(Text(_make_encodable(_label(row), console)), *cells,
                     end_section=bool(following) and following[0].reference and not row.reference)
    return grid


def _format_plain(table: Table, console: Console) -> str:
    rows: list[list[str] | str] = []
    for i, row in enumerate(table.rows):
        if row.reference and i and not table.rows[i - 1].reference:
            rows.append(SEPARATING_LINE)
        texts = [_label(row), *(c.text + _BEST * c.bold for c in row.cells)]
        rows.append([_make_encodable(text, console) for text in texts])
    headers = [_make_encodable(text, console) for text in (table.corner, *map(_header, table.columns))]
    aligned = ["left" if c.unit == "text" else "right" for c in table.columns]
    return tabulate(rows, headers, tablefmt="simple", disable_numparse=True, colalign=("left", *aligned))


def _label(row: Row) -> str:
    return f"{row.label} {row.marks}".strip()


def _header(column: Column) -> str:
    return "\n".join(column.lines)


def _lines(prefix: str, lines: Iterable[str], console: Console, style: str) -> None:
    for line in lines:
        _line(prefix + line, console, style)


def _line(text: str, console: Console, style: str) -> None:
    text = _make_encodable(text, console)
    if console.is_terminal:
        console.print(Text(text, style=style))
    else:
        console.out(text, highlight=False)


def _make_encodable(text: str, console: Console) -> str:
    """Return text with substitutes for characters that the console cannot encode."""
    try:
        text.encode(console.encoding)
    except UnicodeEncodeError:
        for character, substitute in _ASCII.items():
            text = text.replace(character, substitute)
        return text.encode(console.encoding, "backslashreplace").decode(console.encoding)
    return text
