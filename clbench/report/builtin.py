"""Declare the built-in report formats without importing their modules."""

from __future__ import annotations

from collections.abc import Sequence

from clbench.core.hookspecs import ReportFormat, hookimpl


@hookimpl
def clbench_report_formats() -> Sequence[ReportFormat]:
    """Return the built-in report formats."""
    formats = "clbench.report.formats."
    return (
        ReportFormat("md", ".md", formats + "markdown:render", "Markdown, for GitHub, papers and pull requests"),
        ReportFormat("html", ".html", formats + "html:render", "one page with interactive figures, works offline"),
        ReportFormat("latex", ".tex", formats + "latex:render", "booktabs tables, in a document that compiles"),
        ReportFormat("csv", ".csv", formats + "csv:render", "every number in a row of its own, for pandas and R",
                     ids=True),
        ReportFormat("json", ".json", formats + "json:render", "the whole report as data, for programs",
                     ids=True),
    )
