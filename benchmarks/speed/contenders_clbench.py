"""clbench: one seed, or several seeds one after another, as a stack, or in parallel worker processes."""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from measure import Outcome, Setting
from work import EVAL_BATCH, MEMORY, device_bytes, peak_bytes, spec_of, summary

from clbench.core.registry import discover
from clbench.data.samples import Samples
from clbench.execution import run as experiment
from clbench.execution.trial_runner import TrialRunner, run_replicas
from clbench.execution.workers.plan import Listener
from clbench.experiment.execution_settings import ExecutionSettings
from clbench.experiment.plan import plan
from clbench.experiment.spec import Spec
from clbench.experiment.trial import PlannedTrial
from clbench.results.records import Record
from clbench.training.callbacks.evaluation import EvaluationCallback
from clbench.training.replica import Replica

COMMAND = "benchmarks/speed"


class Stopwatch(Listener):
    """Record the number of workers, the start of the first trial and the end of the last one."""

    workers = 1
    began = ended = 0.0

    def ready(self, device: str, workers: int, threads: int | None, nodes: int = 0) -> None:
        """Record the number of workers."""
        self.workers = workers

    def started(self, planned: PlannedTrial) -> None:
        """Record the start of the first trial."""
        self.began = self.began or time.time()

    def finished(self, record: Record) -> None:
        """Record the end of a trial."""
        self.ended = time.time()


@dataclass(frozen=True)
class Run:
    """The records of finished trials, seconds until ready, wall seconds, and number of worker processes."""

    records: list[Record]
    ready_after: float
    whole: float
    workers: int


def answer(request: dict[str, Any], started: float) -> dict[str, Any]:
    """Measure one trial, or the trials of several seeds."""
    setting = Setting(**{**request, "seeds": tuple(request["seeds"])})
    how = setting.contender.rpartition(" ")[2]
    run = execute(spec_of(setting), Path(setting.data_dir), how, setting.threads, started)
    return asdict(outcome(setting, run))


def execute(spec: Spec, data_dir: Path, how: str, threads: int, started: float) -> Run:
    """Run all trials of an experiment.

    `how` is `stacked`, `workers` or `default` (clbench decides); otherwise they run one after another in this process.

    Raises:
        RuntimeError: a trial failed, or did not run in this way.
    """
    if how in ("workers", "default"):
        run = in_workers(spec, data_dir, {"workers": threads, "threads": 1, "stack": 1} if how == "workers" else {},
                         started)
    else:
        run = in_this_process(spec, data_dir, how == "stacked", started)
    for record in run.records:
        if record.status != "done":
            raise RuntimeError(f"trial {record.status}: {record.failure.message if record.failure else ''}")
        for note in record.notes:
            if note.startswith("ran alone"):
                raise RuntimeError(note)
    return run


def in_this_process(spec: Spec, data_dir: Path, stacked: bool, started: float) -> Run:
    """Run the trials in this process, as a worker does."""
    registry = discover()
    planned = plan(spec, registry)
    runner = TrialRunner(ExecutionSettings(data=data_dir), spec.device, COMMAND, registry)
    runner.prepare(planned[0].trial)
    warm_up(runner, planned if stacked else planned[:1])
    ready, began = time.time() - started, time.perf_counter()
    records = runner.run_stack(planned) if stacked else [runner.run(one) for one in planned]
    return Run(records, ready, time.perf_counter() - began, workers=0)


def in_workers(spec: Spec, data_dir: Path, how: dict[str, int], started: float) -> Run:
    """Run the trials in worker processes; `how` overrides clbench's default execution settings.

    The wall seconds do not include the start of the workers, but they include the first steps of each worker.
    """
    watch = Stopwatch()
    with tempfile.TemporaryDirectory() as folder:
        settings = ExecutionSettings.model_validate({"data": data_dir, **how})
        ready = experiment.prepare(spec.model_copy(update={"execution": settings}), discover(), Path(folder))
        records = experiment.execute(ready, watch, command=COMMAND)
    return Run(records, watch.began - started, watch.ended - watch.began, watch.workers)


def warm_up(runner: TrialRunner, planned: Sequence[PlannedTrial]) -> None:
    """Train on a few samples of the stream, so that modules are loaded and code is compiled before the measurement."""
    stream = runner.stream(planned[0].trial)
    few = replace(stream, tasks=tuple(replace(t, train=first(t.train, 2 * EVAL_BATCH), test=first(t.test, EVAL_BATCH))
                                      for t in stream.tasks))
    run_replicas([Replica.of(one, runner.build(one.trial, few)[0], few) for one in planned], [EvaluationCallback()])


def first(samples: Samples, count: int) -> Samples:
    """Return the first `count` samples."""
    return Samples(samples.x[:count], samples.y[:count], samples.tasks[:count])


def outcome(setting: Setting, run: Run) -> Outcome:
    """Return the outcome from the records; the seconds of phases are divided by the number of parallel workers."""
    records = run.records
    seconds = {phase: sum(sum(getattr(r.timings, phase)) for r in records) / max(1, run.workers)
               for phase in ("train", "consolidate", "evaluate")}
    facts = [r.stream for r in records if r.stream]
    samples = sum(sum(f.train_samples) for f in facts) * setting.epochs
    # From the second task on, er replays as many samples as there are new ones, at most all of its buffer.
    replayed = sum(sum(r.costs.steps[1:]) for r in records) * min(setting.batch_size, MEMORY)
    accuracies = [summary(r.R) for r in records]
    unit = 1 if sys.platform == "darwin" else 1024
    largest = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit
    return Outcome(
        **seconds, whole=run.whole, ready_after=run.ready_after, train_samples=samples,
        processed=samples + (replayed if setting.method == "er" else 0),
        test_samples=sum(sum(r.stream.test_samples) * len(r.R) for r in records if r.stream),
        final=[a for a, _ in accuracies], learned=[a for _, a in accuracies],
        peak_bytes=peak_bytes() + run.workers * largest, device_bytes=device_bytes(setting.device))
