"""The shared parts of all figures: the styles of strategies, axes, labels of curves, and reproducible files.

matplotlib is imported only when a figure is drawn. pyplot is never imported.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, product
from typing import TYPE_CHECKING, Any

from clbench.core.objective import Metric
from clbench.report.figures.labels import spread
from clbench.report.model import FileFormat

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe & Ito 2008, without yellow, which is hard to see on white, and without black, which is the color of text
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "D", "^", "P", "v", "X", "<", ">", "p", "*")
REFERENCE_MARKERS = ("v", "^", "s", "D")
INK, PALE, FAINT = "#222222", "#6b6b6b", "#e4e4e4"
LABEL = 8.5  # size of labels in points
_LINE, _BOTTOM = 12.0, 4.0  # height of a line of labels, and space below the lowest one, in points
_TITLE = 0.24  # inches of room for the title of a figure
PNG_DPI = 300  # a resolution that journals require
_STYLE: dict[str, Any] = {
    "figure.dpi": 72, "figure.facecolor": "white", "font.family": ["DejaVu Sans"], "font.size": 9.5,
    "text.color": INK, "text.parse_math": False, "axes.edgecolor": PALE, "axes.labelcolor": INK, "axes.linewidth": 0.8,
    "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True, "axes.unicode_minus": False,
    "xtick.color": PALE, "ytick.color": PALE, "xtick.labelcolor": INK, "ytick.labelcolor": INK,
    "grid.color": FAINT, "grid.linewidth": 0.7, "legend.frameon": False, "legend.fontsize": LABEL,
    "pdf.fonttype": 42, "svg.fonttype": "path", "svg.hashsalt": "clbench", "path.simplify": False,
}


@dataclass(frozen=True)
class StrategyStyle:
    """The color and marker of a strategy in every figure."""

    color: str
    marker: str


def assign_styles(strategies: Sequence[tuple[str, bool]]) -> dict[str, StrategyStyle]:
    """Assign a style to each strategy. References are gray.

    Args:
        strategies: the name of each strategy and whether it is a reference.
    """
    styles: dict[str, StrategyStyle] = {}
    method_count = reference_count = 0
    for name, reference in dict.fromkeys(strategies):
        if name in styles:
            continue
        if reference:
            styles[name] = StrategyStyle(PALE, REFERENCE_MARKERS[reference_count % len(REFERENCE_MARKERS)])
            reference_count += 1
        else:  # 6 colors and 11 markers give 66 distinct pairs
            styles[name] = StrategyStyle(PALETTE[method_count % len(PALETTE)], MARKERS[method_count % len(MARKERS)])
            method_count += 1
    return styles


@contextmanager
def styled() -> Iterator[None]:
    """Set clbench's style for figures in this context. The user's matplotlib settings have no effect."""
    import matplotlib

    settings: dict[Any, Any] = {key: value for key, value in matplotlib.rcParamsDefault.items()
                                if not key.startswith(("backend", "interactive"))}
    with matplotlib.rc_context(settings | _STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # the font may lack letters of a label
        yield


def canvas(title: str, width: float = 7.2, height: float = 4.6) -> tuple[Figure, Axes]:
    """Return an empty figure and its axes, with a small title above them. Sizes are in inches."""
    figure, (axes,) = panels(title, 1, width, height)
    return figure, axes


def panels(title: str, count: int, width: float = 7.2, height: float = 4.6) -> tuple[Figure, list[Axes]]:
    """Return an empty figure and `count` axes side by side that share the vertical scale. Sizes are in inches."""
    figure = blank(width, height)
    edge, gap = 0.684 / width, 0.25 / width
    panel_width = (1 - edge - 0.18 / width - gap * (count - 1)) / count
    axes: list[Axes] = []
    for k in range(count):
        axes.append(figure.add_axes((edge + k * (panel_width + gap), 0.185, panel_width, 0.735),
                                    sharey=axes[0] if axes else None))
        axes[k].grid(True)
        axes[k].tick_params(length=3, labelleft=k == 0)
    axes[0].set_title(shorten(title, 100), loc="left", color=PALE, fontsize=LABEL, pad=9)
    return figure, axes


def add_title(figure: Figure, title: str) -> None:
    """Add room at the top of a drawn figure and write its title there. Everything else keeps its size."""
    width, height = figure.get_size_inches()
    share = height / (height + _TITLE)
    for axes in figure.axes:
        box = axes.get_position()
        axes.set_position((box.x0, box.y0 * share, box.width, box.height * share))
    for text in figure.texts:
        text.set_y(text.get_position()[1] * share)
    figure.set_size_inches(width, height + _TITLE)
    figure.text(0.1 / width, 1 - 0.08 / (height + _TITLE), title, color=INK, fontsize=10, fontweight="bold", va="top")


def blank(width: float, height: float) -> Figure:
    """Return a figure without axes. Sizes are in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height))


def encode_figure(figure: Figure, title: str, file_format: FileFormat) -> bytes:
    """Return a figure as the content of a file, without dates, versions or random IDs. PDF files embed their fonts."""
    omitted: dict[FileFormat, list[str]] = {"svg": ["Date", "Creator"], "pdf": ["CreationDate", "Creator", "Producer"],
                                            "png": ["Software"]}
    buffer = io.BytesIO()
    figure.savefig(buffer, format=file_format, dpi=PNG_DPI if file_format == "png" else 72,
                   metadata={**dict.fromkeys(omitted[file_format]), "Title": title})
    if file_format == "svg":
        return b"".join(line.rstrip() + b"\n" for line in buffer.getvalue().splitlines())
    return buffer.getvalue()


