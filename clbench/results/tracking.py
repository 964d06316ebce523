"""Trackers: logging records to other tools as trials finish, and the values that are logged.

`clbench run --log` names the trackers, and their plugins declare them as `TrackerInfo`. A tracker is created before any
trial starts. It receives every record of the experiment and logs those that it has not logged yet.
"""

from __future__ import annotations

import importlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from statistics import fmean
from types import ModuleType
from typing import Any, Protocol

from clbench.core import options as opt
from clbench.core.entry_points import package_of, resolve
from clbench.core.errors import ClbenchError, PluginError, SpecError
from clbench.core.objective import METRICS
from clbench.core.registry import Registry
from clbench.core.user_code import format_error
from clbench.experiment.trial import Resolved
from clbench.results import metrics
from clbench.results.records import Record, matrices, metric_of

Value = str | int | float | bool


class Tracker(Protocol):
    """Logs records to another tool. It runs in the main process, which does not import torch."""

    def log(self, record: Record) -> None:
        """Log a finished trial, unless this run of it (`run_id`) is already logged."""


def start(wanted: str | Iterable[str], registry: Registry, folder: Path) -> dict[str, Tracker]:
    """Return the trackers of `name:option=value,...` by name, ready to log the records of a run folder.

    Raises:
        ClbenchError: a tracker or option does not exist, or a library is missing. The message has a line for each.
    """
    texts = wanted.split(",") if isinstance(wanted, str) else wanted
    trackers: dict[str, Tracker] = {}
    problems: list[str] = []
    for text in dict.fromkeys(t.strip() for t in texts if t.strip()):
        try:
            name, options = opt.parse_named(text)
            info = registry.tracker(name)
            if name in trackers:
                raise SpecError(f"--log names {name} twice; keep one of them")
            factory = resolve(info.tracker, f"tracker {name!r}")
            trackers[name] = factory(opt.validate(info.options, options, name, "clbench trackers"), folder)
        except ClbenchError as error:
            problems += str(error).splitlines()
        except Exception as error:  # any error of the tracker becomes one line
            problems.append(f"tracker {text!r} failed: {format_error(error, package_of(info.tracker))}")
    if problems:
        raise SpecError("\n".join(problems))
    return trackers


