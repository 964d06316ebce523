"""The report as GitHub-flavored markdown. Text from records is escaped."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from clbench.report.analysis.headline import LEADS, NEXT
from clbench.report.formatting import plural, shorten_alt
from clbench.report.model import Cell, FigureData, Report, Section, Table

MOST_NOTES = 5  # notes that are shown; the remaining ones are folded
MANY = 20  # methods; with more, tables that are also in report.html and report.json are left out


def render(report: Report) -> str:
    """Return report.md. Each section has its first lines, table, notes and figures; everything else is folded."""
    blocks = [f"# {escape(report.title)}"]
    for section in report.sections:
        blocks += _section(section)
    blocks += _rankings(report)
    blocks += ["## How to read the tables", bullets(report.notes)]
    return "\n\n".join(blocks) + "\n"


def escape(text: str) -> str:
    """Return text that markdown shows literally: no markup, no HTML, no new cell, no mention of a user."""
    text = re.sub(r"([\\`*_{}\[\]#|~$])", r"\\\1", " ".join(text.split()))
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("@", "&#64;")
    return re.sub(r"^(\d+(?=[.)] )|(?=[-+=](?:[-+= ]|$)))", r"\1\\", text)  # lists and headings begin like this


def _section(section: Section) -> Iterator[str]:
    has_many_methods = len(section.results) > MANY
    yield f"## {escape(section.title)}"
    yield "\n".join(_headline(section))
    if section.problems:
        yield "**Trials without a result**"
        yield bullets(section.problems)
    yield table(section.comparison)
    yield " ".join(map(escape, section.footnote))
    yield "\n".join(["| setting | |", "| :-- | :-- |", *(f"| {escape(name)} | {escape(value)} |"
                                                           for name, value in section.setting)])
    if section.notes:
        yield "**Notes**"
        yield bullets(section.notes[:MOST_NOTES])
        if more_notes := section.notes[MOST_NOTES:]:
            yield from _fold(plural(len(more_notes), "more note"), [bullets(more_notes)])
    if section.anatomy:
        yield "### What costs accuracy, and what to try"
        yield bullets(section.anatomy)
    for figure in (f for f in section.figures if f.brief):
        yield from _figure(figure)
    if section.verdicts and not has_many_methods:
        yield from _fold("Differences, paired by seed", [bullets(section.verdicts), *_titled(section.comparisons)])
    if has_many_methods:
        yield ("Each difference with its p-value, more metrics and costs, accuracy matrices, and the options of each "
               "method are in report.html and report.json. Every number is in report.csv (`clbench report RUN --format "
               "html,json,csv`).")
    else:
        general = (general.table for general in section.general)
        yield from _fold("More metrics and costs", _titled((*section.details, *general)))
        yield from _fold(section.matrix_title, _titled(section.matrices))
    settings = [pair for pair in section.settings if not (has_many_methods and pair[0].startswith("method "))]
    yield from _fold("Settings, provenance, commands", [
      "**Settings**", pairs(settings), "**Provenance**", pairs(section.provenance), "**Command**",
      *map(_format_code, section.commands)])


def _headline(section: Section) -> Iterator[str]:
    """Yield the first lines as list items. A command at the end of a line is formatted as code."""
    for topic, text in section.headline:
        lead = f"**{escape(LEADS[topic])}** " if LEADS[topic] else ""
        advice, _, command = text.partition(": ")
        is_code = topic == NEXT and command and "`" not in command
        yield f"- {lead}" + (f"{escape(advice)}: `{command}`" if is_code else escape(text))


def _fold(summary: str, blocks: Iterable[str]) -> Iterator[str]:
    yield f"<details><summary>{summary}</summary>"
    yield from blocks
    yield "</details>"


def _titled(tables_shown: Iterable[Table]) -> Iterator[str]:
    for data in tables_shown:
        yield f"**{escape(data.title)}**"
        yield table(data)


def _rankings(report: Report) -> Iterator[str]:
    if report.rankings:
        yield tables("## Across settings", report.rankings, report.ranking_verdicts)
    for figure in report.figures:
        yield from _figure(figure)


def _figure(figure: FigureData) -> Iterator[str]:
    yield f"### {escape(figure.title)}"
    yield f"![{escape(shorten_alt(figure.alt, figure.title))}](figures/{figure.name}.svg)"
    yield escape(figure.caption)


def tables(heading: str, comparisons: Iterable[Table], verdicts: Iterable[str]) -> str:
    """Return a heading, verdicts as a list, and the tables with their titles."""
    return "\n\n".join([heading, bullets(verdicts), *_titled(comparisons)])


def table(data: Table) -> str:
    """Return one table. References follow the other methods under a heading of their own."""
    rows, has_heading = [], False
    for row in data.rows:
        if row.reference and not has_heading:
            has_heading = True
            rows.append(["*for reference*", *[""] * len(data.columns)])
        rows.append([f"{escape(row.label)} {row.marks}".strip(), *map(_cell, row.cells)])
    headers = [escape(data.corner), *(escape(c.header) for c in data.columns)]
    rule = [":--", *(":--" if c.unit == "text" else "--:" for c in data.columns)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (headers, rule, *rows))


def _cell(cell: Cell) -> str:
    return f"**{escape(cell.text)}**" if cell.bold else escape(cell.text)


def bullets(lines: Iterable[str]) -> str:
    """Return a list with an item for each line."""
    return "\n".join(f"- {escape(line)}" for line in lines)


def pairs(items: Iterable[tuple[str, str]]) -> str:
    """Return a list with an item for each name and its value."""
    return "\n".join(f"- {escape(name)}: {escape(value)}" for name, value in items)


def _format_code(text: str) -> str:
    """Return text as a code block whose fence is longer than any run of backticks in it."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}sh\n{text}\n{fence}"
