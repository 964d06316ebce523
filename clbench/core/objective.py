"""Objectives, which are what models are trained for, and the metrics by which they are judged (no torch).

Values are raw, as everywhere: a percentage is a fraction between 0 and 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from clbench.core.errors import SpecError, unknown

Direction = Literal["up", "down"]


@dataclass(frozen=True)
class Metric:
    """A metric of one item: its name, its unit for readers, which direction is better, and its bounds."""

    name: str
    unit: str
    direction: Direction
    low: float | None = None
    high: float | None = None

    def contains(self, value: float) -> bool:
        """Return whether a value is within the bounds."""
        return (self.low is None or value >= self.low) and (self.high is None or value <= self.high)

    def worsening(self, difference: float) -> float:
        """Return by how much a value became worse if it changed by `difference`; negative if it became better."""
        return difference if self.direction == "down" else -difference


@dataclass(frozen=True)
class ObjectiveInfo:
    """An objective and its metrics. The matrix R is that of the primary one."""

    name: str
    primary: str
    metrics: tuple[Metric, ...]

    def metric(self, name: str) -> Metric:
        """Return the metric of this name.

        Raises:
            SpecError: there is none.
        """
        for metric in self.metrics:
            if metric.name == name:
                return metric
        raise SpecError(unknown("metric", name, [m.name for m in self.metrics], f"objective {self.name}"))


ACCURACY = Metric("accuracy", "percent", "up", 0.0, 1.0)
NLL = Metric("nll", "nats per token", "down", 0.0)
EXACT = Metric("exact", "percent", "up", 0.0, 1.0)
CLASSIFICATION = ObjectiveInfo("classification", ACCURACY.name, (ACCURACY,))
CAUSAL_LM = ObjectiveInfo("causal-lm", NLL.name, (NLL, EXACT))
OBJECTIVES: Final = {info.name: info for info in (CLASSIFICATION, CAUSAL_LM)}
METRICS: Final = {metric.name: metric for info in OBJECTIVES.values() for metric in info.metrics}
