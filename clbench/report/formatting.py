"""Format numbers, names and options of methods as text. All report formats share these functions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

from clbench.core.objective import Metric, format_digits, format_fixed
from clbench.core.options import format_value, recipe_options
from clbench.experiment.trial import Trial
from clbench.report.model import Unit

Value = bool | int | float | str | None
PREFIX = "option."  # of an option if another column of the table already has its name


def options_of(trial: Trial) -> dict[str, Any]:
    """Return every option of a trial's method, and its own hyperparameters under names such as `recipe.lr`."""
    return {**trial.method.options, **recipe_options(trial.own_recipe)}


def to_plain(value: Any) -> Value:
    """Return an option's value as None, a bool, a finite number, or the text that the command line accepts."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    return format_value(value)


def column_names(options: Iterable[Mapping[str, Any]], other_columns: Iterable[str]) -> dict[str, str]:
    """Return the name of the column of each option, in order of appearance.

    Methods with an option of the same name share its column.

    Args:
        options: the options of each method.
        other_columns: names of the table's other columns. An option with such a name gets a prefix.
    """
    reserved_names = set(other_columns)
    option_names = dict.fromkeys(chain.from_iterable(options))
    return {name: f"{PREFIX}{name}" if name in reserved_names else name for name in option_names}


_SYMBOLS: dict[Unit, str] = {"bytes": "B", "flops": "FLOP"}
_PREFIXES: dict[Unit, str] = {"bytes": "kMGT", "flops": "kMGTPE"}
SIGNIFICANT: tuple[Unit, ...] = ("nats", "value")  # units whose values have three significant digits
NONE = "\N{EN DASH}"  # shown in a cell without a value


def clean(text: object) -> str:
    """Return text from outside as one line of printable characters (no control, escape or direction codes)."""
    line = " ".join(str(text).split())
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line)


def number(value: float, unit: Unit) -> str:
    """Return a value in its unit: accuracies in %, counts as 1,234,567, times in s, bytes and FLOPs as 1.20 MB.

    Nats, and values in a unit of the data, have three significant digits, but at most four decimals (`format_digits`).

    >>> number(0.98314, "percent"), number(1234567, "count"), number(2_500_000, "bytes"), number(3.14159, "seconds")
    ('98.31', '1,234,567', '2.50 MB', '3.14')
    >>> number(0, "flops"), number(999.6e9, "flops")
    ('0 FLOP', '1.00 TFLOP')
    >>> number(6.5812, "nats"), number(0.04229, "nats"), number(-0.00004229, "nats")
    ('6.58', '0.0423', '-4.23e-05')
    """
    if unit in ("percent", "points"):
        return format_fixed(100 * value, 2)
    if unit in SIGNIFICANT:
        return format_digits(value)
    if unit == "count":
        return f"{value:,.0f}"
    if unit in _SYMBOLS:
        factor, name = _prefix(value, unit)
        return f"{_format_short(value / factor) if factor > 1 else f'{value:,.0f}'} {name}"
    return _format_short(value)


def with_ends(value: float, ends: tuple[float, float], unit: Unit) -> str:
    """Return a value with the ends of its interval, for intervals that are not symmetric.

    >>> with_ends(0.95, (0.831, 0.987), "percent")
    '95.00 (83.10 to 98.70)'
    """
    return f"{number(value, unit)} ({' to '.join(number(end, unit) for end in ends)})"


def interval(mean: float, half_width: float | None, unit: Unit) -> str:
    """Return `mean ± half width`, or `± n/a` if there is no interval.

    >>> interval(0.98314, 0.0042, "percent"), interval(0.98314, None, "percent")
    ('98.31 ± 0.42', '98.31 ± n/a')
    >>> interval(6.5812, 0.0423, "nats"), interval(0.0012, 0.1234, "nats")
    ('6.58 ± 0.04', '0.001 ± 0.123')
    """
    if half_width is None:
        return f"{number(mean, unit)} ± n/a"
    if unit in SIGNIFICANT:
        size = max(abs(mean), abs(half_width))
        return f"{format_digits(mean, size)} ± {format_digits(half_width, size)}"
    if unit in _SYMBOLS:
        factor, name = _prefix(mean, unit)
        return f"{_format_short(mean / factor)} ± {_format_short(half_width / factor)} {name}"
    return f"{number(mean, unit)} ± {number(half_width, unit)}"


def unit_of(metric: Metric) -> Unit:
    """Return the unit in which tables show a metric."""
    units: dict[str, Unit] = {"percent": "percent", "nats per token": "nats"}
    return units.get(metric.unit, "value")


def difference_unit(unit: Unit) -> Unit:
    """Return the unit of differences of values: percentages differ by points."""
    return "points" if unit == "percent" else unit


def unit_suffix(unit: Unit) -> str:
    """Return the unit of a value or difference as it follows a number, with a space; nothing without a name.

    >>> unit_suffix("percent"), unit_suffix("points"), unit_suffix("value")
    (' %', ' points', '')
    """
    return {"percent": " %", "points": " points", "nats": " nats", "seconds": " seconds"}.get(unit, "")


def describe_difference(value: float, metric: Metric, with_unit: bool = True) -> str:
    """Return a difference of a metric in a sentence, with its unit: `12.3 points`, `0.51 nats`."""
    unit = difference_unit(unit_of(metric))
    text = f"{100 * value:.1f}" if unit == "points" else number(value, unit)
    return f"{text}{unit_suffix(unit)}" if with_unit else text


def signed(value: float, unit: Unit) -> str:
    """Return a difference with its sign: points with one decimal, other units as in `number`.

    >>> signed(0.0123, "points"), signed(-0.5, "nats")
    ('+1.2', '-0.500')
    """
    text = f"{100 * value:+.1f}" if unit == "points" else f"{'+' * (value > 0)}{number(value, unit)}"
    return "+0.0" if text == "-0.0" else text


def plural(number: int, noun: str) -> str:
    """Return a number with its noun, as in `1 worker` and `2 workers`."""
    return f"{number} {noun}" + ("" if number == 1 else "s")


MANY = 12  # names in a sentence; a longer list is cut


def join_names(names: Sequence[str], most: int = MANY) -> str:
    """Return names as a list in a sentence. A long list is cut and ends with the number of the other names.

    >>> join_names(["EWC"]), join_names(["EWC", "ER"]), join_names(["EWC", "ER", "PNN", "SI"], 3)
    ('EWC', 'EWC and ER', 'EWC, ER, PNN and 1 more')
    """
    items = [*names[:most], *([f"{len(names) - most} more"] if len(names) > most else [])]
    return " and ".join(filter(None, [", ".join(items[:-1]), items[-1]])) if items else ""


LONG = 600  # characters of an alternative text; a longer text only repeats a table


def shorten_alt(alt: str, title: str) -> str:
    """Return the text that replaces a figure. If it is too long, return the title and where the numbers are."""
    return alt if len(alt) <= LONG else f"{title}; the numbers are in the tables"


def describe_by_task(values: list[int]) -> str:
    """Describe one value per task in words. Equal neighbors are joined. A long list keeps its ends and its maximum.

    >>> describe_by_task([478410, 4100, 4100])
    '478,410 in task 1, 4,100 in tasks 2-3'
    """
    runs: list[tuple[int, int, int]] = []
    for task, value in enumerate(values, start=1):
        if runs and runs[-1][0] == value:
            runs[-1] = (value, runs[-1][1], task)
        else:
            runs.append((value, task, task))
    if len(runs) > 6:
        maximum_note = f", {max(values):,} at most" if max(values) not in (values[0], values[-1]) else ""
        return f"{values[0]:,} in task 1, {values[-1]:,} in task {len(values)}{maximum_note}"
    return ", ".join(f"{value:,} in " + (f"task {a}" if a == b else f"tasks {a}-{b}") for value, a, b in runs)


def task_label(index: int, names: Sequence[str] = ()) -> str:
    """Return the name of a task in tables. `index` counts from 0.

    >>> task_label(0), task_label(1, ("dates", "codes"))
    ('task 1', 'task 2: codes')
    """
    return f"task {index + 1}" + (f": {names[index]}" if names else "")


def as_ranges(values: list[int]) -> str:
    """Return the distinct integers as a sorted list in which consecutive ones form a range: `0-2, 7`."""
    ranges: list[list[int]] = []
    for value in sorted(set(values)):
        if ranges and value == ranges[-1][1] + 1:
            ranges[-1][1] = value
        else:
            ranges.append([value, value])
    return ", ".join(str(a) if a == b else f"{a}, {b}" if b == a + 1 else f"{a}-{b}" for a, b in ranges)


def list_seeds(seeds: Iterable[int]) -> str:
    """Return seeds as a list with the noun before it.

    >>> list_seeds([0]), list_seeds([0, 0, 1, 1, 2, 2])
    ('seed 0', 'seeds 0-2')
    """
    values = sorted(set(seeds))
    return f"seed{'s' * (len(values) > 1)} {as_ranges(values)}"


def _format_short(value: float) -> str:
    """Return a number with about three digits, and at least the digits of its integer part."""
    return format_fixed(value, 2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0)


def _prefix(value: float, unit: Unit) -> tuple[float, str]:
    symbol, prefixes = _SYMBOLS[unit], _PREFIXES[unit]
    if abs(value) < 999.5:
        return 1, symbol
    for power, prefix in enumerate(prefixes, start=1):
        if abs(value) / 1000.0 ** power < 999.5:
            return 1000.0 ** power, prefix + symbol
    return 1000.0 ** len(prefixes), prefixes[-1] + symbol
