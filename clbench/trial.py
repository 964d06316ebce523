"""Run one trial: stream, model, strategy, training, evaluation -> Record."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from clbench import footprint, precision, provenance, seeds
from clbench.building import build_model, build_strategy
from clbench.compiling import Compiler
from clbench.data import cache
from clbench.data.stream import IMAGE_DIMS, Stream, load_stream
from clbench.device import pick_device, room_for_samples, synchronize
from clbench.evaluation import evaluate
from clbench.footprint import Footprint
from clbench.models.network import Network
from clbench.plan import Planned, Trial
from clbench.plugins import Registry, discover
from clbench.provenance import PeakMemory
from clbench.records import SCHEMA, Costs, Failure, Provenance, Record, StreamFacts, Timings
from clbench.strategy import Strategy, Task, World
from clbench.training import Trainer


@dataclass(frozen=True)
class Progress:
    """A word from a running trial: the task it now trains on and its mean accuracy over the tasks before."""

    key: str
    task: int  # 0-based; equal to `tasks` when the trial is over
    tasks: int
    accuracy: float | None


@dataclass
class Member:
    """One trial in the making: its strategy, and what has been seen of it so far, whatever becomes of it."""

    planned: Planned
    strategy: Strategy
    stream: Stream
    notes: list[str]
    matrix: list[list[float]] = field(default_factory=list)
    inference: list[list[float]] = field(default_factory=list)
    trainable: list[int] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    footprints: list[Footprint] = field(default_factory=list)
    train: list[float] = field(default_factory=list)
    consolidate: list[float] = field(default_factory=list)
    evaluate: list[float] = field(default_factory=list)
    failure: Failure | None = None

    @property
    def trial(self) -> Trial:
        """Return what is being run."""
        return self.planned.trial

    def costs(self, memory: PeakMemory) -> Costs:
        """Return what has been spent and kept so far."""
        return Costs(trainable=self.trainable, steps=self.steps, parameters=[f.parameters for f in self.footprints],
                     bytes=[f.bytes for f in self.footprints],
                     replay_samples=[f.replay_samples for f in self.footprints], peak_host_bytes=memory.host(),
                     peak_device_bytes=memory.accelerator())


class Runner:
    """Runs trials in this process, one after the other; streams stay loaded between them."""

    def __init__(self, data_dir: Path, device: str, command: str, registry: Registry | None = None,
                 artifacts: Path | None = None, compiled: bool = False) -> None:
        """Run on `device` (auto | cpu | cuda[:i] | mps) with the data of `data_dir`; records keep `command`.

        What strategies export goes to `artifacts`, a folder for each trial by its key; None: nowhere. With `compiled`
        losses are compiled; SpecError where there is no compiler.
        """
        self.artifacts = artifacts
        self.compiled = compiled
        self.data_dir = data_dir
        self.device = pick_device(device)
        self.command = command
        self.registry = registry or discover()
        self._streams: dict[tuple[str, str, float, int], Stream] = {}
        if compiled:
            Compiler(self.device).probe()

    def prepare(self, trial: Trial) -> list[str]:
        """Get a trial's stream (built and cached the first time), build its strategy once, and return notes.

        Raises:
            ClbenchError: the data are absent, or the benchmark, model or options do not go together.
        """
        stream = self.stream(trial)
        self.build(trial, stream)
        return list(stream.notes)

    def run(self, planned: Planned, on_progress: Callable[[Progress], None] = lambda _: None) -> Record:
        """Run one trial and return its record, whose status tells whether it went through.

        Raises:
            ClbenchError: bad input, as in `prepare`.
        """
        return self.run_stack([planned], on_progress)[0]

    def run_stack(self, planned: Sequence[Planned], on_progress: Callable[[Progress], None] = lambda _: None,
                  ) -> list[Record]:
        """Run trials that differ in seed and `Scalar` options only as one stack and return their records.

        Their times are equal shares.

        Raises:
            ClbenchError: bad input, as in `prepare`.
        """
        members = [self._member(one) for one in planned]
        plugin = str(self.registry.origins["method", planned[0].trial.method.name])
        origin = provenance.collect(plugin, self.device, self.command)
        memory = PeakMemory(self.device)
        try:
            with precision.products(planned[0].trial.recipe):
                live(members, on_progress, self.artifacts, Compiler(self.device) if self.compiled else None)
        except Exception as error:  # a failing trial must not end the others; its traceback is kept in the record
            if len(members) > 1 and isinstance(error, torch.OutOfMemoryError):
                half = len(planned) // 2
                del members
                return [*self.run_stack(planned[:half], on_progress), *self.run_stack(planned[half:], on_progress)]
            if len(members) > 1:
                note = f"ran alone: the stack of {len(members)} trials failed with {type(error).__name__}: {error}"
                records = [self.run(one, on_progress) for one in planned]
                return [r.model_copy(update={"notes": [*r.notes, note]}) for r in records]
            members[0].failure = Failure(type=type(error).__name__, message=str(error),
                                         traceback=traceback.format_exc())
        return [self._record(member, origin, memory) for member in members]

    def _member(self, planned: Planned) -> Member:
        """Return a trial with its stream and strategy, untrained."""
        stream = self.stream(planned.trial)
        strategy, notes = self.build(planned.trial, stream)
        return Member(planned, strategy, stream, notes)

    def _record(self, member: Member, origin: Provenance, memory: PeakMemory) -> Record:
        """Return the record of a trial that is over."""
        planned, stream, failure = member.planned, member.stream, member.failure
        status = "done" if failure is None else "diverged" if failure.type == "DivergedError" else "failed"
        return Record(schema_version=SCHEMA, key=planned.trial.key, label=planned.label, reference=planned.reference,
                      status=status, trial=planned.trial, stream=describe(stream), R=member.matrix,
                      task_inference=member.inference or None, costs=member.costs(memory),
                      timings=Timings(train=member.train, consolidate=member.consolidate, evaluate=member.evaluate),
                      failure=failure, notes=member.notes, provenance=origin)

    def stream(self, trial: Trial) -> Stream:
        """Return a trial's stream on the device."""
        seed = trial.seed if trial.validation or cache.depends_on_seed(trial.benchmark, self.registry) else 0
        key = (str(trial.benchmark), trial.scenario, trial.validation, seed)
        if key not in self._streams:
            self._streams.clear()  # one at a time: trials come sorted, and streams are large
            loaded = load_stream(trial.benchmark, trial.scenario, seed, self.data_dir, self.registry, trial.validation)
            self._streams[key] = loaded.to(self.device, room_for_samples(self.device))
        return self._streams[key]

    def build(self, trial: Trial, stream: Stream) -> tuple[Strategy, list[str]]:
        """Return a trial's strategy, untrained and on the device, and notes on how it was made."""
        with seeds.scope(trial.seed, "init"):
            model, notes = build_model(trial.model, trial.weights, stream.input_shape, stream.classes, self.registry)
        world = World(classes=stream.classes, tasks=len(stream.tasks), scenario=trial.scenario,
                      input_shape=stream.input_shape, generator=seeds.generator(trial.seed, "strategy"),
                      pretrained=trial.weights is not None, prepare=stream.prepare)
        with seeds.scope(trial.seed, "strategy"):
            strategy = build_strategy(trial.method, channels_last(model.to(self.device)), world, self.registry)
        return strategy.to(self.device), notes


