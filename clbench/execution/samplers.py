"""Propose the candidates of a search: a whole grid, or candidates of Optuna's tree-structured Parzen estimator (TPE).

A grid is widened while its best candidate is at an edge. A sampler is deterministic: it proposes the same candidates
for the same scores. So an interrupted search can continue from the records of its trials alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import product
from typing import Any, Protocol

from clbench.core.errors import ClbenchError
from clbench.core.options import format_value
from clbench.experiment.search import Choices, Range, Space

SEED = 0
NO_RESULT = (0, -math.inf)  # scores of candidates without a result, see `candidates.score`
STARTUP = 5  # candidates that TPE draws at random before it learns from their scores
EDGE = 0.02  # share of a range near each end within which the true optimum may lie outside the range
DIGITS = 3  # significant digits of the numbers that are tried
HALF_DECADE = (2.99, 3.34)  # ratios of about half a decade: 3 / 1, 10 / 3 and the square root of 10

Candidate = dict[str, Any]
Refuse = Callable[[Candidate], str]  # returns why a candidate cannot be tried; empty if it can


class Sampler(Protocol):
    """Proposes candidates in batches and receives their scores."""

    def ask(self) -> list[Candidate]:
        """Return the next candidates; an empty list when the search is over."""

    def tell(self, scores: Sequence[float]) -> None:
        """Receive the scores of the last candidates, higher is better."""


def accept(candidate: Candidate) -> str:
    """Refuse no candidate."""
    return ""


def sampler_for(space: Space, integers: Collection[str], trials: int, widen: int = 0,
                refuse: Refuse = accept) -> Sampler:
    """Return the sampler for a space: a grid if there are at most `trials` combinations of values, or else TPE.

    Args:
        space: the search space, by option.
        integers: the options that take whole numbers only.
        trials: largest number of candidates, without those that widen a grid.
        widen: largest number of values by which a grid's axis is extended on each side.
        refuse: returns why a grid's candidate cannot be tried: widening may exceed an option's limits, and an option
            may have no effect with the others.
    """
    finite = not any(isinstance(axis, Range) for axis in space.values())
    if finite and len(corners(space)) <= trials:
        return Grid(space, integers, widen, refuse)
    return TPE(space, integers, trials)


def corners(space: Space) -> list[Candidate]:
    """Return every combination of the values of all axes; a range counts as its two ends."""
    return combinations({option: [axis.low, axis.high] if isinstance(axis, Range) else axis.values
                         for option, axis in space.items()})


def combinations(axes: Mapping[str, Sequence[Any]]) -> list[Candidate]:
    """Return every combination of the values of axes."""
    return [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]


def is_numeric(values: Sequence[Any]) -> bool:
    """Return whether all values of an axis are numbers."""
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def is_at_end(value: Any, axis: Range | Choices, added: Sequence[float] = ()) -> bool:
    """Return whether a number is the smallest or largest of several searched values, or close to the end of a range.

    `axis` has the searched values of the experiment, and `added` has the values by which it was widened.
    """
    if isinstance(axis, Range):
        if axis.log:
            return not axis.low * (axis.high / axis.low) ** EDGE < value < axis.high * (axis.low / axis.high) ** EDGE
        return not EDGE < (value - axis.low) / (axis.high - axis.low) < 1 - EDGE
    values = [*axis.values, *added]
    return is_numeric(values) and len(values) > 2 and value in (min(values), max(values))


class Grid:
    """Tries every combination of a space's values at once, then widens each axis if the best candidate is at its edge.

    In each round, such an axis gets one more value, which is combined with all values of the remaining axes.

    Attributes:
        added: the values beyond each axis, by option, in the order in which they were tried.
        notes: sentences on the added and the refused values.
    """

    def __init__(self, space: Space, integers: Collection[str] = (), widen: int = 0, refuse: Refuse = accept) -> None:
        """Store the arguments of `sampler_for`; no axis of the space is a range."""
        self.axes = {option: list(axis.values) for option, axis in space.items() if not isinstance(axis, Range)}
        self.integers, self.refuse = integers, refuse
        self.tried: list[Candidate] = []
        self.scores: list[float] = []
        self.added: dict[str, list[float]] = {}
        self.refusals: list[str] = []
        self.steps_left = dict.fromkeys(product(self.axes, (False, True)), widen)

    def ask(self) -> list[Candidate]:
        """Return all combinations on the first call, then those that widening adds; an empty list at the end."""
        if any(score not in NO_RESULT for score in self.scores):
            best = self.tried[self.scores.index(max(self.scores))]
            for option, above in self.steps_left:
                self._extend(option, above, best)
        new_candidates = [candidate for candidate in combinations(self.axes)
                          if candidate not in self.tried and not self._is_refused(candidate)]
        self.tried += new_candidates
        return new_candidates

    def tell(self, scores: Sequence[float]) -> None:
        """Store the scores, which determine the edges at which the grid is widened."""
        self.scores += scores

    @property
    def notes(self) -> list[str]:
        """Return sentences on the added and the refused values."""
        return [*(f"{option} was widened to {' and '.join(map(format_value, values))}, because the best mean was at an "
                  "edge of the values" for option, values in self.added.items()), *self.refusals]

    def _extend(self, option: str, above: bool, best: Candidate) -> None:
        """Add a value to an axis on one side if the best candidate is at that edge and a step is left."""
        if not is_numeric(self.axes[option]) or len(set(self.axes[option])) < 2 or not self.steps_left[option, above]:
            return
        inwards = sorted(set(self.axes[option]), reverse=above)
        if best[option] != inwards[0]:
            return
        value = next_value(inwards, option in self.integers)
        if value is None or self._is_refused({**best, option: value}):
            if value is None:
                self.refusals.append(f"{option} was not widened beyond {format_value(inwards[0])}: no positive whole "
                                     "number continues the values")
            self.steps_left[option, above] = 0
            return
        self.steps_left[option, above] -= 1
        self.axes[option].append(value)
        self.added.setdefault(option, []).append(value)

    def _is_refused(self, candidate: Candidate) -> bool:
        """Return whether a candidate cannot be tried, and store the reason once."""
        reason = self.refuse(candidate)
        note = f"{describe(candidate)} was not tried: {reason}"
        if reason and note not in self.refusals:
            self.refusals.append(note)
        return bool(reason)


def describe(candidate: Candidate) -> str:
    """Return a candidate's options as text, such as `recipe.lr=1e-5 rank=4`."""
    return " ".join(f"{option}={format_value(value)}" for option, value in candidate.items())


