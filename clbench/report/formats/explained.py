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


def markdown(explanation: Explanation) -> str:
    """Return explain.md: the result in a line, the table, the waterfall, remarks, each seed, settings and origin."""
    seeds = by_seed(explanation)
    blocks = [f"# {HEADING}", escape(between(explanation)), f"**{escape(headline(explanation))}**",
              as_markdown(table(explanation)), f"![{escape(waterfall.alt(explanation))}]({FIGURE})",
              _bullets(remarks(explanation)), f"## {escape(seeds.title)}", as_markdown(seeds), "## Settings",
              _pairs(settings(explanation)), "## Provenance", _pairs(notes.provenance(explanation.records))]
    return "\n\n".join(blocks) + "\n"


def page(explanation: Explanation, svg: bytes) -> str:
    """Return explain.html with the waterfall in it."""
    return render_page("explain.html", heading=HEADING, between=between(explanation), headline=headline(explanation),
                       tables=[table(explanation), by_seed(explanation)], remarks=remarks(explanation),
                       picture="data:image/svg+xml;base64," + base64.b64encode(svg).decode(),
                       alt=waterfall.alt(explanation), figure=waterfall.TITLE, settings=settings(explanation),
                       provenance=notes.provenance(explanation.records))


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {escape(line)}" for line in lines)


def _pairs(pairs: Iterable[tuple[str, str]]) -> str:
    return "\n".join(f"- {escape(name)}: {escape(value)}" for name, value in pairs)
