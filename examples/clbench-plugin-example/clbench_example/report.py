"""Report format reStructuredText: a heading, a summary and a table for each setting."""

import re

from tabulate import tabulate

from clbench.report import Report, Table


def render(report: Report) -> str:
    """Return the content of report.rst. All text that comes from records is escaped."""
    blocks = [heading(report.title, "=")]
    for section in report.sections:
        blocks += [heading(section.title, "-"), escape(section.summary), table(section.comparison)]
        blocks += [f".. note:: {escape(line)}" for line in (*section.problems, *section.notes)]
    return "\n\n".join(blocks) + "\n"


def heading(text: str, line: str) -> str:
    """Return a title underlined with `line`."""
    return f"{escape(text)}\n{line * len(escape(text))}"


def table(data: Table) -> str:
    """Return a table with the best cells of each column in bold."""
    rows = [[escape(row.label), *(f"**{escape(c.text)}**" if c.bold else escape(c.text) for c in row.cells)]
            for row in data.rows]
    return tabulate(rows, [escape(data.corner), *(escape(c.header) for c in data.columns)], tablefmt="rst",
                    disable_numparse=True)


def escape(text: str) -> str:
    """Return text with the markup characters of reStructuredText escaped."""
    return re.sub(r"([\\`*_|])", r"\\\1", text)
