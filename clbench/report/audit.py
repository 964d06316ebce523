"""The report of an audit: its result in a line, a table for each model, the dial, and how to read them.

The dial is a figure with tables of gain and loss at several scales of the adapter. Tables and remarks are the same on
the terminal, in audit.md and in audit.html.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from clbench.core.objective import CAUSAL_LM, EXACT, NLL, Metric
from clbench.report.figures import style
from clbench.report.figures.style import INK, PALE
from clbench.report.formats.html import image_source, render_page
from clbench.report.formats.markdown import bullets, escape, pairs
from clbench.report.formats.markdown import table as as_markdown
from clbench.report.formatting import NONE, clean, join_names
from clbench.report.model import Cell, Column, Row, Table
from clbench.results.audit import Audit, AuditedFile, Comparison, DialPoint, unchanged_reach

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DIAL = "figures/dial.svg"
HEADING = "What fine-tuning made a language model forget"
ARROWS = {"up": "\N{UPWARDS ARROW}", "down": "\N{DOWNWARDS ARROW}"}
ROLES = {"new": "new task", "task": "task", "general": "general"}
DIAL_TITLE = "Gain and loss by scale of the adapter"
DIAL_LINES = {"new": "-", "task": "-", "general": "--"}


def value_text(value: float, metric: Metric) -> str:
    """Return a value in its metric's unit: nats with three decimals, percentages with one."""
    return f"{100 * value:.1f}" if metric == EXACT else f"{value:.3f}"


def change_text(one: Comparison) -> str:
    """Return a difference with its sign and interval: `+0.812 [0.701, 0.923]`."""
    sign = "+" if one.difference > 0 else ""
    text = sign + value_text(one.difference, one.metric)
    if one.low is None or one.high is None:
        return text
    return f"{text} [{value_text(one.low, one.metric)}, {value_text(one.high, one.metric)}]"


def file_label(file: AuditedFile) -> str:
    """Return the name of a file in tables, which includes its role."""
    return clean(f"{file.name} ({ROLES[file.role]})")


def tables(audit: Audit) -> list[Table]:
    """Return the tables: an overview if there are several models, a table of each model, and the tables of the dial."""
    overview = [_overview(audit)] if len(audit.models) > 1 else []
    return [*overview, *(model_table(audit, model) for model in audit.models), *dial_tables(audit)]


def model_table(audit: Audit, model: str) -> Table:
    """Return the table of one model: a row for each metric of each file."""
    columns = (Column("items", "count"), Column("metric", "text"), Column(clean(audit.compared_with), "text"),
               Column("model", "text"), Column("difference", "text"), Column("verdict", "text"))
    rows = []
    for file in audit.files:
        for metric in CAUSAL_LM.metrics:
            if comparison := find(audit.comparisons, model, file.name, metric):
                rows.append(Row(file_label(file), (
                    Cell(f"{comparison.items:,}", comparison.items), Cell(f"{metric.name} {ARROWS[metric.direction]}"),
                    Cell(value_text(comparison.base, metric), comparison.base),
                    Cell(value_text(comparison.value, metric), comparison.value),
                    Cell(change_text(comparison), comparison.difference, n=comparison.items, low=comparison.low,
                         high=comparison.high), Cell(comparison.verdict))))
    return Table(clean(model), columns, tuple(rows), corner="file")


def _overview(audit: Audit) -> Table:
    """Return the verdicts of all models: a row for each file, a column for each model."""
    rows = []
    for file in audit.files:
        cells = []
        for model in audit.models:
            parts = [f"{metric.name} {comparison.verdict}" for metric in CAUSAL_LM.metrics
                     if (comparison := find(audit.comparisons, model, file.name, metric))]
            cells.append(Cell(", ".join(parts)))
        rows.append(Row(file_label(file), tuple(cells)))
    return Table("All models", tuple(Column(clean(model), "text") for model in audit.models), tuple(rows), "file")


def dial_tables(audit: Audit) -> list[Table]:
    """Return a table per metric with the differences to the base at each scale of the adapter, if there is a dial."""
    if not audit.dial:
        return []
    metric_tables: list[Table] = []
    for metric in CAUSAL_LM.metrics:
        files = [file for file in audit.files if find(audit.comparisons, audit.models[0], file.name, metric)]
        columns = [Column(file_label(file), "text") for file in files]
        rows = [[Cell(_dial_text(point, file, metric)) for file in files] for point in audit.dial]
        if not metric_tables:
            columns.append(Column("losses within margin", "text"))
            rows = [[*row, Cell("yes" if point.within else "no")] for row, point in zip(rows, audit.dial, strict=True)]
        unit = "points" if metric == EXACT else metric.unit
        metric_tables.append(Table(
            f"Difference to the base by scale of the adapter, {metric.name} ({unit})", tuple(columns),
            tuple(Row(f"{point.scale:g}", tuple(row)) for point, row in zip(audit.dial, rows, strict=True)), "scale"))
    return metric_tables


