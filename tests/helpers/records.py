"""Synthetic records for tests, without torch."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import Any

from clbench.experiment.spec import Recipe
from clbench.experiment.trial import Resolved, Trial
from clbench.results.records import Costs, ErrorCounts, Failure, Probe, Provenance, Record, StreamFacts, Timings
from clbench.results.store import Store

VERSIONS = {"python": "3.11.7", "clbench": "0.1.0", "torch": "2.13.0"}
STARTED = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.timezone.utc)


def make_matrix(tasks: int = 3, shift: float = 0.0) -> list[list[float]]:
    """Return a plausible R: 0.5 before a task, 0.9 just after it, then 0.1 less after each further task."""
    return [[0.5 if j >= i else round(max(0.9 + shift - 0.1 * (i - 1 - j), 0.0), 6) for j in range(tasks)]
            for i in range(tasks + 1)]


def make_record(method: str = "lora", seed: int = 0, R: Sequence[Sequence[float]] | None = None, *,
                tasks: int = 3, status: str = "done", label: str | None = None, reference: bool | None = None,
                options: Mapping[str, Any] | None = None, benchmark: str = "split-mnist-5k", scenario: str = "task",
                model: str = "mlp", recipe: Recipe | None = None, own_recipe: Mapping[str, Any] | None = None,
                task_inference: Sequence[Sequence[float]] | None = None, trainable: Sequence[int] | None = None,
                parameters: Mapping[str, int] | None = None, kept_bytes: Mapping[str, int] | None = None,
                train_seconds: float = 1.0, test_samples: int = 200, fingerprint: str = "f00d",
                notes: Sequence[str] = (), stream_notes: Sequence[str] = (), message: str = "the loss is NaN",
                peak_device_bytes: int | None = None, train_flops: Sequence[int] = (),
                **provenance: Any) -> Record:
    """Return a record of `method` and `seed`. Defaults are such that all records share one setting.

    `R` sets the number of tasks if given. With a status other than done, the record has the first two rows of R and a
    failure. With `train_flops` it has FLOPs and processor time; without, it is like records of earlier versions.
    `provenance` overrides fields of the provenance (device=..., versions=..., command=...).
    """
    matrix = [list(row) for row in (R if R is not None else make_matrix(tasks))]
    count = len(matrix[0])
    rows = matrix if status == "done" else matrix[:2]
    trained = len(rows) - 1
    trial = Trial(benchmark=Resolved(name=benchmark, options={"tasks": count}), scenario=scenario,
                  model=Resolved(name=model, options={}), recipe=recipe or Recipe(),
                  own_recipe=dict(own_recipe or {}), seed=seed,
                  method=Resolved(name=method, options=dict(options or {})))
    return Record(
        schema=1, key=trial.key, label=label or method, status=status, trial=trial, R=rows,
        reference=method in ("naive", "joint") if reference is None else reference,
        stream=StreamFacts(classes=[[2 * t, 2 * t + 1] for t in range(count)], train_samples=[800] * count,
                           test_samples=[test_samples] * count, input_shape=[1, 28, 28], fingerprint=fingerprint,
                           notes=list(stream_notes)),
        task_inference=None if task_inference is None else [list(row) for row in task_inference],
        costs=Costs(trainable=list(trainable or [1000] * count)[:trained], steps=[70] * trained,
                    parameters=[dict(parameters or {"base": 1000})] * trained,
                    bytes=[dict(kept_bytes or {"base": 4000})] * trained,
                    replay_samples=[800 * (t + 1) * (method == "joint") for t in range(trained)],
                    peak_host_bytes=300_000_000, peak_device_bytes=peak_device_bytes,
                    train_flops=list(train_flops)[:trained], inference_flops=[500] * trained if train_flops else []),
        timings=Timings(train=[train_seconds] * trained, consolidate=[0.25] * trained, evaluate=[0.1] * len(rows),
                        **{f"{part}_cpu": [0.5] * (trained + (part == "evaluate")) if train_flops else []
                           for part in ("train", "consolidate", "evaluate")}),
        failure=None if status == "done" else Failure(type="DivergedError", message=message),
        notes=list(notes),
        provenance=Provenance(**{"versions": VERSIONS, "plugin": "clbench 0.1.0", "git": "0" * 40, "device": "cpu",
                                 "machine": "a processor, 2 cores", "threads": 1, "started": STARTED,
                                 "command": "clbench run --methods lora,ewc", **provenance}))


def make_nll_matrix(learned: float, final: float, tasks: int = 3) -> list[list[float]]:
    """Return an R of nll: 5 before a task, `learned` just after it, `final` at the end, and their mean in between."""
    rows = [[5.0 if j >= i else learned if j == i - 1 else (learned + final) / 2 for j in range(tasks)]
            for i in range(tasks + 1)]
    rows[-1] = [final] * (tasks - 1) + [learned]
    return rows


def make_lm_record(method: str = "lora", seed: int = 0, nll: Sequence[Sequence[float]] | None = None,
                   exact: Sequence[Sequence[float]] | None = None, *, names: Sequence[str] = ("dates", "codes", "sums"),
                   benchmark: str = "instructions:acme", **made: Any) -> Record:
    """Return a record of a language model with nll as R and exact match as a score.

    By default, exact match is 1 - nll / 5, so that better nll gives better exact match. `make_record` gets
    the other arguments.
    """
    R = [list(row) for row in nll or make_nll_matrix(0.5, 2.0)]
    shares = exact or [[max(0.0, round(1 - value / 5, 6)) for value in row] for row in R]
    record = make_record(method, seed, [[0.5] * len(row) for row in R], benchmark=benchmark, model="hf:base", **made)
    stream = record.stream.model_dump() | {"classes": [[] for _ in R[0]], "task_names": list(names[:len(R[0])])}
    rows = len(record.R)
    return Record(**record.model_dump() | {"stream": stream, "R": R[:rows], "metric": "nll",
                                           "scores": {"exact": [list(row) for row in shares][:rows]}})


def make_number_record(method: str, seed: int, R: Sequence[Sequence[float]], metric: str = "rmse",
                       **made: Any) -> Record:
    """Return a record of numbers to predict, with the matrix R of a metric of regression, as `make_record` does."""
    record = make_record(method, seed, tasks=len(R[0]), benchmark="csv:numbers", **made)
    return record.model_copy(update={"R": [list(row) for row in R], "metric": metric})


NAMES = [["cat", "dog"], ["hen", "cow"], ["<b>ox</b>", "pig"]]


def with_names(names=NAMES, **made):
    """Return a record from `make_record` whose classes have names."""
    record = make_record(**made)
    return record.model_copy(update={"stream": StreamFacts(**{**record.stream.model_dump(), "class_names": names})})


def folder(path, *records):
    for record in records:
        Store(path).write(record)
    return path


def with_errors(record, parts=None, probe=None):
    """Return a record in scenario class with error counts for three tasks of 200 samples, and optionally a probe.

    `parts` are the fields of `ErrorCounts`: right, given, and corrected or the counts of methods that infer the task.
    """
    parts = parts or {"right": [20, 40, 190], "given": [180, 190, 198], "corrected": [120, 100, 150]}
    tasks = [[200 - n, n * (i == 1), n * (i == 2)] if i else [200, 0, 0] for i, n in enumerate(parts["right"])]
    counts = ErrorCounts(learned=3, samples=[200] * 3, tasks=tasks, **parts)
    R = [*record.R[:-1], [n / 200 for n in parts["right"]]]
    return record.model_copy(update={"errors": [counts], "R": R, "probe": None if probe is None else Probe(**probe)})
