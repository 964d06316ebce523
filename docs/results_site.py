"""Sphinx hooks for docs/results: write the committed reports as interactive pages, and include other files of reports/.

On GitHub, the pages link to files in reports/. In the built documentation, these links lead to its own pages.
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
    """Link reports to their pages, include marked files, and turn links to all other files into downloads."""
    folder = str(PurePosixPath("docs", page).parent)
    source[0] = LINK.sub(lambda found: _link(found[1], found[2], folder), source[0])
    source[0] = MARK.sub(lambda found: _included(*found.groups(), folder), source[0])


def write_pages(app: Any, failure: Exception | None) -> None:
    """Write the interactive page of every committed study next to the pages that Sphinx has built."""
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
    """Return a link target, a heading, and the directive that includes a file without its first heading."""
    anchor = _anchor(normpath(join(folder, target)))
    return (f"({anchor})=\n{level} {title}\n\n```{{include}} {target}\n:heading-offset: {len(level) - 1}\n"
            ":relative-images:\n:start-line: 1\n```")


def _shown() -> set[str]:
    """Return the paths of the files that pages of docs/results include."""
    pages = (ROOT / "docs" / "results").glob("*.md")
    return {normpath(join("docs/results", found[3])) for page in pages
            for found in MARK.finditer(page.read_text(encoding="utf-8"))}


def _anchor(path: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", path.removesuffix(".md").lower())