def shorten(text: str, most: int = 34) -> str:
    """Return text with its middle left out if it is longer than `most` characters."""
    half = (most - 1) // 2
    return text if len(text) <= most else f"{text[:most - 1 - half]}\N{HORIZONTAL ELLIPSIS}{text[-half:]}"


def short_count(value: float) -> str:
    """Return a number of parameters, bytes or FLOPs as an axis shows it.

    >>> short_count(800), short_count(50_000), short_count(2_500_000)
    ('800', '50 k', '2.5 M')
    """
    for factor, name in ((1e15, " P"), (1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= factor:
            return f"{value / factor:g}{name}"
    return f"{value:g}"


def percentages(axis: Any) -> None:
    """Label an axis of fractions with a few round percentages."""
    _round_ticks(axis, 100)


def value_ticks(axis: Any, metric: Metric, most: int = 8) -> None:
    """Label an axis of a metric, or of its differences, with a few round values."""
    _round_ticks(axis, 100 if metric.is_share else 1, most)


def padding(low: float, high: float, share: float, metric: Metric) -> float:
    """Return the space above and below the values of an axis, which is not 0 even if all values are equal."""
    least = 0.002 if metric.is_share else 0.002 * (max(abs(low), abs(high)) or 1)
    return max(share * (high - low), least)


def vertical_value_ticks(figure: Figure, axes: Axes, metric: Metric) -> None:
    """Label the vertical axis as `value_ticks` does, and narrow the axes if labels and title would leave the figure.

    The limits of the axis must be final.
    """
    value_ticks(axes.yaxis, metric)
    low, high = axes.get_ylim()
    labels = axes.yaxis.get_major_formatter().format_ticks(
        [float(tick) for tick in axes.yaxis.get_majorticklocs() if low <= tick <= high])
    box = axes.get_position()
    left = max(box.x0, (max(text_width(label, 9.5) for label in labels) + 26) / (figure.get_figwidth() * 72))
    axes.set_position((left, box.y0, box.x1 - left, box.height))


def _round_ticks(axis: Any, factor: int, most: int = 8) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    class RoundTicks(MaxNLocator):
        """Places ticks at round values; shares and their differences have none beyond 100%."""

        def tick_values(self, vmin: float, vmax: float) -> Any:
            return [tick for tick in super().tick_values(vmin, vmax) if factor != 100 or abs(tick) < 1.000001]

    axis.set_major_locator(RoundTicks(most, steps=[1, 2, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{factor * value:.6g}"))


def log_counts(axis: Any, low: float, high: float) -> None:
    """Set the ticks of a logarithmic axis from `low` to `high`: powers of ten, or finer steps if fewer than 3 fit."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter

    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1,), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9)):
        multiples = [s * 10.0 ** e for e, s in product(exponents, steps)]
        ticks = [tick for tick in multiples if low <= tick <= high]
        if len(ticks) >= 3:
            break
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_major_formatter(FuncFormatter(lambda value, _: short_count(value)))
    minor_ticks = [s * 10.0 ** e for e, s in product(exponents, range(2, 10))]
    axis.set_minor_locator(FixedLocator([tick for tick in minor_ticks if low <= tick <= high]))
    axis.set_minor_formatter(NullFormatter())


def text_width(text: str, size: float) -> float:
    """Return the width of a line of text in points, as in SVG and PDF files: without rounding to pixels."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(family="DejaVu Sans", size=size)
    return float(text_to_path.get_text_width_height_descent(text, font, False)[0])


def make_room(figure: Figure, axes: Axes, texts: Sequence[str]) -> None:
    """Narrow the axes and make the figure as high as needed, so that `label_ends` has room for texts to their right."""
    lines = list(chain.from_iterable(text.split("\n") for text in texts))
    widest = max(text_width(line, LABEL) for line in lines)
    width, height = figure.get_size_inches()
    higher = max(height, 0.095 * height + _LINE * len(lines) / 72)
    figure.set_size_inches(width, higher)
    share = height / higher
    axes.set_position((0.1, 0.14 * share, 0.87 - (widest + 14) / (width * 72), 1 - 0.235 * share))


def tasks_seen(axes: Axes, tasks: int, first: int = 1) -> None:
    """Set the horizontal axis to run from `first`, which is 0 for a value before training, to the last of the tasks."""
    axes.set_xlim(first, tasks)
    axes.set_xticks(range(first, tasks + 1) if tasks <= 20 else range(5, tasks + 1, 5))
    axes.set_xlabel("tasks seen")


def marker_interval(tasks: int) -> int:
    """Return the number of tasks from one marker of a curve to the next. A curve has at most 20 markers."""
    return -(-tasks // 20)


def label_ends(axes: Axes, curves: Sequence[Sequence[float]], texts: Sequence[str], first: int = 1) -> None:
    """Write a text to the right of each curve's end (tasks `first`, ...). Texts move apart if ends are close."""
    ends = [tuple(map(float, axes.transData.transform((len(curve) - 1 + first, curve[-1])))) for curve in curves]
    heights = [_LINE * (text.count("\n") + 1) for text in texts]
    area = axes.get_window_extent()
    edge = float(area.x1)
    middles = spread([y for _, y in ends], heights, _BOTTOM, float(area.y1) + _BOTTOM)
    to_data = axes.transData.inverted().transform
    for text, (x, y), middle in zip(texts, ends, middles, strict=True):
        axes.plot(*zip(*to_data([(x + 5, y), (edge + 8, y), (edge + 14, middle)]), strict=True), color=PALE,
                  linewidth=0.6, clip_on=False, zorder=1)
        left, center = to_data((edge + 17, middle))
        axes.text(left, center, text, fontsize=LABEL, va="center", ha="left", linespacing=1.15)
