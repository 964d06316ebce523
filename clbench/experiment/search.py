"""What `clbench tune` looks through, and what it found, as they stand in an experiment's file."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from clbench.core.options import Strict, recipe_options
from clbench.core.scenario import Scenario


class Axis(Strict):
    """Base of what is searched of one option."""

    scenario: Scenario | None = None  # where the option matters and so is searched; None: in all


class Range(Axis):
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


class Choices(Axis):
    """Values to choose from; a list stands for `{values = [...]}`."""

    values: Annotated[tuple[Any, ...], Field(min_length=1)]

    @model_validator(mode="before")
    @classmethod
    def _from_list(cls, value: Any) -> Any:
        """Accept a list for the table."""
        return {"values": value} if isinstance(value, list | tuple) else value


def _kind(value: Any) -> str:
    """Tell a range from values to choose from."""
    listed = isinstance(value, list | tuple | Choices) or (isinstance(value, dict) and "values" in value)
    return "values" if listed else "range"


AnyAxis = Annotated[Annotated[Range, Tag("range")] | Annotated[Choices, Tag("values")], Discriminator(_kind)]


def _flat(value: Any) -> Any:
    """Read a table `recipe` as the axes `recipe.lr` and so on."""
    recipe = value.get("recipe") if isinstance(value, dict) else None
    if not isinstance(recipe, dict) or {"low", "high", "values"} & set(recipe):
        return value
    return {**{k: v for k, v in value.items() if k != "recipe"}, **recipe_options(recipe)}


Space = Annotated[dict[str, AnyAxis], BeforeValidator(_flat)]  # by option of a method, or `recipe.` and a part of one


class Searched(Strict):
    """By how much a row's options were searched: what a report must know to compare it with others."""

    candidates: int  # that were tried
    validation: float  # share of the training samples that they were compared on
    seeds: tuple[int, ...]


class Tried(Strict):
    """A candidate: a method's options, those of the space among them, in one scenario, and what they gave."""

    method: str  # the label of the row that is tuned
    scenario: Scenario
    options: dict[str, Any]  # those that were searched
    acc: tuple[float, ...] = ()  # ACC on the validation samples, in [0, 1], for each seed
    failure: str = ""  # instead, if a seed diverged or failed: how


class Outcome(Strict):
    """What a row's search came to beside its candidates: how far its grid was widened, and what is to be known."""

    method: str  # the label of the row
    scenario: Scenario
    widened: dict[str, int] = Field(default_factory=dict)  # values that were added, by option
    notes: tuple[str, ...] = ()


class Search(Strict):
    """A search that was made: all that is needed to make it again, and every candidate's result."""

    command: str
    versions: dict[str, str]
    validation: float  # share of the training samples, of each class, that was held out and evaluated on
    budget: dict[str, int] = Field(default_factory=dict)  # epochs or iterations of candidates, if not the experiment's
    seeds: tuple[int, ...]
    trials: int  # candidates per method and scenario, at most
    sampler: str
    widen: int = 0  # values by which an axis of a grid was extended at most, on each side
    outcomes: tuple[Outcome, ...] = ()  # of the rows that have something to tell
    space: dict[str, Space]  # by label of the row; that of all its scenarios
    tried: tuple[Tried, ...]
