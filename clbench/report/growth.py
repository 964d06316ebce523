"""The figure of the bytes that methods keep as tasks come, for numbers that are in no record; imports no matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from clbench.errors import StoreError
from clbench.report import cost_figures, drawing
from clbench.report.model import Picture, Point


def draw(kept: Mapping[str, Sequence[int]], references: Sequence[str], subject: str, path: Path) -> None:
    """Draw what each method keeps after 1..T tasks, T > 1, as the report draws parameters.

    Args:
        kept: bytes after each task, by the method's label.
        references: labels of the methods to be drawn as references.
        subject: a line above the figure.
        path: of the file, .svg or .png.

    Raises:
        StoreError: the file cannot be written.
    """
    points = [Point(label, label.partition(":")[0], label in references, False, None, None, None,
                    tuple(map(float, values))) for label, values in kept.items() if values]
    title = "Bytes kept after each task"
    with drawing.styled():
        figure = cost_figures.growth(Picture("growth", path.stem, title, subject, "", "", tuple(points)),
                                     drawing.looks([(p.strategy, p.reference) for p in points]))
        figure.axes[0].set_ylabel("bytes kept")
        data = drawing.encoded(figure, title, "svg" if path.suffix == ".svg" else "png")
    try:
        path.write_bytes(data)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror or error}") from error