def live(members: Sequence[Member], on_progress: Callable[[Progress], None], artifacts: Path | None = None,
         compiler: Compiler | None = None) -> None:
    """Lead the members through their streams together, task by task; one that diverges is left behind.

    After each task the strategies export what is to outlive the run to `artifacts`, if there is such a folder. Losses
    are compiled if there is a compiler.
    """
    first = members[0]
    trainer = Trainer([m.strategy for m in members], first.trial.recipe, [m.trial.seed for m in members],
                      first.stream.augment, compiler)
    for member in members:
        tell(member, on_progress)
        record_row(member, learned=0)
    alive = list(members)
    for index in range(len(first.stream.tasks)):
        alive = learn(alive, trainer, index)
        for member in alive:
            member.footprints.append(footprint.measure(member.strategy))
            record_row(member, learned=index + 1)
            if artifacts is not None:
                member.strategy.export(artifacts / member.trial.key, task_of(member, index))
            tell(member, on_progress)
        if not alive:
            return
        trainer.keep([member.strategy for member in alive])


def learn(members: Sequence[Member], trainer: Trainer, index: int) -> list[Member]:
    """Train the members on task `index`, note its costs, and return those that did not diverge."""
    tasks = [task_of(member, index) for member in members]
    device = tasks[0].train.y.device
    began = time.perf_counter()
    for member, task in zip(members, tasks, strict=True):
        activate(member.strategy, member.stream, index)
        with seeds.scope(member.trial.seed, "strategy", index):
            member.strategy.before_task(task)
    ready = time.perf_counter()
    with seeds.scope(members[0].trial.seed, "training", index):
        trained = trainer.fit(tasks)
    said = trainer.compiler.notes if trainer.compiler else []
    for member in members:
        member.notes += [note for note in said if note not in member.notes]
    synchronize(device)
    done = time.perf_counter()
    alive = []
    for member, task, result in zip(members, tasks, trained, strict=True):
        member.trainable.append(result.trainable)
        member.steps.append(result.steps)
        member.train.append((done - ready) / len(members))
        if result.diverged is not None:
            member.failure = Failure(type="DivergedError", message=str(result.diverged))
            continue
        alive.append(member)
        with seeds.scope(member.trial.seed, "consolidation", index):
            member.strategy.after_task(task)
    synchronize(device)
    for member in alive:
        member.consolidate.append((ready - began + time.perf_counter() - done) / len(members))
    return alive