def _dial_text(point: DialPoint, file: AuditedFile, metric: Metric) -> str:
    if point.scale == 0:
        return "0"
    comparison = find(point.comparisons, None, file.name, metric)
    return NONE if comparison is None else change_text(comparison)


def find(comparisons: Iterable[Comparison], model: str | None, file: str, metric: Metric) -> Comparison | None:
    """Return the first comparison of a model (None: any model), a file and a metric, or None if there is none."""
    return next((c for c in comparisons if model in (None, c.model) and c.file == file and c.metric == metric), None)


def headline(audit: Audit) -> list[str]:
    """Return a line with the result of each model, and a line with the result of the dial."""
    lines = []
    for model in audit.models:
        by_verdict: dict[str, list[str]] = {"lost": [], "kept": [], "inconclusive": []}
        for comparison in audit.comparisons:
            if comparison.model == model:
                by_verdict[comparison.verdict].append(f"{comparison.metric.name} of {clean(comparison.file)}")
        parts = [f"{verdict}: {join_names(names)}" for verdict, names in by_verdict.items() if names]
        lines.append(f"{clean(model)}: {'; '.join(parts)}.")
    if largest := audit.largest_scale:
        lines.append(f"The largest scale whose losses stay within the margin is {largest:g}.")
    elif scales := [point.scale for point in audit.dial if point.scale > 0]:
        lines.append(f"At scale {min(scales):g}, the smallest above 0, losses do not stay within the margin.")
    return lines


def remarks(audit: Audit) -> list[str]:
    """Return the sentences that a reader needs in order to understand the tables."""
    lines = ["nll is the negative log-likelihood of the response in nats per token, averaged over items; exact is the "
             "percentage of items for which greedy decoding would generate the whole response.",
             f"Differences are model minus {clean(audit.compared_with)}, with 95% intervals over items, paired by item "
             "(Student's t for nll, Tango's score interval for exact).",
             "lost: the interval lies beyond the margin in the bad direction, also after Holm's correction over "
             f"{len(audit.comparisons)} comparisons. kept: the interval ends within the margin or is better. Otherwise "
             "inconclusive: more items would decide."]
    lines += [_margin_line(audit, metric) for metric in CAUSAL_LM.metrics]
    if note := _too_few(audit):
        lines.append(note)
    if audit.dial:
        lines.append("Scale: the adapter's update is multiplied by it; 0 is the base. At a scale, losses are within "
                     "the margin if, on every file except that of the new task, the interval of nll and the mean of "
                     "exact are within it. The largest such scale has no scale below it whose losses are beyond the "
                     "margin.")
    lines += [f"{clean(file.name)}: {', '.join(file.notes)}." for file in audit.files if file.notes]
    return lines


def _margin_line(audit: Audit, metric: Metric) -> str:
    """Describe the margins of a metric."""
    unit = "points" if metric == EXACT else metric.unit
    by_file = {comparison.file: comparison for comparison in audit.comparisons if comparison.metric == metric}
    if not by_file:
        return f"{metric.name}: no file has it."
    margins = [comparison.margin for comparison in by_file.values()]
    text = value_text(min(margins), metric)
    if max(margins) > min(margins):
        text += f" to {value_text(max(margins), metric)}"
    floor = value_text(max(comparison.floor for comparison in by_file.values()), metric)
    return (f"The margin of {metric.name} is {text} {unit}; it is at least three times the noise floor, by which "
            f"{clean(audit.compared_with)} itself changes in bfloat16 and other batches (at most {floor}).")


def _too_few(audit: Audit) -> str:
    """Explain that too few items rule out the verdict `kept` for an unchanged exact match; empty if items suffice."""
    counts = [comparison.items for comparison in audit.comparisons
              if comparison.metric == EXACT and unchanged_reach(comparison.items) > comparison.margin]
    if not counts:
        return ""
    return (f"With {min(counts)} items, exact is called kept only if it rises. Even if no item changes, its interval "
            f"reaches {value_text(unchanged_reach(min(counts)), EXACT)} points down, which is beyond the margin. About "
            "380 items suffice for a margin of 1 point, and --margin-exact sets another one.")


