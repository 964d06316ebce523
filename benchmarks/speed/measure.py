"""What is measured and how it is judged: settings, contenders, ratios, noise. Pure Python, no torch."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

STOCK, LOOP, FLOOR = "avalanche", "torch tensors", "floor"
TOLERANCE = 0.01  # of accuracy; what differs by less counts as equal whatever the spread over seeds
SMALL_BATCH = 16


@dataclass(frozen=True)
class Setting:
    """What one contender does in one process; those of a group differ in `contender` and `seeds` only."""

    contender: str
    method: str  # naive | ewc | er
    model: str  # as clbench names it: mlp | mlp:width=256 | cnn | resnet18
    batch_size: int
    seeds: tuple[int, ...]
    benchmark: str  # split-mnist | split-mnist-5k | split-cifar100
    data_dir: str
    epochs: int = 1
    optimizer: str = "sgd"
    lr: float = 0.05
    threads: int = 2
    device: str = "cpu"

    @property
    def group(self) -> tuple[str, str, int]:
        """Return what contenders must share to be compared."""
        return self.model, self.method, self.batch_size


@dataclass
class Outcome:
    """What one contender measured: seconds, samples, accuracies, memory. Seeds, where several, are added up."""

    train: float  # seconds in optimizer steps and what feeds them
    consolidate: float  # seconds in Fisher terms, memories
    evaluate: float
    whole: float  # wall seconds of the trial or trials, start-up excluded
    ready_after: float  # wall seconds from the start of the process to the first thing timed
    train_samples: int  # new samples that were trained on
    processed: int  # samples that went through optimizer steps, replay included
    test_samples: int  # over all evaluations
    final: list[float] = field(default_factory=list)  # per seed: mean accuracy over the tasks after the last
    learned: list[float] = field(default_factory=list)  # per seed: mean accuracy on each task just after it
    peak_bytes: int = 0  # of the process, and of its workers
    device_bytes: int = 0  # allocated by torch on an accelerator
    flops: float = 0.0  # floor only: of one training step
    rate: float = 0.0  # floor only: FLOP/s of the step's matrix products, one after the other
    others: float | None = None  # cores that other processes kept busy meanwhile, where the system tells


@dataclass(frozen=True)
class Row:
    """All repeats of one contender in one group, or why there are none."""

    contender: str
    outcomes: tuple[Outcome, ...]
    error: str = ""

    def rates(self, phase: str) -> list[float]:
        """Return samples per second in each repeat; `phase` is train, evaluate or whole."""
        count = "test_samples" if phase == "evaluate" else "train_samples"
        return [getattr(o, count) / getattr(o, phase) for o in self.outcomes if getattr(o, phase) > 0]

    def accuracies(self, kind: str) -> list[float]:
        """Return the accuracies (`final` or `learned`) of all seeds and repeats."""
        return [a for o in self.outcomes for a in getattr(o, kind)]


def median_ratio(own: Sequence[float], other: Sequence[float]) -> float | None:
    """Return the ratio of two medians, None where one of them is missing."""
    return statistics.median(own) / statistics.median(other) if own and other else None


def floor_fraction(row: Row, floor: Row, batch_size: int) -> float | None:
    """Return the share of a row's training time that its matrix products alone would take at the measured rate."""
    if not row.outcomes or not floor.outcomes:
        return None
    per_sample = statistics.median(o.flops / o.rate for o in floor.outcomes) / batch_size  # seconds
    return statistics.median(o.processed * per_sample / o.train for o in row.outcomes)


def void(accuracies: Mapping[str, Sequence[float]], tolerance: float = TOLERANCE) -> set[str] | None:
    """Return the contenders whose mean accuracy lies beyond noise from the others'; None where noise is unknown.

    One with an accuracy that is no number is among them, and has no part in judging the others.

    The yardstick is the median of the contenders' means; noise is three standard errors of a contender's own mean, from
    the spread over seeds and repeats pooled over all contenders, plus `tolerance`.
    """
    lost = {name for name, values in accuracies.items() if any(map(math.isnan, values))}
    known = {name: values for name, values in accuracies.items() if values and name not in lost}
    freedom = sum(len(values) - 1 for values in known.values())
    if freedom == 0:
        return None
    variance = sum(statistics.variance(v) * (len(v) - 1) for v in known.values() if len(v) > 1) / freedom
    yardstick = statistics.median(statistics.fmean(v) for v in known.values())
    return lost | {name for name, v in known.items()
                   if abs(statistics.fmean(v) - yardstick) > tolerance + 3 * math.sqrt(variance / len(v))}


def void_rows(rows: Iterable[Row]) -> set[str] | None:
    """Return the contenders of a group that did not learn what the others learned, by either accuracy."""
    rows = list(rows)
    judged = [void({r.contender: r.accuracies(kind) for r in rows if r.contender != FLOOR})
              for kind in ("final", "learned")]
    return None if None in judged else set().union(*(j for j in judged if j is not None))


def contenders(method: str, model: str, seed_counts: Sequence[int]) -> list[tuple[str, int]]:
    """Return name and number of seeds of all contenders of a group at the usual batch size."""
    names = [(STOCK, 1)]
    if method == "naive":
        names += [("torch PIL loader", 1), ("torch TensorDataset", 1), (LOOP, 1)]
        names += [(f"{LOOP} channels-last", 1)] if convolutional(model) else []
        names += [(FLOOR, 1)]
    names += [("clbench", 1)]
    names += [("clbench exact Fisher", 1)] if method == "ewc" else []
    names += [("clbench bf16", 1)] if method == "naive" and convolutional(model) else []
    return names + [(f"clbench {how}", count) for count in seed_counts for how in ("stacked", "workers")]


def convolutional(model: str) -> bool:
    """Return whether a model is one of convolutions."""
    return not model.startswith("mlp")


def small_batch_contenders(seed_count: int) -> list[tuple[str, int]]:
    """Return name and number of seeds of the contenders at a small batch, where several seeds are to be had at once."""
    return [(STOCK, 1), (LOOP, 1), (FLOOR, 1), ("clbench", 1),
            *((f"clbench {how}", seed_count) for how in ("sequential", "stacked", "workers", "default"))]


def titled(contender: str, seeds: int) -> str:
    """Return the name of a row."""
    return contender if seeds == 1 else f"{contender}, {seeds} seeds"


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """Return the slope of log(cost) over log(size), by least squares: 1 is linear, 0 is constant."""
    xs, ys = [math.log(s) for s in sizes], [math.log(c) for c in costs]
    return statistics.linear_regression(xs, ys).slope


def settings_of(groups: Iterable[tuple[str, str, int, list[tuple[str, int]]]], common: Mapping[str, Any],
                benchmarks: Mapping[str, str], repeat: int) -> list[Setting]:
    """Return the settings of one round over all contenders; each repeat takes seeds of its own.

    `benchmarks` has each model's.
    """
    return [Setting(contender=name, method=method, model=model, batch_size=batch, benchmark=benchmarks[model],
                    seeds=tuple(range(repeat * count, (repeat + 1) * count)), **common)
            for model, method, batch, names in groups for name, count in names]