def library(module: str, tracker: str, extra: str) -> ModuleType:
    """Import a library that a tracker needs.

    Raises:
        PluginError: the library is not installed or fails on import. The message says what to install.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise PluginError(f"tracker {tracker!r} needs {error.name}, which is not installed: pip install "
                          f"{extra}") from None
    except Exception as error:  # a third-party package, whose errors must not end the run with a traceback
        raise PluginError(f"tracker {tracker!r}: cannot import {module}: {format_error(error, module)}") from error


@dataclass(frozen=True)
class Step:
    """The values of a trial after `tasks` tasks (0: before any training)."""

    tasks: int
    seconds: float  # since the trial began
    values: Mapping[str, float]


def run_id(record: Record) -> str:
    """Return an identifier of one run of a trial: its key and start time."""
    return f"{record.key}-{record.provenance.started:%Y%m%dT%H%M%S}"


def run_name(record: Record) -> str:
    """Return the display name of a run. It includes how samples arrived and whether validation samples were used."""
    trial = record.trial
    arrival = f" ({trial.arrival})" if str(trial.arrival) else ""
    validation = " validation" if trial.validation else ""
    return f"{record.label} {trial.scenario} seed {trial.seed}{arrival}{validation}"


def group_name(record: Record) -> str:
    """Return the group name shared by exactly the runs that differ only in their seed."""
    return f"{record.label} {record.trial.scenario} {record.trial.seedless[:8]}"


def parameters(record: Record) -> dict[str, Value]:
    """Return the trial's parameters as a flat mapping: setting, method, every option (`method.rank`) and seed.

    `validation` is the share of the training samples on which accuracies were measured; 0 means the test set. The
    arrival of samples and the key of the continued trial are included if they are set.
    """
    trial = record.trial
    flat: dict[str, Any] = {"label": record.label, **_flatten("method", trial.method),
                            **_flatten("benchmark", trial.benchmark), "scenario": trial.scenario,
                            **_flatten("model", trial.model),
                            "weights": trial.weights.path if trial.weights else None,
                            "weights.sha256": trial.weights.sha256 if trial.weights else None,
                            "preprocessing": str(trial.preprocessing) if trial.preprocessing else None,
                            **{f"recipe.{k}": v for k, v in trial.trained_by.model_dump().items()}, "seed": trial.seed,
                            "validation": trial.validation,
                            **{f"arrival.{k}": v for k, v in trial.arrival.model_dump().items()},
                            **({"continues": trial.continues.parent} if trial.continues else {})}
    return {name: v if isinstance(v, Value) else opt.format_value(v) for name, v in flat.items()}


def _flatten(kind: str, thing: Resolved) -> dict[str, Any]:
    return {kind: thing.name, **{f"{kind}.{option}": value for option, value in thing.options.items()}}


def steps(record: Record) -> Iterator[Step]:
    """Yield the values of a trial after each task: accuracies (fractions), parameters, bytes, FLOPs and seconds.

    accuracy/task<j>: a row of R, tasks counted from 1 · accuracy/seen: its mean over the tasks learned ·
    nll/task<j>, exact/task<j> and so on: the same of the metrics of a language model, instead of accuracy ·
    cost/trainable: parameters trained on the last task · cost/parameters, cost/bytes: stored after the last task ·
    cost/train_flops: of training on the last task · cost/inference_flops: of predicting a test sample after it ·
    time/train, time/consolidate, time/evaluate: of the last task · cpu/train and so on: its processor time.
    """
    costs, times = record.costs, record.timings
    values_by_task: defaultdict[int, dict[str, float]] = defaultdict(dict)
    for metric, matrix in matrices(record).items():
        for i, row in enumerate(matrix):
            values_by_task[i] |= {f"{metric}/task{j + 1}": value for j, value in enumerate(row)}
            if i:
                values_by_task[i][f"{metric}/seen"] = fmean(row[:i])
    for name, first_row, values in (
        ("cost/trainable", 1, costs.trainable), ("cost/parameters", 1, [sum(c.values()) for c in costs.parameters]),
        ("cost/bytes", 1, [sum(c.values()) for c in costs.bytes]), ("time/train", 1, times.train),
        ("time/consolidate", 1, times.consolidate), ("time/evaluate", 0, times.evaluate),
        ("cost/train_flops", 1, costs.train_flops), ("cost/inference_flops", 1, costs.inference_flops),
        ("cpu/train", 1, times.train_cpu), ("cpu/consolidate", 1, times.consolidate_cpu),
        ("cpu/evaluate", 0, times.evaluate_cpu),
    ):
        for i, value in enumerate(values, first_row):
            values_by_task[i][name] = value
    order = sorted(values_by_task)
    elapsed = accumulate(sum(v for k, v in values_by_task[i].items() if k.startswith("time/")) for i in order)
    for i, seconds in zip(order, elapsed, strict=True):
        yield Step(i, seconds, values_by_task[i])


def final(record: Record) -> dict[str, float]:
    """Return ACC, forgetting and BWT as fractions; an empty mapping unless the trial is done.

    With another metric of R, its final mean replaces ACC. The final means of further metrics are included too. If all
    tasks share one test set, forgetting and BWT are left out.
    """
    if record.status != "done":
        return {}
    metric = metric_of(record)
    by_task = {} if record.common_test else {"forgetting": metrics.forgetting(record.R, metric),
                                             "BWT": metrics.bwt(record.R, metric)}
    values = {metric.short: metrics.acc(record.R), **by_task,
              **{METRICS[name].short: metrics.acc(matrix) for name, matrix in record.scores.items()}}
    return {name: value for name, value in values.items() if value is not None}
