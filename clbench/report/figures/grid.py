"""The heat map of two swept options of a method: its data and its drawing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

from clbench.core.errors import SpecError, unknown
from clbench.core.options import format_value, recipe_options
from clbench.report.analysis.grouping import Setting
from clbench.report.analysis.method_records import MethodRecords
from clbench.report.columns import Measure
from clbench.report.figures import style
from clbench.report.figures.style import INK, LABEL, PALE
from clbench.report.formatting import NONE, clean, number
from clbench.report.model import Cell, Column

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SIDES = (0.95, 5.6), (0.5, 4.2)  # inches: largest width of a cell and of all cells, then the largest heights
_RIGHT, _ABOVE, _BELOW = 0.85, 0.42, 0.58  # inches around the cells: for the scale, the title, the axis
_LEAST = 30.0  # points: cells that are narrower have no numbers
_HELP = "help(clbench.Results.plot)"
_SWEEP = "sweep two, as in set={'METHOD.OPTION': [1, 4], 'METHOD.OTHER': [8, 16]}"


@dataclass(frozen=True)
class Grid:
    """A column of the tables over the values of two options. Combinations that were not run have no cell."""

    subject: str
    column: Column
    x: str  # the option along the horizontal axis: strategy.option
    y: str
    xs: tuple[str, ...]  # values of `x`
    ys: tuple[str, ...]
    cells: Mapping[tuple[int, int], Cell]  # by position among the values of x and of y


def grid(setting: Setting, x: str | None, y: str | None, metric: str | None) -> Grid:
    """Return the data of the heat map of a setting. The arguments are those of `Results.plot`.

    Raises:
        SpecError: no such metric or option, fewer than two swept options, or a third option that also differs.
    """
    measure = setting.final if metric is None else _measure(setting, metric)
    strategy, x_option, y_option = _axes(setting, x, y)
    rows = [m for m in setting.methods if m.strategy == strategy and {x_option, y_option} <= _options(m).keys()]
    xs, ys = (_values([_options(m)[name] for m in rows]) for name in (x_option, y_option))
    cell_of: dict[tuple[int, int], tuple[str, Cell]] = {}
    cells = {m.label: cell for m, cell in zip(setting.methods, setting.cells(measure), strict=True)}
    for m in rows:
        position = xs.index(_options(m)[x_option]), ys.index(_options(m)[y_option])
        if position in cell_of:
            other_options = [n for n in _find_swept([r for r in rows if r.label in (cell_of[position][0], m.label)])]
            raise SpecError(f"{cell_of[position][0]} and {m.label} share a cell, for "
                            f"{' and '.join(other_options) or 'their recipe'} differs as well: keep one value of it, "
                            f"as in Results(r for r in results if r.label != {m.label!r})")
        cell_of[position] = m.label, cells[m.label]
    return Grid(setting.title, measure.column, f"{strategy}.{x_option}", f"{strategy}.{y_option}",
                tuple(clean(format_value(v)) for v in xs), tuple(clean(format_value(v)) for v in ys),
                {position: cell for position, (_, cell) in cell_of.items() if cell.mean is not None})


def _measure(setting: Setting, title: str) -> Measure:
    by_name = {m.column.title.lower(): m for m in setting.measures}
    if title.lower() not in by_name:
        raise SpecError(unknown("metric", title, [m.column.title for m in setting.measures], _HELP))
    return by_name[title.lower()]


def _options(method: MethodRecords) -> dict[str, Any]:
    """Return the options of a method and all its hyperparameters, also those that the experiment shares."""
    trial = method.records[0].trial
    return {**trial.method.options, **recipe_options({**trial.recipe.model_dump(mode="json"), **trial.own_recipe})}


def _find_swept(methods: Sequence[MethodRecords]) -> list[str]:
    """Return the options that differ between methods of one strategy, in the order of the options."""
    options_by_method = [_options(m) for m in methods]
    names = dict.fromkeys(chain.from_iterable(options_by_method))
    return [name for name in names if len({format_value(options.get(name)) for options in options_by_method}) > 1]


def _axes(setting: Setting, x: str | None, y: str | None) -> tuple[str, str, str]:
    """Return the strategy and its two options that the grid shows."""
    swept = {strategy: _find_swept([m for m in setting.methods if m.strategy == strategy])
             for strategy in dict.fromkeys(m.strategy for m in setting.methods)}
    names = [name for name in (x, y) if name is not None]
    option_by_name: dict[str, tuple[str, str]] = {}
    for strategy, options in swept.items():
        option_by_name |= {f"{strategy}.{option}": (strategy, option) for option in options}
    for name in names:
        if name not in option_by_name and not any(name in options for options in swept.values()):
            raise SpecError(unknown("swept option", name, option_by_name, _HELP))
    fitting = {s: options for s, options in swept.items()
               if len(options) > 1
               and all(name in options or option_by_name.get(name, ("",))[0] == s for name in names)}
    if not fitting:
        options_text = ", ".join(option_by_name) or "none"
        raise SpecError(f"a grid shows two swept options of one method; swept here: {options_text} ({_SWEEP})")
    if len(fitting) > 1:
        raise SpecError(f"several methods were swept, {' and '.join(fitting)}: name the options with the method, as in "
                        f"x={next(iter(option_by_name))!r}")
    (strategy, options), = fitting.items()
    chosen = [None if name is None else name.removeprefix(f"{strategy}.") for name in (x, y)]
    other_options = [name for name in options if name not in chosen]
    if len(other_options) > chosen.count(None) and None in chosen:
        raise SpecError(f"of {strategy} {len(options)} options were swept, {', '.join(options)}: name the two, as in "
                        f"x={options[0]!r}, y={options[1]!r}")
    x_option, y_option = (name if name is not None else other_options.pop(0) for name in chosen)
    if x_option == y_option:
        raise SpecError(f"x and y are both {x_option!r}: a grid shows two options")
    return strategy, x_option, y_option


def _values(values: Sequence[Any]) -> list[Any]:
    """Return the distinct values of an option: numbers by size, then other values in order of appearance."""
    distinct = [value for i, value in enumerate(values) if value not in values[:i]]

    def sort_key(value: Any) -> tuple[bool, float]:
        numeric = isinstance(value, int | float) and not isinstance(value, bool)
        return not numeric, value if numeric else 0

    return sorted(distinct, key=sort_key)


def draw_grid(data: Grid) -> Figure:
    """Draw the cells with their numbers. Darker cells are better, or larger if no direction is better."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    (wide, all_wide), (tall, all_tall) = _SIDES
    width, height = min(wide, all_wide / len(data.xs)), min(tall, all_tall / len(data.ys))
    left = 0.5 + max(style.text_width(text, LABEL) for text in data.ys) / 72
    size = max(left + width * len(data.xs) + _RIGHT, 4.2), _BELOW + height * len(data.ys) + _ABOVE
    figure = style.blank(*size)
    axes = figure.add_axes((left / size[0], _BELOW / size[1], width * len(data.xs) / size[0],
                            height * len(data.ys) / size[1]))
    means = [cell.mean for cell in data.cells.values() if cell.mean is not None]
    scale = ScalarMappable(Normalize(min(means), max(means)) if min(means) < max(means) else
                           Normalize(means[0] - 1, means[0] + 1),
                           "Blues_r" if data.column.direction == "down" else "Blues")
    axes.set_xlim(-0.5, len(data.xs) - 0.5)
    axes.set_ylim(-0.5, len(data.ys) - 0.5)
    for i in range(len(data.xs)):
        for j in range(len(data.ys)):
            _draw_cell(axes, (i, j), data.cells.get((i, j)), data, scale, width * 72, height * 72)
    axes.set_xticks(range(len(data.xs)), data.xs, fontsize=LABEL)
    axes.set_yticks(range(len(data.ys)), data.ys, fontsize=LABEL)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel(data.x)
    axes.set_ylabel(data.y)
    figure.text(0.12 / size[0], 1 - 0.1 / size[1], style.shorten(f"{data.column.header}: {data.subject}",
                int(13 * size[0])), color=PALE, fontsize=LABEL, va="top")
    bar = figure.add_axes(((left + width * len(data.xs) + 0.12) / size[0], _BELOW / size[1], 0.1 / size[0],
                           height * len(data.ys) / size[1]))
    figure.colorbar(scale, cax=bar, format=lambda value, _: number(value, data.column.unit))
    bar.tick_params(labelsize=LABEL - 1, length=2)
    bar.yaxis.set_major_locator(_few())
    return figure


def _few() -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(4)


def _draw_cell(axes: Any, at: tuple[int, int], cell: Cell | None, data: Grid, scale: Any, width: float,
               height: float) -> None:
    """Draw a cell of `width` by `height` points. A cell without a value is white, with a dash."""
    from matplotlib.patches import Rectangle

    i, j = at
    mean = None if cell is None else cell.mean
    red, green, blue, _ = (1.0, 1.0, 1.0, 1.0) if mean is None else scale.to_rgba(mean)
    axes.add_patch(Rectangle((i - 0.5, j - 0.5), 1, 1, facecolor=(red, green, blue), edgecolor="white", linewidth=1))
    if width < _LEAST:
        return
    unit = data.column.unit
    text = NONE if mean is None else number(mean, unit)
    if cell is not None and cell.half_width and height > 24:
        text += f"\n± {number(cell.half_width, unit)}"
    dark = 0.2126 * red + 0.7152 * green + 0.0722 * blue < 0.5
    axes.text(i, j, text, ha="center", va="center", fontsize=min(LABEL, 0.17 * width), linespacing=1.15,
              color="white" if dark else INK)
