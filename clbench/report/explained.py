"""The report of an explained difference between two experiments: headline, table, remarks and waterfall figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import fsum
from typing import TYPE_CHECKING, Any

import numpy as np

from clbench.core.errors import SpecError
from clbench.experiment.factors import Factor
from clbench.experiment.trial import Trial
from clbench.report.analysis import notes
from clbench.report.columns import Measure
from clbench.report.figures import style
from clbench.report.figures.style import FAINT, INK, LABEL, PALE, PALETTE
from clbench.report.formats.html import image_source, render_page
from clbench.report.formats.markdown import bullets, escape, pairs
from clbench.report.formats.markdown import table as as_markdown
from clbench.report.formatting import clean, difference_unit, interval, number, plural, unit_suffix
from clbench.report.model import UNIT_SUFFIX, Cell, Column, Row, Table, Unit
from clbench.results.attribution import ENOUGH_PAIRS, Attribution, Estimate, estimate_mean
from clbench.results.records import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


_ROW, _HEAD, _FOOT = 30.0, 30.0, 62.0  # heights in points: a row, the space above the first row and below the last
BETTER, WORSE = PALETTE[2], PALETTE[1]
FIGURE = "figures/waterfall.svg"
HEADING = "Why two numbers differ"
TITLE = "From A to B"
CAPTION = ("Bars: parts (Shapley), the largest first; whiskers: their 95% intervals. What the factor changes alone: "
           "\N{WHITE UP-POINTING TRIANGLE} in A, \N{WHITE DOWN-POINTING TRIANGLE} in B.")


def alt(explanation: Explanation) -> str:
    """Return the alternative text of the figure."""
    attribution = explanation.attribution
    parts = "; ".join(f"{clean(factor.name)} {signed(attribution.parts[i], explanation.unit)}"
                      for factor, i in explanation.ranked)
    ends = zip((attribution.a, attribution.b), explanation.measures, strict=True)
    a, b = (number(estimate.mean, measure.column.unit) for estimate, measure in ends)
    return f"Waterfall from {a} in A to {b} in B: {parts}."


def draw_waterfall(explanation: Explanation) -> bytes:
    """Return the waterfall as the content of an SVG file; the same numbers give the same bytes."""
    with style.styled():
        return style.encode_figure(draw(explanation), TITLE, "svg")


def draw(explanation: Explanation) -> Figure:
    """Draw a row for A, a row for each factor, and a row for B. The factor with the largest part comes first."""
    attribution, ranked, unit = explanation.attribution, explanation.ranked, explanation.unit
    column_a, column_b = (measure.column for measure in explanation.measures)
    name_a, name_b = explanation.names
    height = _HEAD + _ROW * (len(ranked) + 2) + _FOOT
    figure, axes = style.canvas(f"{clean(name_a)} (A) to {clean(name_b)} (B)", height=height / 72)
    labels = [f"A: {column_a.title}", *(clean(style.shorten(f.name, 40)) for f, _ in ranked), f"B: {column_b.title}"]
    changes = ["", *(clean(style.shorten(f.change, 44)) for f, _ in ranked), ""]
    texts = [number(attribution.a.mean, column_a.unit), *(signed(attribution.parts[i], unit) for _, i in ranked),
             number(attribution.b.mean, column_b.unit)]
    width = figure.get_figwidth() * 72
    label_widths = [style.text_width(label, 9.5) for label in labels]
    left = max(*label_widths, *(style.text_width(change, 7.5) for change in changes)) + 20
    right = max(style.text_width(text, LABEL) for text in texts) + 18
    axes.set_position((left / width, _FOOT / height, 1 - (left + right) / width, 1 - (_HEAD + _FOOT) / height))
    axes.set_title(axes.get_title(loc="left"), loc="left", color=PALE, fontsize=LABEL, pad=9, x=-(left - 8) / (
        width - left - right))
    axes.set_ylim(len(ranked) + 1.6, -0.6)
    axes.grid(False, axis="y")
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    _rows(axes, explanation)
    if difference_unit(column_a.unit) == "points":
        style.percentages(axes.xaxis)
    direction_note = ", lower is better" if column_a.direction == "down" else ""
    axes.set_xlabel(column_a.title + UNIT_SUFFIX.get(column_a.unit, "") + direction_note)
    for row, (label, change, text) in enumerate(zip(labels, changes, texts, strict=True)):
        place: dict[str, Any] = {"xycoords": axes.get_yaxis_transform(), "textcoords": "offset points",
                                 "annotation_clip": False}
        axes.annotate(label, (0, row), (-10, 5 if change else 0), ha="right", va="center", fontsize=9.5,
                      weight="bold" if not change else "normal", **place)
        axes.annotate(change, (0, row), (-10, -7), ha="right", va="center", fontsize=7.5, color=PALE, **place)
        axes.annotate(text, (1, row), (10, 0), ha="left", va="center", fontsize=LABEL, **place)
    figure.text(8 / width, 8 / height, CAPTION, fontsize=7.5, color=PALE)
    return figure


def _rows(axes: Axes, explanation: Explanation) -> None:
    """Draw the bars. Each part begins where the one before it ends."""
    attribution, x = explanation.attribution, explanation.attribution.a.mean
    lower_is_better = explanation.measures[0].column.direction == "down"
    for row, estimate in ((0, attribution.a), (len(explanation.ranked) + 1, attribution.b)):
        axes.errorbar([estimate.mean], [row], xerr=None if estimate.half_width is None else [estimate.half_width],
                      marker="D", color=INK, markersize=6, elinewidth=1.1, zorder=4)
    for row, (_, i) in enumerate(explanation.ranked, start=1):
        part = attribution.parts[i]
        axes.plot([x, x], [row - 1, row], color=PALE, linewidth=0.8, zorder=1.5)
        color = WORSE if part.mean == 0 or (part.mean > 0) == lower_is_better else BETTER
        axes.barh([row], [part.mean], left=[x], height=0.52, color=color, alpha=0.85, zorder=2)
        if part.half_width is not None:
            axes.errorbar([x + part.mean], [row], xerr=[part.half_width], color=INK, elinewidth=1.1, capsize=2.5,
                          zorder=3)
        for alone, marker in ((attribution.from_a[i], "^"), (attribution.from_b[i], "v")):
            axes.plot([x + alone.mean], [row], marker=marker, markersize=5, color=INK, markerfacecolor="white",
                      markeredgewidth=0.9, zorder=4, linestyle="none")
        x += part.mean
    axes.plot([x, x], [len(explanation.ranked), len(explanation.ranked) + 1], color=PALE, linewidth=0.8, zorder=1.5)
    axes.axvline(attribution.a.mean, color=FAINT, linewidth=0.8, zorder=1)
    axes.use_sticky_edges = False  # otherwise the axis would end at the ends of the bars
    axes.margins(x=0.06)


@dataclass(frozen=True)
class Explanation:
    """The result of `clbench explain`."""

    names: tuple[str, str]  # of A and B
    factors: tuple[Factor, ...]
    measures: tuple[Measure, Measure]
    seeds: tuple[int, ...]
    attribution: Attribution
    combinations: int  # number of combinations of factors that were run
    left_out: tuple[str, ...]  # a line for each seed that is left out
    records: tuple[Record, ...]
    ends: tuple[Trial, Trial]  # a trial of A and one of B

    @property
    def unit(self) -> Unit:
        """Return the unit of differences."""
        return difference_unit(self.measures[0].column.unit)

    @property
    def ranked(self) -> list[tuple[Factor, int]]:
        """Return the factors with their positions, the largest part first."""
        order = sorted(range(len(self.factors)), key=lambda i: -abs(self.attribution.parts[i].mean))
        return [(self.factors[i], i) for i in order]


def check_units(measures: tuple[Measure, Measure]) -> None:
    """Raise a `SpecError` if the measures of A and B have different units."""
    units = [difference_unit(m.column.unit) for m in measures]
    if units[0] != units[1]:
        raise SpecError(f"--metric: {measures[0].column.title} is in {measures[0].column.unit} and "
                        f"{measures[1].column.title} in {measures[1].column.unit}; their difference means nothing")


def signed(one: Estimate, unit: Unit, spread: bool = True) -> str:
    """Return a change with its sign and half the width of its interval, or 0 if nothing changed."""
    if one.mean == 0 and not one.half_width:
        return "0"
    text = interval(one.mean, one.half_width, unit) if spread and one.half_width is not None else number(one.mean, unit)
    return f"+{text}" if one.mean > 0 else text


def headline(explanation: Explanation) -> str:
    """Return the result as one line: `ACC 77.30 -> 69.40 (-7.90 ± 1.20 points): learning rate -5.10 ± 0.60, ...`."""
    attribution, unit = explanation.attribution, explanation.unit
    column_a, column_b = (measure.column for measure in explanation.measures)
    a, b = number(attribution.a.mean, column_a.unit), number(attribution.b.mean, column_b.unit)
    title_b = f"{column_b.title} " if column_b.title != column_a.title else ""
    parts = ", ".join(f"{clean(factor.name)} {signed(attribution.parts[i], unit)}" for factor, i in explanation.ranked)
    difference = f"{signed(attribution.difference, unit)}{unit_suffix(unit)}"
    return f"{column_a.title} {a} -> {title_b}{b} ({difference}): {parts}"


def table(explanation: Explanation) -> Table:
    """Return the table of factors with their contributions, the largest first, and the sums."""
    attribution, unit = explanation.attribution, explanation.unit
    columns = (Column("A -> B", "text"), Column("alone in A", unit), Column("alone in B", unit),
               Column("contribution", unit))
    contributions = (attribution.from_a, attribution.from_b, attribution.parts)
    rows = [Row(clean(factor.name), (Cell(clean(factor.change)), *(_cell(series[i], unit) for series in contributions)))
            for factor, i in explanation.ranked]
    total = [Cell("")] + [_cell(sum_changes(series), unit) for series in (attribution.from_a, attribution.from_b)]
    return Table("What the difference is made of", columns,
                 (*rows, Row("sum", (*total, _cell(attribution.difference, unit)))), corner="factor")


def seed_table(explanation: Explanation) -> Table:
    """Return the table of each seed's outcomes and contributions."""
    attribution = explanation.attribution
    a, b = (measure.column for measure in explanation.measures)
    columns = [(f"A: {a.title}", attribution.a, a.unit),
               *((factor.name, attribution.parts[i], explanation.unit) for factor, i in explanation.ranked),
               (f"B: {b.title}", attribution.b, b.unit)]
    return Table("Each seed's outcomes and parts", tuple(Column(clean(name), unit) for name, _, unit in columns), tuple(
        Row(str(seed), tuple(Cell(number(estimate.values[k], unit), estimate.values[k])
                             for _, estimate, unit in columns))
        for k, seed in enumerate(explanation.seeds)), corner="seed")


