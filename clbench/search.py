"""What `clbench tune` looks through, and what it found, as they stand in an experiment's file."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from clbench.options import Strict


class Range(Strict):
    """Numbers from `low` to `high`, both included; with `log`, each order of magnitude is as likely as another."""

    low: int | float
    high: int | float
    log: bool = False

    @model_validator(mode="after")
    def _has_room(self) -> Range:
        """Refuse an empty range, and a logarithm of nothing."""
        if not self.low < self.high:
            raise ValueError(f"low should be below high, got {self.low:g} and {self.high:g}")
        if self.log and self.low <= 0:
            raise ValueError(f"log = true needs low above 0, got {self.low:g}")
        return self


def _kind(value: Any) -> str:
    """Tell a range, written as a table, from values to choose from, written as a list."""
    return "range" if isinstance(value, dict | Range) else "values"


Values = Annotated[list[Any], Field(min_length=1)]
Axis = Annotated[Annotated[Range, Tag("range")] | Annotated[Values, Tag("values")], Discriminator(_kind)]
Space = dict[str, Axis]  # by option of a method


class Tried(Strict):
    """A candidate: a method's options, those of the space among them, in one scenario, and what they gave."""

    method: str  # the label of the row that is tuned
    scenario: Literal["task", "class", "domain"]
    options: dict[str, Any]  # those that were searched
    acc: tuple[float, ...] = ()  # ACC on the validation samples, in [0, 1], for each seed
    failure: str = ""  # instead, if a seed diverged or failed: how


class Search(Strict):
    """A search that was made: all that is needed to make it again, and every candidate's result."""

    command: str
    versions: dict[str, str]
    validation: float  # share of the training samples, of each class, that was held out and evaluated on
    seeds: tuple[int, ...]
    trials: int  # candidates per method and scenario, at most
    sampler: str
    space: dict[str, Space]  # by label of the row
    tried: tuple[Tried, ...]
