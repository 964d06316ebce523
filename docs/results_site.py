"""What Sphinx adds to docs/results: the committed reports as interactive pages, and other files of reports/ in place.

On GitHub the pages link to files of reports/; here those links lead to pages of the documentation.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path, PurePosixPath
from posixpath import join, normpath, relpath
from typing import Any

from results_facts import ROOT, studies, study

from clbench.report.formats import html

LINK = re.compile(r"(?<!!)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s:#]+)\)")
MARK = re.compile(r"<!-- shown here: (#+) (.+): (\S+) -->")


def lead(app: Any, page: str, source: list[str]) -> None:
    """Make links to reports lead to their pages, show marked files, and make links to files elsewhere downloads."""
    folder = str(PurePosixPath("docs", page).parent)
    source[0] = LINK.sub(lambda found: _link(found[1], found[2], folder), source[0])
    source[0] = MARK.sub(lambda found: _included(*found.groups(), folder), source[0])


def write_pages(app: Any, failure: Exception | None) -> None:
    """Write the interactive page of every committed study beside the pages that Sphinx has built."""
    if failure or app.builder.format != "html":
        return
    for one in studies():
        page = html.render(replace(one.report, title=one.head.title), back=(f"{one.slug}.html", "Results"))
        (Path(app.outdir) / "results" / one.page).write_text(page, encoding="utf-8")


def _link(text: str, target: str, folder: str) -> str:
    path = normpath(join(folder, target))
    if path.startswith("docs/"):
        return f"[{text}]({target})"
    if path.startswith("reports/") and path.endswith("/report.md"):
        name = study(ROOT / PurePosixPath(path).parent).page
        return f'<a class="reference" href="{relpath(f"docs/results/{name}", folder)}">{text}</a>'
    if path in _shown():
        return f"[{text}](#{_anchor(path)})"
    return f"[{text}](path:{target})"


def _included(level: str, title: str, target: str, folder: str) -> str:
    """Return a heading, the target of links to it, and the directive that includes a file but for its first heading."""
    anchor = _anchor(normpath(join(folder, target)))
    return (f"({anchor})=\n{level} {title}\n\n```{{include}} {target}\n:heading-offset: {len(level) - 1}\n"
            ":relative-images:\n:start-line: 1\n```")


def _shown() -> set[str]:
    """Return the files that a page of docs/results shows."""
    pages = (ROOT / "docs" / "results").glob("*.md")
    return {normpath(join("docs/results", found[3])) for page in pages
            for found in MARK.finditer(page.read_text(encoding="utf-8"))}


def _anchor(path: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", path.removesuffix(".md").lower())
