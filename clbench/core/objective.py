"""Training objectives, and the metrics by which models are evaluated. This module does not import torch.

Values are raw: a percentage is stored as a fraction between 0 and 1.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

from clbench.core.errors import SpecError, unknown

Direction = Literal["up", "down"]
Labels = Literal["classes", "tokens", "numbers"]


def format_digits(value: float, size: float | None = None) -> str:
    """Return a number as text, with as many decimals as give `size` three significant digits, at most 4.

    `size` is the number itself by default. If it is below 0.001, the text is in scientific notation.

    >>> format_digits(6.5812), format_digits(123.4), format_digits(0.00123), format_digits(0)
    ('6.58', '123', '0.0012', '0.00')
    >>> format_digits(0.00012345), format_digits(0.0123, 6.58), format_digits(0.0, 0.0003)
    ('1.23e-04', '0.01', '0')
    """
    exponent = int(f"{abs(value if size is None else size) or 1.0:.2e}".partition("e")[2])
    if exponent < -3:
        return f"{value:.2e}" if value else "0"
    return format_fixed(value, min(max(2 - exponent, 0), 4))


def format_fixed(value: float, digits: int) -> str:
    """Return a number as text with this number of decimals; zero has no sign."""
    text = f"{value:,.{digits}f}"
    return text.removeprefix("-") if float(text.replace(",", "")) == 0 else text


@dataclass(frozen=True)
class Metric:
    """A metric: its unit, its direction, its bounds and its names in texts.

    Args:
        name: its name in records and for `--metric`.
        unit: its unit in texts; a `percent` is stored as a fraction. Empty if values have no unit.
        direction: whether higher ("up") or lower ("down") values are better.
        low: the lowest possible value, if there is one.
        high: the highest possible value, if there is one.
        label: its name in sentences; `name` if empty.
        plural: the name of its values in sentences; the label if empty.
        short: its name in column titles; the label if empty.
        meaning: its definition, which reports quote.
    """

    name: str
    unit: str
    direction: Direction
    low: float | None = None
    high: float | None = None
    label: str = ""
    plural: str = ""
    short: str = ""
    meaning: str = ""

    def __post_init__(self) -> None:
        """Fill in the names that are not given."""
        object.__setattr__(self, "label", self.label or self.name)
        for word in ("plural", "short"):
            object.__setattr__(self, word, getattr(self, word) or self.label)

    @property
    def is_share(self) -> bool:
        """Return whether values are shares of items: fractions that are shown as percentages."""
        return self.unit == "percent"

    @property
    def definition(self) -> str:
        """Return the meaning, followed by the unit unless values are percentages or have no unit."""
        return self.meaning if self.is_share or not self.unit else f"{self.meaning}, in {self.unit}"

    @property
    def shares(self) -> str:
        """Return what sentences call the percentages of a table about this metric."""
        return self.plural if self.is_share else "percentages"

    @property
    def heading(self) -> str:
        """Return the label with a capital first letter."""
        return self.label[:1].upper() + self.label[1:]

    def contains(self, value: float) -> bool:
        """Return whether a value is within the bounds."""
        return (self.low is None or value >= self.low) and (self.high is None or value <= self.high)

    def clip(self, value: float) -> float:
        """Return the possible value that is nearest to a value, such as the end of an interval."""
        value = value if self.low is None else max(value, self.low)
        return value if self.high is None else min(value, self.high)

    def best(self, values: Iterable[float]) -> float:
        """Return the best of several values."""
        return max(values) if self.direction == "up" else min(values)

    def worst(self, values: Iterable[float]) -> float:
        """Return the worst of several values."""
        return min(values) if self.direction == "up" else max(values)

    def gain(self, before: float, after: float) -> float:
        """Return how much a value improved from `before` to `after`; negative if it got worse."""
        return after - before if self.direction == "up" else before - after

    def rank(self, value: float) -> float:
        """Return a sort key by which better values come first."""
        return -value if self.direction == "up" else value

    def text(self, value: float) -> str:
        """Return a value as progress lines show it: a percentage with one decimal, or three significant digits.

        >>> ACCURACY.text(0.9124), NLL.text(6.5812), NLL.text(0.04229)
        ('91.2', '6.58', '0.0423')
        """
        return f"{100 * value:.1f}" if self.is_share else format_digits(value)

    def worsening(self, difference: float) -> float:
        """Return how much a value got worse if it changed by `difference`; negative if it improved."""
        return difference if self.direction == "down" else -difference


@dataclass(frozen=True)
class ObjectiveInfo:
    """An objective, its metrics and its labels.

    The matrix R holds values of the primary metric. Labels are one class or one number for each sample, or a token at
    each position whose prediction counts.
    """

    name: str
    primary: str
    metrics: tuple[Metric, ...]
    labels: Labels = "classes"

    def metric(self, name: str) -> Metric:
        """Return the metric of this name.

        Raises:
            SpecError: the objective has no metric of this name.
        """
        for metric in self.metrics:
            if metric.name == name:
                return metric
        raise SpecError(unknown("metric", name, [m.name for m in self.metrics], f"objective {self.name}"))


ACCURACY = Metric("accuracy", "percent", "up", 0.0, 1.0, plural="accuracies", short="ACC")
NLL = Metric("nll", "nats per token", "down", 0.0, label="NLL", plural="NLLs",
             meaning="the negative log-likelihood of a response, mean over its tokens")
EXACT = Metric("exact", "percent", "up", 0.0, 1.0, label="exact match", plural="exact-match rates", short="exact",
               meaning="the share of test items for which greedy decoding would generate the whole response")
RMSE = Metric("rmse", "the target's unit", "down", 0.0, label="RMSE", plural="RMSEs",
              meaning="the root of the mean squared error over a task's samples")
R2 = Metric("r2", "", "up", None, 1.0, label="R²", plural="R²",
            meaning="the share of the variance of a task's targets that predictions explain, negative if the mean "
            "target would be the better prediction")
CLASSIFICATION = ObjectiveInfo("classification", ACCURACY.name, (ACCURACY,))
CAUSAL_LM = ObjectiveInfo("causal-lm", NLL.name, (NLL, EXACT), "tokens")
REGRESSION = ObjectiveInfo("regression", RMSE.name, (RMSE, R2), "numbers")
OBJECTIVES: Final = {info.name: info for info in (CLASSIFICATION, CAUSAL_LM, REGRESSION)}
METRICS: Final = {metric.name: metric for info in OBJECTIVES.values() for metric in info.metrics}


def find_metric(name: str) -> Metric:
    """Return the metric with a name; records leave the name of accuracy empty."""
    return METRICS[name or ACCURACY.name]


def objective_of(metric: Metric) -> ObjectiveInfo:
    """Return the objective that has a metric."""
    return next(info for info in OBJECTIVES.values() if metric in info.metrics)


class HasObjective:
    """Base of classes that have an objective by name, such as a stream, a benchmark and `StreamInfo`."""

    objective: str

    @property
    def has_classes(self) -> bool:
        """Return whether labels are classes."""
        return OBJECTIVES[self.objective].labels == "classes"

    @property
    def predicts_tokens(self) -> bool:
        """Return whether the model is a language model, whose labels are tokens [N, L]."""
        return OBJECTIVES[self.objective].labels == "tokens"

    @property
    def predicts_numbers(self) -> bool:
        """Return whether the model predicts a number for each sample."""
        return OBJECTIVES[self.objective].labels == "numbers"