def name_pair(explanation: Explanation) -> str:
    """Return the line that names the two experiments."""
    return clean(f"From {explanation.names[0]} (A) to {explanation.names[1]} (B)")


def settings(explanation: Explanation) -> list[tuple[str, str]]:
    """Describe the settings of A and B."""
    return [(name, clean(f"{trial.benchmark}; scenario {trial.scenario}; {trial.model}; "
                         f"{notes.recipe(trial.trained_by, trial.arrival)}; method {trial.method}"
                         + (f"; arrival {trial.arrival}" if str(trial.arrival) else "")
                         + (f"; weights {notes.weights(trial.weights)}" if trial.weights else "")
                         + (f"; accuracies on {notes.describe_validation(trial)}" if trial.validation else "")))
            for name, trial in zip(("A", "B"), explanation.ends, strict=True)]


def sum_changes(series: Sequence[Estimate]) -> Estimate:
    """Return the sum of several changes for each seed."""
    return estimate_mean(np.array([fsum(values) for values in zip(*(change.values for change in series), strict=True)]))


def _cell(one: Estimate, unit: Unit) -> Cell:
    half = one.half_width
    return Cell(signed(one, unit), one.mean, half, len(one.values), low=None if half is None else one.mean - half,
                high=None if half is None else one.mean + half, values=one.values)


