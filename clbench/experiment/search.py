"""The search spaces and results of `clbench tune`, as an experiment's file stores them."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from clbench.core.options import Strict, recipe_options
from clbench.core.scenario import Scenario


class Axis(Strict):
    """Base of the values that are searched for one option."""

    scenario: Scenario | None = Field(
        None, description="Scenario in which the option is tuned; all scenarios if missing.")


class Range(Axis):
    """Numbers from `low` to `high`, both included; with `log`, all orders of magnitude are equally likely."""

    low: int | float = Field(description="Smallest value.")
    high: int | float = Field(description="Largest value.")
    log: bool = Field(False, description="Draw the logarithm of the value uniformly.")

    @model_validator(mode="after")
    def _check_range(self) -> Range:
        """Reject an empty range, and a logarithmic range that does not start above 0."""
        if not self.low < self.high:
            raise ValueError(f"low should be below high, got {self.low:g} and {self.high:g}")
        if self.log and self.low <= 0:
            raise ValueError(f"log = true needs low above 0, got {self.low:g}")
        return self


class Choices(Axis):
    """Values to choose from; a list stands for `{values = [...]}`."""

    values: Annotated[tuple[Any, ...], Field(min_length=1)] = Field(description="Values to choose from.")

    @model_validator(mode="before")
    @classmethod
    def _accept_list(cls, value: Any) -> Any:
        """Accept a list in place of the table."""
        return {"values": value} if isinstance(value, list | tuple) else value


def _kind(value: Any) -> str:
    """Return whether an axis is a `range` or a list of `values`."""
    listed = isinstance(value, list | tuple | Choices) or (isinstance(value, dict) and "values" in value)
    return "values" if listed else "range"


AnyAxis = Annotated[Annotated[Range, Tag("range")] | Annotated[Choices, Tag("values")], Discriminator(_kind)]


def _flat(value: Any) -> Any:
    """Read a table `recipe` as the axes `recipe.lr` and so on."""
    recipe = value.get("recipe") if isinstance(value, dict) else None
    if not isinstance(recipe, dict) or {"low", "high", "values"} & set(recipe):
        return value
    return {**{k: v for k, v in value.items() if k != "recipe"}, **recipe_options(recipe)}


Space = Annotated[dict[str, AnyAxis], BeforeValidator(_flat)]  # by option of the method, such as `rank` or `recipe.lr`


class Searched(Strict):
    """The extent of the search for a row's options, which reports show in comparisons."""

    candidates: int = Field(description="Number of candidates that were compared.")
    validation: float = Field(description="Share of the training samples that was held out to compare candidates.")
    seeds: tuple[int, ...] = Field(description="Seeds of the search.")


class Tried(Strict):
    """A candidate: values of a method's tuned options in one scenario, and their results."""

    method: str = Field(description="Label of the method's row.")
    scenario: Scenario = Field(description="Scenario.")
    options: dict[str, Any] = Field(description="Tuned options with their values.")
    acc: tuple[float, ...] = Field((), description="Final mean accuracy (ACC) in [0, 1] on the validation samples, for "
                                   "each seed; or the final mean of `metric`.")
    metric: str = Field("", description="Metric of `acc`; empty for accuracy.")
    failure: str = Field("", description="Why `acc` is missing: how a seed diverged or failed.")


class Outcome(Strict):
    """The outcome of a row's search apart from its candidates: how far its grid was widened, and remarks."""

    method: str = Field(description="Label of the method's row.")
    scenario: Scenario = Field(description="Scenario.")
    widened: dict[str, int] = Field({}, description="Number of values that the search added, by option.")
    notes: tuple[str, ...] = Field((), description="Remarks about the search.")


class Search(Strict):
    """A completed search: all that is needed to repeat it, and every candidate's result."""

    command: str = Field(description="Command that ran the search.")
    versions: dict[str, str] = Field(description="Versions of the libraries.")
    validation: float = Field(
        description="Share of each class's training samples that was held out to compare candidates.")
    budget: dict[str, int] = Field(
        {}, description="Epochs or iterations of the candidates, if they differ from the experiment's.")
    seeds: tuple[int, ...] = Field(description="Seeds of the search.")
    trials: int = Field(description="Largest number of candidates per method and scenario.")
    sampler: str = Field(description="How candidates were proposed.")
    widen: int = Field(0, description="Largest number of values that the search adds on each side of a list.")
    outcomes: tuple[Outcome, ...] = Field((), description="Remarks and added values, by method and scenario.")
    space: dict[str, Space] = Field(description="Search space, by label of the method's row.")
    tried: tuple[Tried, ...] = Field(description="Candidates with their results.")
