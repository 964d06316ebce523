"""A report and its figures written into a folder."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from clbench.core.entry_points import resolve
from clbench.core.errors import PluginError, StoreError
from clbench.core.files import write_atomically
from clbench.core.hookspecs import ReportFormat
from clbench.report.model import FileFormat, Report


def write(report: Report, directory: Path, format_info: ReportFormat) -> Path:
    """Write `report<suffix>` into a folder, whole or not at all, and return its path.

    Raises:
        PluginError: the format cannot be loaded, raises, or returns something else than text.
        StoreError: the file cannot be written.
    """
    render = resolve(format_info.render, f"report format {format_info.name!r}")
    try:
        text = render(report)
    except Exception as error:
        raise PluginError(f"report format {format_info.name!r} failed: {type(error).__name__}: {error}") from error
    if not isinstance(text, str):
        raise PluginError(f"report format {format_info.name!r} returned {type(text).__name__}, expected text")
    path = directory / f"report{format_info.suffix}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror or error}") from error
    return path


def write_figures(report: Report, directory: Path, file_formats: Collection[FileFormat] = ()) -> list[Path]:
    """Draw the report's figures into the folder's `figures/`, to which its text refers, and return their paths.

    Args:
        report: from `build`.
        directory: of the report.
        file_formats: in which to draw every figure; those that report.md shows are drawn as SVG anyway.

    Raises:
        StoreError: a file cannot be written.
    """
    if not (report.pictures or any(section.pictures for section in report.sections)):
        return []
    from clbench.report.figures import draw  # imports numpy; drawing imports matplotlib

    return draw.write(report, directory, file_formats)
