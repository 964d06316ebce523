"""What an option's type says that a search tries by default."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel


class SearchValues:
    """Values that `clbench tune` tries for an option where the experiment's file does not say what is searched.

    It stands in the option's type: `strength: Annotated[Scalar, SearchValues(1e2, 1e4, 1e6)] = Field(...)`.
    """

    def __init__(self, *values: Any) -> None:
        """Name the values; `"none"` stands for None."""
        self.values = values


def search_values(options: type[BaseModel]) -> dict[str, tuple[Any, ...]]:
    """Return the values that `clbench tune` tries by default, for each option that declares some."""
    return {name: declared.values for name, field in options.model_fields.items()
            for declared in field.metadata if isinstance(declared, SearchValues)}