def as_json(audit: Audit) -> str:
    """Return all numbers as JSON. Percentages are fractions there."""
    def to_dicts(comparisons: Sequence[Comparison]) -> list[dict[str, Any]]:
        return [asdict(entry) | {"metric": entry.metric.name} for entry in comparisons]

    dial = [{"scale": point.scale, "within": point.within, "cells": to_dicts(point.comparisons)}
            for point in audit.dial]
    return json.dumps({
        "base": audit.base, "compared_with": audit.compared_with,
        "files": [asdict(file) for file in audit.files], "models": list(audit.models),
        "metrics": [asdict(metric) for metric in CAUSAL_LM.metrics], "cells": to_dicts(audit.comparisons), "dial": dial,
        "largest_scale": audit.largest_scale if audit.dial else None, "settings": dict(audit.settings),
        "scores": [dict(zip(("model", "file", "path"), entry, strict=True)) for entry in audit.scores],
        "notes": []}, indent=2) + "\n"


def summary(audit: Audit) -> str:
    """Return the line below the heading."""
    return clean(f"Base {audit.base}; {join_names(audit.models)} compared with {audit.compared_with}")


def alt(audit: Audit) -> str:
    """Return the alternative text of the dial's figure."""
    return (f"Change of nll at {len(audit.dial)} scales of the adapter, a line for each of {len(audit.files)} files, "
            "with 95% intervals; the numbers are in the tables.")


def files(audit: Audit) -> dict[str, str | bytes]:
    """Return the contents of audit.md, audit.html, audit.json and of the dial's figure, if any, by their paths."""
    svg = b""
    if audit.dial:
        svg = encode_dial(audit)
    contents: dict[str, str | bytes] = {"audit.md": markdown(audit), "audit.html": page(audit, svg),
                                        "audit.json": as_json(audit)}
    return contents | ({DIAL: svg} if svg else {})


def markdown(audit: Audit) -> str:
    """Return audit.md: the result of each model in a line, the tables, the dial, how to read them, and settings."""
    blocks = [f"# {HEADING}", escape(summary(audit)), bullets(headline(audit))]
    for table in tables(audit):
        blocks += [f"## {escape(table.title)}", as_markdown(table)]
    if audit.dial:
        blocks.append(f"![{escape(alt(audit))}]({DIAL})")
    blocks += ["## How to read this", bullets(remarks(audit)), "## Settings", pairs(audit.settings)]
    return "\n\n".join(blocks) + "\n"


def page(audit: Audit, svg: bytes) -> str:
    """Return audit.html, with the dial in it if there is one."""
    return render_page("audit.html", heading=HEADING, base=audit.base, summary=summary(audit),
                       headline=headline(audit), tables=tables(audit), picture=image_source(svg) if svg else "",
                       figure="Gain and loss by scale", alt=alt(audit), remarks=remarks(audit),
                       settings=audit.settings)


def encode_dial(audit: Audit) -> bytes:
    """Return the figure as the content of an SVG file; the same numbers give the same bytes."""
    with style.styled():
        return style.encode_figure(draw_dial(audit), DIAL_TITLE, "svg")


def draw_dial(audit: Audit) -> Figure:
    """Draw a line for each file: the new task bold, general texts dashed. The margins are gray."""
    figure, axes = style.canvas("nll minus that of the base; lower is better")
    styles = style.assign_styles([(file.name, False) for file in audit.files])
    scales = [point.scale for point in audit.dial]
    margins = []
    for offset, file in enumerate(audit.files):
        comparisons = [comparison for point in audit.dial
                       if (comparison := find(point.comparisons, None, file.name, NLL))]
        shift = 0.004 * (max(scales) - min(scales)) * (offset - (len(audit.files) - 1) / 2)  # intervals do not overlap
        x = [scale + shift for scale in scales]
        color, marker = styles[file.name].color, styles[file.name].marker
        axes.plot(x, [comparison.difference for comparison in comparisons], color=color, marker=marker,
                  label=style.shorten(file.name), linewidth=2.2 if file.role == "new" else 1.4,
                  linestyle=DIAL_LINES[file.role], markersize=5.5, markeredgecolor="white", markeredgewidth=0.6,
                  zorder=3)
        for center, comparison in zip(x, comparisons, strict=True):
            if comparison.low is not None and comparison.high is not None:
                axes.plot([center, center], [comparison.low, comparison.high], color=color, linewidth=1.1, alpha=0.7,
                          zorder=2.5)
        margins += [comparison.margin for comparison in comparisons if file.role != "new"]
    axes.axhline(0, color=INK, linewidth=0.8, zorder=1)
    if margins:
        axes.axhline(min(margins), color=PALE, linewidth=1.0, linestyle=":", zorder=1, label="margin of a loss")
    if largest := audit.largest_scale:
        axes.axvline(largest, color=PALE, linewidth=1.0, zorder=1, label=f"largest scale within: {largest:g}")
    axes.set_xticks(scales)
    axes.set_xticklabels([f"{scale:g}" for scale in scales])
    axes.set_xlabel("scale of the adapter")
    axes.set_ylabel(f"difference ({NLL.unit})")
    axes.legend(loc="best")
    return figure
