"""The waterfall of an explained difference: from A's value, part by part, to B's. Drawing imports matplotlib."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from clbench.report.explained import POINTS, Explanation, signed
from clbench.report.figures import style
from clbench.report.figures.style import FAINT, INK, LABEL, PALE, PALETTE
from clbench.report.formatting import clean, number
from clbench.report.model import FileFormat

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ROW, _HEAD, _FOOT = 30.0, 30.0, 62.0  # points: a row, above the first, below the last
UP, DOWN = PALETTE[2], PALETTE[1]
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


def drawn(explanation: Explanation, file_format: FileFormat) -> bytes:
    """Return the waterfall as the content of a file; the same numbers give the same bytes."""
    with style.styled():
        return style.encoded(draw(explanation), TITLE, file_format)


def draw(explanation: Explanation) -> Figure:
    """Draw a row for A, a row for each factor, and a row for B. The factor with the largest part comes first."""
    attribution, ranked, unit = explanation.attribution, explanation.ranked, explanation.unit
    first, second = (measure.column for measure in explanation.measures)
    name_a, name_b = explanation.names
    height = _HEAD + _ROW * (len(ranked) + 2) + _FOOT
    figure, axes = style.canvas(f"{clean(name_a)} (A) to {clean(name_b)} (B)", height=height / 72)
    labels = [f"A: {first.title}", *(clean(style.shorten(f.name, 40)) for f, _ in ranked), f"B: {second.title}"]
    below = ["", *(clean(style.shorten(f.change, 44)) for f, _ in ranked), ""]
    texts = [number(attribution.a.mean, first.unit), *(signed(attribution.parts[i], unit) for _, i in ranked),
             number(attribution.b.mean, second.unit)]
    width = figure.get_figwidth() * 72
    left = max(style.text_width(text, size) for lines, size in ((labels, 9.5), (below, 7.5))
               for text in lines) + 20
    right = max(style.text_width(text, LABEL) for text in texts) + 18
    axes.set_position((left / width, _FOOT / height, 1 - (left + right) / width, 1 - (_HEAD + _FOOT) / height))
    axes.set_title(axes.get_title(loc="left"), loc="left", color=PALE, fontsize=LABEL, pad=9, x=-(left - 8) / (
        width - left - right))
    axes.set_ylim(len(ranked) + 1.6, -0.6)
    axes.grid(False, axis="y")
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    _rows(axes, explanation)
    if first.unit in POINTS:
        style.percentages(axes.xaxis)
    axes.set_xlabel(first.title + (" (%)" if first.unit in POINTS else ""))
    for row, (label, change, text) in enumerate(zip(labels, below, texts, strict=True)):
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
    attribution, at = explanation.attribution, explanation.attribution.a.mean
    for row, one in ((0, attribution.a), (len(explanation.ranked) + 1, attribution.b)):
        axes.errorbar([one.mean], [row], xerr=None if one.half_width is None else [one.half_width], marker="D",
                      color=INK, markersize=6, elinewidth=1.1, zorder=4)
    for row, (_, i) in enumerate(explanation.ranked, start=1):
        part = attribution.parts[i]
        axes.plot([at, at], [row - 1, row], color=PALE, linewidth=0.8, zorder=1.5)
        axes.barh([row], [part.mean], left=[at], height=0.52, color=UP if part.mean > 0 else DOWN, alpha=0.85, zorder=2)
        if part.half_width is not None:
            axes.errorbar([at + part.mean], [row], xerr=[part.half_width], color=INK, elinewidth=1.1, capsize=2.5,
                          zorder=3)
        for alone, marker in ((attribution.from_a[i], "^"), (attribution.from_b[i], "v")):
            axes.plot([at + alone.mean], [row], marker=marker, markersize=5, color=INK, markerfacecolor="white",
                      markeredgewidth=0.9, zorder=4, linestyle="none")
        at += part.mean
    axes.plot([at, at], [len(explanation.ranked), len(explanation.ranked) + 1], color=PALE, linewidth=0.8, zorder=1.5)
    axes.axvline(attribution.a.mean, color=FAINT, linewidth=0.8, zorder=1)
    axes.use_sticky_edges = False  # of bars, at which the axis would end
    axes.margins(x=0.06)
