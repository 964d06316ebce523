"""Build reports from records, as one table model that each format renders. Names are imported when first used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clbench.core.entry_points import lazy

if TYPE_CHECKING:
    from clbench.report.model import Cell, Column, FigureData, FigurePoint, Report, Row, Section, Table
    from clbench.report.tables import build
    from clbench.report.writing import write, write_figures

__all__ = ["Cell", "Column", "FigureData", "FigurePoint", "Report", "Row", "Section", "Table", "build", "write",
           "write_figures"]
__getattr__, __dir__ = lazy(__name__, {
    "clbench.report.model": ("Cell", "Column", "FigureData", "FigurePoint", "Report", "Row", "Section", "Table"),
    "clbench.report.tables": ("build",),
    "clbench.report.writing": ("write", "write_figures"),
})