def remarks(explanation: Explanation) -> list[str]:
    """Return the sentences that a reader needs in order to understand the table."""
    attribution, count, unit = explanation.attribution, len(explanation.factors), explanation.unit
    basis = (f"all {2**count} combinations" if not attribution.orders else
             f"a sample of {attribution.orders} orders (each with its reverse) of the factors; the intervals include "
             "that")
    seeds = f"each of {len(explanation.seeds)} seeds" if len(explanation.seeds) > 1 else "one seed"
    lines = [f"Parts: Shapley values over {basis}, {explanation.combinations} trained with {seeds}. They sum to the "
             "difference before rounding. Alone in A: A with that one factor of B, less A. Alone in B: B less B with "
             "that one factor of A.",
             "±: half the 95% interval (Student t) over seeds, each part by itself; all is paired by seed."
             if len(explanation.seeds) > 1 else "A single seed gives no intervals; give more --seeds."]
    if 0 < attribution.orders < 2 * ENOUGH_PAIRS:
        lines.append(f"With fewer than {2 * ENOUGH_PAIRS} orders, intervals contain the true value less often than in "
                     "95% of cases; give a larger --max-trials or fewer --seeds.")
    lines += [f"{factor.name} are one factor, as not all of their combinations go together: {factor.why}"
              for factor in explanation.factors if factor.why]
    open_factors = [factor.name for factor, i in explanation.ranked if (half := attribution.parts[i].half_width) and
                    abs(attribution.parts[i].mean) <= half]
    idle_factors = [factor.name for factor, i in explanation.ranked if not any(attribution.parts[i].values)]
    if idle_factors:
        lines.append(f"Changes nothing, in no seed: {', '.join(idle_factors)}.")
    if open_factors:
        lines.append(f"The interval holds 0, so these seeds do not show a contribution: {', '.join(open_factors)}.")
    if count > 1:
        sums = [sum_changes(series) for series in (attribution.from_a, attribution.from_b)]
        total = signed(attribution.difference, unit, False)
        lines.append(f"Alone, the factors add up to {signed(sums[0], unit, False)} from A and "
                     f"{signed(sums[1], unit, False)} from B, together to {total}: "
                     "what is between is what they do to each other, which Shapley values share out evenly.")
    stale = sum(bool(record.stale) for record in explanation.records)
    if stale:
        lines.append(f"{plural(stale, 'result')} came from other code or data than there are now, and "
                     f"{'were' if stale > 1 else 'was'} kept.")
    return [clean(line) for line in (*lines, *explanation.left_out)]


