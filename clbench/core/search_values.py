"""Default search values, declared in the type of an option."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel


class SearchValues:
    """Values that `clbench tune` tries for an option if the experiment's file has no search space.

    Annotate the option's type: `strength: Annotated[Scalar, SearchValues(1e2, 1e4, 1e6)] = Field(...)`.
    """

    def __init__(self, *values: Any) -> None:
        """Store the values; `"none"` stands for None."""
        self.values = values


def search_values(options: type[BaseModel]) -> dict[str, tuple[Any, ...]]:
    """Return the values that `clbench tune` tries by default, for each option that declares some."""
    values: dict[str, tuple[Any, ...]] = {}
    for name, field in options.model_fields.items():
        for declared in field.metadata:
            if isinstance(declared, SearchValues):
                values[name] = declared.values
    return values
