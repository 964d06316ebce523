"""Settings, contenders, ratios and noise of the speed comparison. This module does not import torch."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

STOCK, LOOP, FLOOR = "avalanche", "torch tensors", "floor"
TOLERANCE = 0.01  # of accuracy; smaller differences count as equal for any seed variability
SMALL_BATCH = 16


@dataclass(frozen=True)
class Setting:
    """The setting of one contender in one process. Settings of a group differ only in `contender` and `seeds`."""

    contender: str
    method: str  # naive | ewc | er
    model: str  # name in clbench: mlp | mlp:width=256 | cnn | resnet18
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
        """Return the model, the method and the batch size, which contenders must share to be compared."""
        return self.model, self.method, self.batch_size


@dataclass
class Outcome:
    """The measurements of one contender: seconds, samples, accuracies, memory. Values are sums over seeds."""

    train: float  # seconds of optimizer steps and of loading their data
    consolidate: float  # seconds of Fisher terms and buffers
    evaluate: float
    whole: float  # wall seconds of all trials, without start-up
    ready_after: float  # wall seconds from the start of the process to the start of the measurement
    train_samples: int  # number of new training samples
    processed: int  # number of samples in optimizer steps, with replayed ones
    test_samples: int  # over all evaluations
    final: list[float] = field(default_factory=list)  # per seed: mean accuracy over the tasks after the last
    learned: list[float] = field(default_factory=list)  # per seed: mean accuracy on each task just after its training
    peak_bytes: int = 0  # peak memory of the process and its workers
    device_bytes: int = 0  # allocated by torch on an accelerator
    flops: float = 0.0  # floor only: FLOPs of one training step
    rate: float = 0.0  # floor only: FLOP/s of the step's matrix products, one after the other
    others: float | None = None  # mean number of cores used by other processes, if the system reports it


@dataclass(frozen=True)
class Row:
    """All repeats of one contender in one group, or the error if there are none."""

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
    """Return the ratio of two medians, or None if one of them is missing."""
    return statistics.median(own) / statistics.median(other) if own and other else None


def floor_fraction(row: Row, floor: Row, batch_size: int) -> float | None:
    """Return the share of a row's training time that its matrix products alone would take at the measured rate."""
    if not row.outcomes or not floor.outcomes:
        return None
    per_sample = statistics.median(o.flops / o.rate for o in floor.outcomes) / batch_size  # seconds
    return statistics.median(o.processed * per_sample / o.train for o in row.outcomes)


def void(accuracies: Mapping[str, Sequence[float]], tolerance: float = TOLERANCE) -> set[str] | None:
    """Return the contenders whose mean accuracy differs from the others' by more than noise; None if noise is unknown.

    A contender with a NaN accuracy is returned too, and does not affect the result for other contenders.

    A contender's mean is compared with the median of all means. Noise is `tolerance` plus three standard errors of the
    contender's mean. The standard error uses the variance over seeds and repeats, pooled over all contenders.
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
    """Return the contenders of a group whose final or learned accuracy differs from that of the others."""
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
    """Return whether a model is convolutional."""
    return not model.startswith("mlp")


def small_batch_contenders(seed_count: int) -> list[tuple[str, int]]:
    """Return name and number of seeds of the contenders with a small batch, which include several seeds at once."""
    return [(STOCK, 1), (LOOP, 1), (FLOOR, 1), ("clbench", 1),
            *((f"clbench {how}", seed_count) for how in ("sequential", "stacked", "workers", "default"))]


def titled(contender: str, seeds: int) -> str:
    """Return the title of a contender's row."""
    return contender if seeds == 1 else f"{contender}, {seeds} seeds"


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """Return the slope of log(cost) over log(size), by least squares: 1 is linear, 0 is constant."""
    xs, ys = [math.log(s) for s in sizes], [math.log(c) for c in costs]
    return statistics.linear_regression(xs, ys).slope


def settings_of(groups: Iterable[tuple[str, str, int, list[tuple[str, int]]]], common: Mapping[str, Any],
                benchmarks: Mapping[str, str], repeat: int) -> list[Setting]:
    """Return the settings of one round over all contenders. Each repeat has different seeds.

    `benchmarks` maps each model to its benchmark.
    """
    return [Setting(contender=name, method=method, model=model, batch_size=batch, benchmark=benchmarks[model],
                    seeds=tuple(range(repeat * count, (repeat + 1) * count)), **common)
            for model, method, batch, names in groups for name, count in names]