def next_value(inwards: Sequence[float], integer: bool = False) -> float | None:
    """Return the number that continues an axis beyond an edge, or None if no whole number does.

    Three or more positive numbers continue by the ratio of the second and third from the edge, so that 100 follows
    1, 3, 10, 30. Two positive numbers half a decade apart continue like 1, 3, 10, and others by their ratio. Numbers
    that are not all positive continue by the difference of the two at the edge.

    Args:
        inwards: the numbers of the axis, at least two, from the edge inwards.
        integer: whether the option takes whole numbers only.

    >>> next_value([3e-3, 1e-3, 3e-4]), next_value([1e-5, 3e-5]), next_value([8, 4], True), next_value([2.0, 0.0])
    (0.01, 3e-06, 16, 4.0)
    """
    edge, second, *rest = inwards
    positive = min(inwards) > 0
    if not positive:
        exact = edge + (edge - second)
    elif rest:
        exact = edge * second / rest[0]
    elif HALF_DECADE[0] < max(inwards) / min(inwards) < HALF_DECADE[1]:
        exact = second * (10 if edge > second else 0.1)
    else:
        exact = edge * edge / second
    if integer:
        number = round(exact)
        return number if number != edge and (number > 0 or not positive) else None
    rounded = float(f"{exact:.{DIGITS}g}")
    return rounded if (rounded > edge) == (edge > second) and rounded != edge else exact


class TPE:
    """Tries some random candidates in one batch, and then single candidates that the TPE algorithm suggests."""

    def __init__(self, space: Space, integers: Collection[str], trials: int) -> None:
        """Search a space with a given number of candidates."""
        try:
            import optuna
        except ImportError:
            raise ClbenchError("this search needs Optuna, which is not installed: pip install 'clbench[tune]', or give "
                               "lists of values with no more combinations than --trials") from None
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.space, self.left = space, trials
        self.axes: Mapping[str, optuna.distributions.BaseDistribution] = {
            option: optuna.distributions.CategoricalDistribution(range(len(axis.values))) if not isinstance(axis, Range)
            else optuna.distributions.IntDistribution(int(axis.low), int(axis.high), log=axis.log) if option in integers
            else optuna.distributions.FloatDistribution(axis.low, axis.high, log=axis.log)
            for option, axis in space.items()}
        self.study = optuna.create_study(
            direction="maximize", sampler=optuna.samplers.TPESampler(seed=SEED, n_startup_trials=STARTUP))
        self.asked: list[optuna.trial.Trial] = []

    def ask(self) -> list[Candidate]:
        """Return the random candidates first, then one at a time."""
        count = min(1 if self.study.trials else STARTUP, self.left)
        self.left -= count
        self.asked = [self.study.ask(dict(self.axes)) for _ in range(count)]
        return [{option: self._value(option, trial.params[option]) for option in self.space} for trial in self.asked]

    def tell(self, scores: Sequence[float]) -> None:
        """Pass the scores to Optuna."""
        for trial, score in zip(self.asked, scores, strict=True):
            self.study.tell(trial, score)

    def _value(self, option: str, drawn: Any) -> Any:
        """Return the value for a drawn parameter: the choice with this index, or the number rounded to a few digits."""
        axis = self.space[option]
        if not isinstance(axis, Range):
            return axis.values[drawn]
        return min(max(float(f"{drawn:.{DIGITS}g}"), axis.low), axis.high) if isinstance(drawn, float) else drawn
