"""The options of methods as columns of a flat table: one for each option, empty for methods that have it not."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from clbench.core.options import format_value, recipe_options
from clbench.experiment.trial import Trial

Value = bool | int | float | str | None
PREFIX = "option."  # of an option that is called as another column of its table


def options_of(trial: Trial) -> dict[str, Any]:
    """Return every option of a trial's method, and what it is trained by of its own under names such as `recipe.lr`."""
    return {**trial.method.options, **recipe_options(trial.own_recipe)}


def plain(value: Any) -> Value:
    """Return an option's value as a finite number, true or false, or text as the command line takes it."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    return format_value(value)


def column_names(options: Iterable[Mapping[str, Any]], taken: Iterable[str]) -> dict[str, str]:
    """Return the column of each option that occurs, in the order in which they appear.

    Methods share the column of an option that they call the same.

    Args:
        options: of each method.
        taken: the table's other columns.
    """
    own = set(taken)
    return {name: f"{PREFIX}{name}" if name in own else name
            for name in dict.fromkeys(name for found in options for name in found)}
