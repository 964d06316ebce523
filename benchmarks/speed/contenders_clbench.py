"""clbench itself: one seed, several one after another, stacked, or side by side in its worker processes."""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from measure import Outcome, Setting
from work import EVAL_BATCH, MEMORY, device_bytes, peak_bytes, planned_of, spec_of, summary

from clbench import experiment
from clbench.execution import Listener
from clbench.plan import Planned
from clbench.records import Record
from clbench.strategy import Samples
from clbench.trial import Member, Runner, live

COMMAND = "benchmarks/speed"


class Stopwatch(Listener):
    """Notes when the first trial starts and the last one ends."""

    began = ended = 0.0

    def started(self, planned: Planned) -> None:
        """Hear that a trial has begun."""
        self.began = self.began or time.time()

    def finished(self, record: Record) -> None:
        """Hear that a trial is over."""
        self.ended = time.time()


def answer(request: dict[str, Any], started: float) -> dict[str, Any]:
    """Measure one trial, or the trials of several seeds."""
    setting = Setting(**{**request, "seeds": tuple(request["seeds"])})
    how = setting.contender.rpartition(" ")[2]
    if how in ("workers", "default"):
        records, ready, whole, share = in_workers(setting, how)
        ready -= started
    else:
        records, ready, whole, share = in_this_process(setting, started, stacked=how == "stacked")
    return asdict(outcome(setting, records, ready, whole, share))


def in_this_process(setting: Setting, started: float, stacked: bool) -> tuple[list[Record], float, float, int]:
    """Run the trials here, as a worker does; return records, seconds until ready, wall seconds, parallel shares."""
    planned, registry = planned_of(setting)
    runner = Runner(Path(setting.data_dir), setting.device, COMMAND, registry)
    runner.prepare(planned[0].trial)
    warm_up(runner, planned if stacked else planned[:1])
    ready, began = time.time() - started, time.perf_counter()
    records = runner.run_stack(planned) if stacked else [runner.run(one) for one in planned]
    return records, ready, time.perf_counter() - began, 1


def warm_up(runner: Runner, planned: Sequence[Planned]) -> None:
    """Live through a few samples of the stream, so that nothing is loaded or compiled for the first time later."""
    stream = runner.stream(planned[0].trial)
    few = replace(stream, tasks=tuple(replace(t, train=first(t.train, 2 * EVAL_BATCH), test=first(t.test, EVAL_BATCH))
                                      for t in stream.tasks))
    live([Member(one, runner.build(one.trial, few)[0], few, []) for one in planned], lambda _: None)


def first(samples: Samples, count: int) -> Samples:
    """Return the first so many samples."""
    return Samples(samples.x[:count], samples.y[:count], samples.tasks[:count])


def in_workers(setting: Setting, how: str) -> tuple[list[Record], float, float, int]:
    """Run the trials in worker processes; return records, the time the first began, wall seconds, parallel shares.

    Starting the workers is not counted, their first steps are. `workers` puts one of a single thread on each core,
    `default` leaves the choice to clbench.
    """
    _, registry = planned_of(setting)
    watch = Stopwatch()
    workers, threads = (setting.threads, 1) if how == "workers" else (None, None)
    with tempfile.TemporaryDirectory() as folder:
        ready = experiment.prepare(spec_of(setting), registry, Path(folder))
        shares = experiment.share_out(ready, COMMAND, Path(setting.data_dir), workers, threads).workers
        records = experiment.carry_out(ready, watch, command=COMMAND, data_dir=Path(setting.data_dir),
                                       workers=workers, threads=threads)
    return records, watch.began, watch.ended - watch.began, shares


def outcome(setting: Setting, records: Sequence[Record], ready: float, whole: float, shares: int) -> Outcome:
    """Return what the records say; seconds of trials that ran side by side are divided by how many did."""
    for record in records:
        if record.status != "done":
            raise RuntimeError(f"trial {record.status}: {record.failure.message if record.failure else ''}")
        alone = [note for note in record.notes if note.startswith("ran alone")]
        if alone:
            raise RuntimeError(alone[0])
    seconds = {phase: sum(sum(getattr(r.timings, phase)) for r in records) / shares
               for phase in ("train", "consolidate", "evaluate")}
    facts = [r.stream for r in records if r.stream]
    samples = sum(sum(f.train_samples) for f in facts) * setting.epochs
    # er replays as many samples as are new (as many as it has), from the second step on.
    replayed = (sum(sum(r.costs.steps) for r in records) - len(records)) * min(setting.batch_size, MEMORY)
    accuracies = [summary(r.R) for r in records]
    unit = 1 if sys.platform == "darwin" else 1024
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit if shares > 1 else 0
    return Outcome(
        **seconds, whole=whole, ready_after=ready, train_samples=samples,
        processed=samples + (replayed if setting.method == "er" else 0),
        test_samples=sum(sum(r.stream.test_samples) * len(r.R) for r in records if r.stream),
        final=[a for a, _ in accuracies], learned=[a for _, a in accuracies],
        peak_bytes=peak_bytes() + shares * children, device_bytes=device_bytes(setting.device))
