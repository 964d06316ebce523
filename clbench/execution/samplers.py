"""Which candidates a search tries: all of a grid, or what Optuna's tree-structured Parzen estimator (TPE) proposes.

A sampler is deterministic: told the same scores, it asks for the same candidates. So an interrupted search needs no
file of its own to go on from; the records of its trials are enough.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import product
from typing import Any, Protocol

from clbench.core.errors import ClbenchError
from clbench.experiment.search import Range, Space

SEED = 0
STARTUP = 5  # candidates that TPE draws at random before it learns from their scores
DIGITS = 3  # significant ones of the numbers that are tried

Candidate = dict[str, Any]


class Sampler(Protocol):
    """Proposes candidates in batches and receives their scores."""

    def ask(self) -> list[Candidate]:
        """Return the next candidates; none when the search is over."""

    def tell(self, scores: Sequence[float]) -> None:
        """Receive the scores of the last candidates, higher is better."""


def sampler_for(space: Space, whole: Collection[str], trials: int) -> Sampler:
    """Return the sampler for a space: a grid where there are no more than `trials` combinations of values, else TPE.

    Args:
        space: by option.
        whole: the options that take whole numbers only.
        trials: candidates at most.
    """
    finite = not any(isinstance(axis, Range) for axis in space.values())
    if finite and len(corners(space)) <= trials:
        return Grid(corners(space))
    return TPE(space, whole, trials)


def corners(space: Space) -> list[Candidate]:
    """Return every combination of an axis' values or, of a range, of its two ends."""
    ends = [[axis.low, axis.high] if isinstance(axis, Range) else axis.values for axis in space.values()]
    return [dict(zip(space, chosen, strict=True)) for chosen in product(*ends)]


class Grid:
    """Tries every candidate of a list, all at once."""

    def __init__(self, candidates: Sequence[Candidate]) -> None:
        """Store the candidates."""
        self.left = list(candidates)

    def ask(self) -> list[Candidate]:
        """Return all candidates on the first call, none afterwards."""
        asked, self.left = self.left, []
        return asked

    def tell(self, scores: Sequence[float]) -> None:
        """Ignore the scores."""


class TPE:
    """Tries some candidates at random, together, and then one after the other what their scores suggest."""

    def __init__(self, space: Space, whole: Collection[str], trials: int) -> None:
        """Search a space with a given number of candidates."""
        try:
            import optuna
        except ImportError:
            raise ClbenchError("this search needs Optuna: pip install 'clbench[tune]'; or give lists of values with no "
                               "more combinations than --trials") from None
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.space, self.left = space, trials
        self.axes: Mapping[str, optuna.distributions.BaseDistribution] = {
            option: optuna.distributions.CategoricalDistribution(range(len(axis.values))) if not isinstance(axis, Range)
            else optuna.distributions.IntDistribution(int(axis.low), int(axis.high), log=axis.log) if option in whole
            else optuna.distributions.FloatDistribution(axis.low, axis.high, log=axis.log)
            for option, axis in space.items()}
        self.study = optuna.create_study(
            direction="maximize", sampler=optuna.samplers.TPESampler(seed=SEED, n_startup_trials=STARTUP))
        self.asked: list[optuna.trial.Trial] = []

    def ask(self) -> list[Candidate]:
        """Return the random ones first, then one at a time."""
        count = min(1 if self.study.trials else STARTUP, self.left)
        self.left -= count
        self.asked = [self.study.ask(dict(self.axes)) for _ in range(count)]
        return [{option: self._value(option, trial.params[option]) for option in self.space} for trial in self.asked]

    def tell(self, scores: Sequence[float]) -> None:
        """Pass the scores to Optuna."""
        for trial, score in zip(self.asked, scores, strict=True):
            self.study.tell(trial, score)

    def _value(self, option: str, drawn: Any) -> Any:
        """Return the value of a draw: the choice at its index, or a number rounded to a few digits."""
        axis = self.space[option]
        if not isinstance(axis, Range):
            return axis.values[drawn]
        return min(max(float(f"{drawn:.{DIGITS}g}"), axis.low), axis.high) if isinstance(drawn, float) else drawn