def task_of(member: Member, index: int) -> Task:
    """Return a task as the member's strategy sees it."""
    known = member.stream.tasks[index]
    return Task(index, known.classes, known.train)


def activate(strategy: Strategy, stream: Stream, index: int) -> None:
    """Switch on the outputs that take part in the loss from task `index` on; later tasks stay unknown."""
    active = strategy.active
    if strategy.world.scenario == "domain":
        active[index] = True
    elif strategy.world.scenario == "task":
        active[index, list(stream.tasks[index].classes)] = True
    else:
        seen = [c for task in stream.tasks[:index + 1] for c in task.classes]
        active[:index + 1, seen] = True


def record_row(member: Member, learned: int) -> None:
    """Evaluate on all tasks and add the row."""
    began = time.perf_counter()
    with precision.forward(member.trial.recipe, member.strategy.active.device):
        row = evaluate(member.strategy, member.stream, member.trial.scenario, learned)
    member.evaluate.append(time.perf_counter() - began)
    member.matrix.append(row.accuracy)
    if row.task_inference is not None:
        member.inference.append(row.task_inference)


def tell(member: Member, on_progress: Callable[[Progress], None]) -> None:
    """Report how far a trial has come."""
    learned = max(len(member.matrix) - 1, 0)
    accuracy = sum(member.matrix[-1][:learned]) / learned if learned else None
    on_progress(Progress(member.trial.key, learned, len(member.stream.tasks), accuracy))


def channels_last(model: Network) -> Network:
    """Lay the weights of a model's convolutions out as `Prepare` does the images; no value changes."""
    for parameter in model.parameters():
        if parameter.dim() == IMAGE_DIMS:
            # Not `contiguous`, which leaves the weights of a first layer on grey images as they are.
            parameter.data = parameter.data.to(memory_format=torch.channels_last)
    return model


def describe(stream: Stream) -> StreamFacts:
    """Return the facts of a stream that a record keeps."""
    return StreamFacts(classes=[list(t.classes) for t in stream.tasks],
                       train_samples=[len(t.train) for t in stream.tasks],
                       test_samples=[len(t.test) for t in stream.tasks], input_shape=list(stream.input_shape),
                       fingerprint=stream.fingerprint, notes=list(stream.notes))
