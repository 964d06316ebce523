"""The rule of `--until decided`, which adds seeds while a question is inconclusive; fixed before the first seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from clbench.core.errors import unknown

FIRST = 3  # fewest seeds of an interim analysis: with two seeds, t has one degree of freedom and almost no power
MOST = 30  # default for the largest number of seeds
BEST = "best"  # value of `baseline`: all pairs are tested to find the best method


class UntilDecided(BaseModel):
    """The rule by which seeds were added, stored in each record that it led to; it is not part of a trial's key.

    The rule cannot change after the first interim analysis. There is an interim analysis after each seed that two
    methods share, in the order of the seeds, from `first` to `most`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    baseline: str | None = Field(None, description="Label of the baseline, or \"best\" to find the best method; if "
                                 "missing, naive, or \"best\" if naive does not run.")
    first: int = Field(
        FIRST, ge=FIRST, description="Number of seeds of every method before the first interim analysis.")
    most: int = Field(MOST, ge=FIRST, description="Largest number of seeds of a method.")

    def __str__(self) -> str:
        """Return the rule as flags."""
        against = f" --baseline {self.baseline}" if self.baseline else ""
        return f"--until decided --max-seeds {self.most} --seeds {self.first}{against}"


def sequence(seeds: Sequence[int], most: int) -> list[int]:
    """Return `most` seeds in the order in which they are added: first the given ones, then the next numbers."""
    initial_seeds = sorted(seeds)
    return [*initial_seeds, *range(initial_seeds[-1] + 1, initial_seeds[-1] + 1 + most - len(initial_seeds))]


def question(rule: UntilDecided) -> str:
    """Return the question of a rule, in words."""
    if rule.baseline == BEST:
        return "which method is best"
    return (f"which methods differ significantly from {rule.baseline}" if rule.baseline else
            "which methods differ significantly from fine-tuning (naive), or which method is best without it")


def _check_rule(value: Any) -> Any:
    if isinstance(value, str) and value != "decided":
        raise ValueError(unknown("rule", value, ["decided"], "clbench run --help"))
    return value


Until = Annotated[Literal["decided"], BeforeValidator(_check_rule)]
