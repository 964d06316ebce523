"""The figures of a report as files. Importing this module does not import matplotlib; drawing does."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from clbench.core.errors import StoreError
from clbench.core.files import write_atomically
from clbench.report.figures import cost, style
from clbench.report.figures.accuracy import curves, forgetting, heatmaps
from clbench.report.figures.cost import growth, pareto
from clbench.report.figures.ranks import critical_difference
from clbench.report.figures.style import Look
from clbench.report.model import FILE_FORMATS, FigureData, FigurePoint, FileFormat, Report

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KINDS: Mapping[str, Callable[[FigureData, Mapping[str, Look]], Figure]] = {
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
    looks = style.looks([(r.strategy, r.reference) for section in report.sections for r in section.results])
    files = {}
    with style.styled():
        for picture in found:
            wanted = [f for f in FILE_FORMATS if f in file_formats or (f == "svg" and picture.brief)]
            if wanted:
                figure = KINDS[picture.kind](picture, looks)
                files.update({f"{picture.name}.{f}": style.encoded(figure, f"{picture.title}: {picture.subject}", f)
                              for f in wanted})
    return files


def draw_growth(kept: Mapping[str, Sequence[int]], references: Sequence[str], subject: str, path: Path) -> None:
    """Draw what each method keeps after 1..T tasks, T > 1, as the report draws parameters.

    Args:
        kept: bytes after each task, by the method's label.
        references: labels of the methods to be drawn as references.
        subject: a line above the figure.
        path: of the file, .svg or .png.

    Raises:
        StoreError: the file cannot be written.
    """
    points = [FigurePoint(label, label.partition(":")[0], label in references, False, None, None, None,
                    tuple(map(float, values))) for label, values in kept.items() if values]
    title = "Bytes kept after each task"
    with style.styled():
        figure = cost.growth(FigureData("growth", path.stem, title, subject, "", "", tuple(points)),
                                     style.looks([(p.strategy, p.reference) for p in points]))
        figure.axes[0].set_ylabel("bytes kept")
        data = style.encoded(figure, title, "svg" if path.suffix == ".svg" else "png")
    try:
        path.write_bytes(data)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror or error}") from error
