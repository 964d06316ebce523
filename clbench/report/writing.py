"""Reports, their figures and explained differences, written into files."""

from __future__ import annotations

import base64
from collections.abc import Collection, Iterable
from pathlib import Path

from clbench.core.entry_points import package_of, resolve
from clbench.core.errors import PluginError, StoreError
from clbench.core.files import write_atomically
from clbench.core.hookspecs import ReportFormat
from clbench.core.user_code import format_error
from clbench.report import explained
from clbench.report.analysis import notes
from clbench.report.explained import Explanation, between, by_seed, headline, remarks, settings, table
from clbench.report.formats.html import render_page
from clbench.report.formats.markdown import escape
from clbench.report.formats.markdown import table as as_markdown
from clbench.report.model import FigureData, FileFormat, Report
from clbench.results.audit import Audit

FIGURE = "figures/waterfall.svg"
DIAL = "figures/dial.svg"
HEADING = "Why two numbers differ"


def markdown(explanation: Explanation) -> str:
    """Return explain.md: the result in a line, the table, the waterfall, remarks, each seed, settings and origin."""
    seeds = by_seed(explanation)
    blocks = [f"# {HEADING}", escape(between(explanation)), f"**{escape(headline(explanation))}**",
              as_markdown(table(explanation)), f"![{escape(explained.alt(explanation))}]({FIGURE})",
              _bullets(remarks(explanation)), f"## {escape(seeds.title)}", as_markdown(seeds), "## Settings",
              _pairs(settings(explanation)), "## Provenance", _pairs(notes.provenance(explanation.records))]
    return "\n\n".join(blocks) + "\n"


def page(explanation: Explanation, svg: bytes) -> str:
    """Return explain.html with the waterfall in it."""
    return render_page("explain.html", heading=HEADING, between=between(explanation), headline=headline(explanation),
                       tables=[table(explanation), by_seed(explanation)], remarks=remarks(explanation),
                       picture="data:image/svg+xml;base64," + base64.b64encode(svg).decode(),
                       alt=explained.alt(explanation), figure=explained.TITLE, settings=settings(explanation),
                       provenance=notes.provenance(explanation.records))


def write_audit(audit: Audit, directory: Path) -> list[Path]:
    """Write audit.md, audit.html, audit.json, and the figure of the dial if there is one; return their paths.

    Raises:
        StoreError: a file cannot be written.
    """
    from clbench.report import audit as audited

    svg = b""
    if audit.dial:
        from clbench.report.figures import dial

        svg = dial.drawn(audit)
    files: dict[str, str | bytes] = {DIAL: svg} if svg else {}
    picture = f"![{escape(audited.alt(audit))}]({DIAL})" if audit.dial else ""
    grids = audited.tables(audit)
    blocks = [f"# {audited.HEADING}", escape(audited.summary(audit)),
              _bullets(audited.headline(audit)), *(block for grid in grids for block in (
                  f"## {escape(grid.title)}", as_markdown(grid))), picture,
              "## How to read this", _bullets(audited.remarks(audit)), "## Settings", _pairs(audit.settings)]
    files["audit.md"] = "\n\n".join(filter(None, blocks)) + "\n"
    source = "data:image/svg+xml;base64," + base64.b64encode(svg).decode() if audit.dial else ""
    files["audit.html"] = render_page(
        "audit.html", heading=audited.HEADING, base=audit.base, summary=audited.summary(audit),
        headline=audited.headline(audit), tables=grids, picture=source, figure="Gain and loss by scale",
        alt=audited.alt(audit), remarks=audited.remarks(audit), settings=audit.settings)
    files["audit.json"] = audited.as_json(audit)
    for name, content in files.items():
        _write(directory / name, content)
    return [directory / name for name in files]


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {escape(line)}" for line in lines)


def _pairs(pairs: Iterable[tuple[str, str]]) -> str:
    return "\n".join(f"- {escape(name)}: {escape(value)}" for name, value in pairs)


def write(report: Report, directory: Path, format_info: ReportFormat) -> Path:
    """Write `report<suffix>` into a folder, whole or not at all, and return its path.

    Raises:
        PluginError: the format cannot be loaded, raises, or returns something other than text.
        StoreError: the file cannot be written.
    """
    render = resolve(format_info.render, f"report format {format_info.name!r}")
    try:
        text = render(report)
    except Exception as error:
        reason = format_error(error, package_of(format_info.render))
        raise PluginError(f"report format {format_info.name!r} failed: {reason}") from error
    if not isinstance(text, str):
        raise PluginError(f"report format {format_info.name!r} returned {type(text).__name__}, expected text")
    path = directory / f"report{format_info.suffix}"
    _write(path, text)
    return path


def write_figures(report: Report, directory: Path, file_formats: Collection[FileFormat] = ()) -> list[Path]:
    """Draw the report's figures into the folder's `figures/`, to which its text refers, and return their paths.

    Args:
        report: the report, from `build`.
        directory: folder of the report.
        file_formats: formats in which every figure is drawn. Figures in report.md are always drawn as SVG, too.

    Raises:
        StoreError: a file cannot be written.
    """
    if not report.every_figure:
        return []
    from clbench.report.figures.draw import draw_report  # imports numpy; drawing imports matplotlib

    paths = []
    for name, content in draw_report(report, file_formats).items():
        paths.append(directory / "figures" / name)
        _write(paths[-1], content)
    return paths


def write_figure(data: FigureData, path: Path, file_format: FileFormat) -> None:
    """Draw a single figure into a file. The folder must exist.

    Raises:
        StoreError: the file cannot be written.
    """
    from clbench.report.figures import draw, style

    styles = style.assign_styles([(point.strategy, point.reference) for point in data.points])
    content, = draw.draw_figure(data, styles, [file_format])
    _write(path, content, make_folder=False)


def write_explained(explanation: Explanation, directory: Path) -> list[Path]:
    """Write explain.md, explain.html and the waterfall into a folder, and return their paths.

    Raises:
        StoreError: a file cannot be written.
    """
    from clbench.report import explained

    svg = explained.drawn(explanation, "svg")
    files: dict[str, str | bytes] = {
        "explain.md": markdown(explanation), "explain.html": page(explanation, svg),
        FIGURE: svg}
    for name, content in files.items():
        _write(directory / name, content)
    return [directory / name for name in files]


def _write(path: Path, content: str | bytes, make_folder: bool = True) -> None:
    """Write a file as a whole; an error is one line."""
    try:
        if make_folder:
            path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror or error}") from error
