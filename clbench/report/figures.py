"""The figures of a report as files. Importing this module does not import matplotlib; drawing does."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from clbench.errors import StoreError
from clbench.report import drawing
from clbench.report.accuracy_figures import curves, forgetting, heatmaps
from clbench.report.cost_figures import growth, pareto
from clbench.report.drawing import Look
from clbench.report.model import FILE_FORMATS, FileFormat, Picture, Report
from clbench.report.ranks_figure import critical_difference
from clbench.store import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KINDS: Mapping[str, Callable[[Picture, Mapping[str, Look]], Figure]] = {
    "pareto": pareto, "growth": growth, "curves": curves, "heatmaps": heatmaps, "forgetting": forgetting,
    "critical-difference": critical_difference}


def write(report: Report, directory: Path, file_formats: Collection[FileFormat] = ()) -> list[Path]:
    """Draw figures into `<directory>/figures`: as SVG those that a short report shows, in file formats given all.

    Raises:
        StoreError: a file cannot be written.
    """
    paths = []
    for name, content in draw(report, file_formats).items():
        path = directory / "figures" / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, content)
        except OSError as error:
            raise StoreError(f"cannot write {path}: {error.strerror or error}") from error
        paths.append(path)
    return paths


def draw(report: Report, file_formats: Collection[FileFormat] = ()) -> dict[str, bytes]:
    """Return the files that `write` writes, by name; the same numbers give the same bytes."""
    found = [*(picture for section in report.sections for picture in section.pictures), *report.pictures]
    looks = drawing.looks([(r.strategy, r.reference) for section in report.sections for r in section.results])
    files = {}
    with drawing.styled():
        for picture in found:
            wanted = [f for f in FILE_FORMATS if f in file_formats or (f == "svg" and picture.brief)]
            if wanted:
                figure = KINDS[picture.kind](picture, looks)
                files.update({f"{picture.name}.{f}": drawing.encoded(figure, f"{picture.title}: {picture.subject}", f)
                              for f in wanted})
    return files
