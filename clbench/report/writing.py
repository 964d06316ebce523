"""Write reports, their figures, explained differences and audits into files."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from clbench.core.entry_points import package_of, resolve
from clbench.core.errors import PluginError, StoreError
from clbench.core.files import write_atomically
from clbench.core.hookspecs import ReportFormat
from clbench.core.user_code import format_error
from clbench.report.model import FigureData, FileFormat, Report

if TYPE_CHECKING:
    from clbench.report.explained import Explanation
    from clbench.results.audit import Audit


def write(report: Report, directory: Path, format_info: ReportFormat) -> Path:
    """Write `report<suffix>` into a folder atomically, and return its path.

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
    write_file(path, text)
    return path


def write_figures(report: Report, directory: Path, file_formats: Collection[FileFormat] = ()) -> list[Path]:
    """Draw the report's figures into `figures/` below a folder, and return their paths.

    Args:
        report: the report, from `build`.
        directory: folder of the report, whose text links to `figures/`.
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
        write_file(paths[-1], content)
    return paths


def write_figure(data: FigureData, path: Path, file_format: FileFormat) -> None:
    """Draw a single figure into a file. The folder must exist.

    Raises:
        StoreError: the file cannot be written.
    """
    from clbench.report.figures import draw, style

    styles = style.assign_styles([(point.strategy, point.reference) for point in data.points])
    content, = draw.draw_figure(data, styles, [file_format])
    write_file(path, content, make_folder=False)


def write_explained(explanation: Explanation, directory: Path) -> list[Path]:
    """Write explain.md, explain.html and the waterfall figure into a folder, and return their paths.

    Raises:
        StoreError: a file cannot be written.
    """
    from clbench.report import explained

    return _write_files(explained.files(explanation), directory)


def write_audit(audit: Audit, directory: Path) -> list[Path]:
    """Write audit.md, audit.html, audit.json and the dial figure, if there is one, and return their paths.

    Raises:
        StoreError: a file cannot be written.
    """
    from clbench.report import audit as audited

    return _write_files(audited.files(audit), directory)


def _write_files(contents: Mapping[str, str | bytes], directory: Path) -> list[Path]:
    """Write each content to its relative path below a folder, and return the paths."""
    for name, content in contents.items():
        write_file(directory / name, content)
    return [directory / name for name in contents]


def write_file(path: Path, content: str | bytes, make_folder: bool = True) -> None:
    """Write a file atomically.

    Raises:
        StoreError: the file cannot be written.
    """
    try:
        if make_folder:
            path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror or error}") from error
