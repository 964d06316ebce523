"""An explained difference as text: explain.md, and explain.html, one file that needs no network."""

from __future__ import annotations

import base64
from collections.abc import Iterable

from clbench.report.analysis import notes
from clbench.report.explained import Explanation, between, by_seed, headline, remarks, settings, table
from clbench.report.figures import waterfall
from clbench.report.formats.html import render_page
from clbench.report.formats.markdown import escape
from clbench.report.formats.markdown import table as as_markdown

FIGURE = "figures/waterfall.svg"
HEADING = "Why two numbers differ"


def markdown(told: Explanation) -> str:
    """Return explain.md: the result in a line, the table, the waterfall, remarks, each seed, settings and origin."""
    blocks = [f"# {HEADING}", escape(between(told)), f"**{escape(headline(told))}**", as_markdown(table(told)),
              f"![{escape(waterfall.alt(told))}]({FIGURE})", _bullets(remarks(told)),
              f"## {escape(by_seed(told).title)}", as_markdown(by_seed(told)), "## Settings", _pairs(settings(told)),
              "## Provenance", _pairs(notes.provenance(told.records))]
    return "\n\n".join(blocks) + "\n"


def page(told: Explanation, svg: bytes) -> str:
    """Return explain.html with the waterfall in it."""
    return render_page("explain.html", heading=HEADING, between=between(told), headline=headline(told),
                       tables=[table(told), by_seed(told)], remarks=remarks(told),
                       picture="data:image/svg+xml;base64," + base64.b64encode(svg).decode(), alt=waterfall.alt(told),
                       figure=waterfall.TITLE, settings=settings(told),
                       provenance=notes.provenance(told.records))


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {escape(line)}" for line in lines)


def _pairs(pairs: Iterable[tuple[str, str]]) -> str:
    return "\n".join(f"- {escape(name)}: {escape(value)}" for name, value in pairs)
