"""The report as GitHub-flavoured markdown; all that comes from records is escaped."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from tabulate import tabulate

from clbench.report.model import Cell, FigureData, Report, Section, Table


def render(report: Report) -> str:
    """Return report.md: by section tables, footnotes, differences, figures, R per method, settings and origin."""
    blocks = [f"# {escape(report.title)}"]
    for section in report.sections:
        blocks += _section(section)
    blocks += _rankings(report)
    blocks += ["## How to read the tables", _bullets(report.notes)]
    return "\n\n".join(blocks) + "\n"


def escape(text: str) -> str:
    """Return text that markdown shows literally: no markup, no HTML, no new cell, no mention of a user."""
    text = re.sub(r"([\\`*_{}\[\]#|~$])", r"\\\1", " ".join(text.split()))
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("@", "&#64;")
    return re.sub(r"^(\d+(?=[.)] )|(?=[-+=](?:[-+= ]|$)))", r"\1\\", text)  # lists and headings begin so


def _section(section: Section) -> Iterator[str]:
    yield f"## {escape(section.title)}"
    yield escape(section.summary)
    yield table(section.comparison)
    if section.problems:
        yield "**Trials without a result**"
        yield _bullets(section.problems)
    if section.notes:
        yield "**Notes**"
        yield _bullets(section.notes)
    if section.verdicts:
        yield tables("### Differences, paired by seed", section.comparisons, section.verdicts)
    if section.anatomy:
        yield "### Where the errors come from"
        yield _bullets(section.anatomy)
    for figure in (f for f in section.figures if f.brief):
        yield from _figure(figure)
    for detail in (*section.details, *section.matrices):
        yield f"### {escape(detail.title)}"
        yield table(detail)
    yield "### Settings"
    yield _pairs(section.settings)
    yield "### Provenance"
    yield _pairs(section.provenance)
    yield "### Command"
    yield from map(_code, section.commands)


def _rankings(report: Report) -> Iterator[str]:
    if report.rankings:
        yield tables("## Across settings", report.rankings, report.ranking_verdicts)
    for figure in report.figures:
        yield from _figure(figure)


def _figure(figure: FigureData) -> Iterator[str]:
    yield f"### {escape(figure.title)}"
    yield f"![{escape(figure.alt)}](figures/{figure.name}.svg)"
    yield escape(figure.caption)


def tables(heading: str, found: Iterable[Table], verdicts: Iterable[str]) -> str:
    """Return a heading, verdicts as a list, and the tables with their titles."""
    blocks = [heading, _bullets(verdicts)]
    for data in found:
        blocks += [f"**{escape(data.title)}**", table(data)]
    return "\n\n".join(blocks)


def table(data: Table) -> str:
    """Return one table; references stand behind the others under a heading of their own."""
    rows, set_apart = [], False
    for row in data.rows:
        if row.reference and not set_apart:
            set_apart = True
            rows.append(["*for reference*", *[""] * len(data.columns)])
        rows.append([f"{escape(row.label)} {row.marks}".strip(), *map(_cell, row.cells)])
    headers = [escape(data.corner), *(escape(c.header) for c in data.columns)]
    aligned = ["left" if c.unit == "text" else "right" for c in data.columns]
    return tabulate(rows, headers, tablefmt="pipe", disable_numparse=True, colalign=("left", *aligned))


def _cell(cell: Cell) -> str:
    return f"**{escape(cell.text)}**" if cell.bold else escape(cell.text)


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {escape(line)}" for line in lines)


def _pairs(pairs: Iterable[tuple[str, str]]) -> str:
    return "\n".join(f"- {escape(name)}: {escape(value)}" for name, value in pairs)


def _code(text: str) -> str:
    """Return text as a code block whose fence is longer than any run of backticks in it."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}sh\n{text}\n{fence}"
