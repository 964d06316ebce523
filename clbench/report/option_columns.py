"""The options of methods as columns of a flat table, empty for methods without the option."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from clbench.core.options import format_value, recipe_options
from clbench.experiment.trial import Trial

Value = bool | int | float | str | None
PREFIX = "option."  # of an option that is called as another column of its table


def options_of(trial: Trial) -> dict[str, Any]:
    """Return every option of a trial's method, and its own hyperparameters under names such as `recipe.lr`."""
    return {**trial.method.options, **recipe_options(trial.own_recipe)}


def plain(value: Any) -> Value:
    """Return an option's value as a finite number, true or false, or text as the command line takes it."""
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
    return {name: f"{PREFIX}{name}" if name in reserved_names else name
            for name in dict.fromkeys(name for method_options in options for name in method_options)}
