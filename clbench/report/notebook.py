"""How notebooks and Python sessions show records: a line, and the comparison tables with their verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from clbench.report.analysis.headline import LEADS
from clbench.report.formatting import clean
from clbench.report.model import Cell, Column, Row, Section, Table
from clbench.report.tables import build
from clbench.results.records import Record

_NAMES = 4  # methods that a line names
_STYLE = ("<style>.clbench table {border-collapse: collapse; margin: .4em 0; font-variant-numeric: tabular-nums}"
          ".clbench th, .clbench td {text-align: right; padding: .2em .7em; white-space: nowrap}"
          ".clbench th:first-child, .clbench td.text {text-align: left}"
          ".clbench tr.reference {opacity: .65} .clbench .rule > * {border-top: 1px solid currentColor}"
          ".clbench p {margin: .2em 0; max-width: 60em} .clbench .problem {color: #c0392b}</style>")


def in_a_line(records: Sequence[Record]) -> str:
    """Describe the records in a line: their number, methods and number of seeds."""
    methods = list(dict.fromkeys(clean(r.label) for r in records))
    if not methods:
        return "Results(no records)"
    more = f" and {len(methods) - _NAMES} more" if len(methods) > _NAMES else ""
    scenarios = list(dict.fromkeys(r.trial.scenario for r in records))
    seeds, bad = len({r.trial.seed for r in records}), sum(r.status != "done" for r in records)
    return (f"Results({len(records)} {_plural('record', len(records))}: {', '.join(methods[:_NAMES])}{more}; "
            f"{', '.join(dict.fromkeys(r.trial.benchmark.name for r in records))}, scenario {', '.join(scenarios)}, "
            f"{seeds} {_plural('seed', seeds)}{f'; {bad} without a result' if bad else ''})")


def _plural(noun: str, number: int) -> str:
    return noun if number == 1 else f"{noun}s"


def html(records: Sequence[Record]) -> str:
    """Return the first lines and the table of each setting as HTML. Text from records is escaped."""
    if not records:
        return f"<p>{escape(in_a_line(records))}</p>"
    report = build(records)
    parts = [_section(section) for section in report.sections]
    return f'<div class="clbench">{_STYLE}{"".join(parts)}</div>'


def _section(section: Section) -> str:
    failed = [f'<p class="problem">no result: {escape(problem)}</p>' for problem in section.problems]
    first = "".join(f"<li>{f'<strong>{escape(LEADS[about])}</strong> ' if LEADS[about] else ''}{escape(text)}</li>"
                    for about, text in section.headline)
    return (f"<p><strong>{escape(section.title)}</strong></p><ul>{first}</ul>{_table(section.comparison)}"
            + "".join(failed)
            + f"<p><small>{escape(' '.join(section.footnote))}</small></p>{_notes(section.notes)}")


def _notes(notes: Sequence[str]) -> str:
    """Return notes folded under a line."""
    if not notes:
        return ""
    lines = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return f"<details><summary>{len(notes)} {_plural('note', len(notes))}</summary><ul>{lines}</ul></details>"


def _table(table: Table) -> str:
    head = "".join(f"<th>{'<br>'.join(map(escape, column.lines))}</th>" for column in table.columns)
    rows = [_row(row, table.columns, i > 0 and row.reference and not table.rows[i - 1].reference)
            for i, row in enumerate(table.rows)]
    return f"<table><thead><tr><th>{escape(table.corner)}</th>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _row(row: Row, columns: Sequence[Column], rule: bool) -> str:
    names = " ".join(name for name, given in (("reference", row.reference), ("rule", rule)) if given)
    label = escape(f"{row.label} {row.marks}".strip())
    cells = "".join(_cell(cell, column) for cell, column in zip(row.cells, columns, strict=True))
    return f'<tr class="{names}"><th>{label}</th>{cells}</tr>'


def _cell(cell: Cell, column: Column) -> str:
    text = escape(cell.text)
    kind = ' class="text"' if column.unit == "text" else ""
    return f"<td{kind}>{f'<strong>{text}</strong>' if cell.bold else text}</td>"
