"""Marks in the types of options: values to search, values that may differ in a stack, needs of another option."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel


class PerMember:
    """Mark an option whose value may differ between vectorized trials (a stack)."""


class SearchValues:
    """Values that `clbench tune` tries for an option if the experiment's file has no search space.

    Annotate the option's type: `strength: Annotated[Scalar, SearchValues(1e2, 1e4, 1e6)] = Field(...)`.
    """

    def __init__(self, *values: Any) -> None:
        """Store the values; `"none"` stands for None."""
        self.values = values


class OnlyWith:
    """Mark an option that has no effect unless another option has one of some values.

    Annotate the option's type: `temperature: Annotated[Scalar, OnlyWith("targets", "soft")] = Field(...)`. Without
    values, the other option has to be true, given or not 0. An experiment that changes the marked option alone is
    refused; stored options are not.
    """

    def __init__(self, option: str, *values: Any) -> None:
        """Store the other option's name, and the values that give the marked option an effect."""
        self.option, self.values = option, values

    def missing(self, options: BaseModel) -> str:
        """Return what the marked option needs and these options lack, such as `targets = soft`; empty if nothing."""
        value = getattr(options, self.option)
        if value in self.values or (value and not self.values):
            return ""
        if self.values:
            values = (str(v).lower() if v is None or isinstance(v, bool) else str(v) for v in self.values)
            return f"{self.option} = {' or '.join(values)}"
        if isinstance(value, bool):
            return f"{self.option} = true"
        return f"{self.option} above 0" if isinstance(value, int | float) else self.option


def marks(options: type[BaseModel], kind: type[Any]) -> dict[str, Any]:
    """Return the mark of a kind for each option that has one; the last mark if there are several."""
    return {name: mark for name, field in options.model_fields.items() for mark in field.metadata
            if isinstance(mark, kind)}


def without_effect(options: BaseModel) -> str:
    """Return an error about a changed option that has no effect without another option; empty if there is none."""
    for name, mark in marks(type(options), OnlyWith).items():
        default = type(options).model_fields[name].get_default(call_default_factory=True)
        if getattr(options, name) != default and (missing := mark.missing(options)):
            return f"{name} has an effect only with {missing}; add that, or leave {name} out"
    return ""


def search_values(options: type[BaseModel]) -> dict[str, tuple[Any, ...]]:
    """Return the values that `clbench tune` tries by default, for each option that declares some."""
    return {name: mark.values for name, mark in marks(options, SearchValues).items()}