def files(explanation: Explanation) -> dict[str, str | bytes]:
    """Return the contents of explain.md, explain.html and the waterfall, by their paths."""
    svg = draw_waterfall(explanation)
    return {"explain.md": markdown(explanation), "explain.html": page(explanation, svg), FIGURE: svg}


def markdown(explanation: Explanation) -> str:
    """Return explain.md: result in a line, table, waterfall, remarks, values of each seed, settings and provenance."""
    seeds = seed_table(explanation)
    blocks = [f"# {HEADING}", escape(name_pair(explanation)), f"**{escape(headline(explanation))}**",
              as_markdown(table(explanation)), f"![{escape(alt(explanation))}]({FIGURE})",
              bullets(remarks(explanation)), f"## {escape(seeds.title)}", as_markdown(seeds), "## Settings",
              pairs(settings(explanation)), "## Provenance", pairs(notes.provenance(explanation.records))]
    return "\n\n".join(blocks) + "\n"


def page(explanation: Explanation, svg: bytes) -> str:
    """Return explain.html with the waterfall in it."""
    return render_page("explain.html", heading=HEADING, between=name_pair(explanation), headline=headline(explanation),
                       tables=[table(explanation), seed_table(explanation)], remarks=remarks(explanation),
                       picture=image_source(svg), alt=alt(explanation), figure=TITLE, settings=settings(explanation),
                       provenance=notes.provenance(explanation.records))
