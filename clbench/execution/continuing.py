"""`clbench continue`: a trial that had ended learns new tasks, without the samples of the old ones."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from clbench.core import identity
from clbench.core.errors import ClbenchError, SpecError, StoreError
from clbench.core.registry import Registry, discover
from clbench.core.scenario import scenario_rules
from clbench.data.samples import PermutedSamples, Samples, StochasticSamples
from clbench.data.stream import Stream, StreamTask, stored
from clbench.execution.loading import find_record
from clbench.experiment.arrival import Arrival
from clbench.experiment.execution_settings import ExecutionSettings
from clbench.experiment.trial import Continued, PlannedTrial, Resolved, Trial
from clbench.results import provenance
from clbench.results.records import Earlier, Failure, Record
from clbench.results.staleness import code_of
from clbench.results.store import MODEL, STATE, Store
from clbench.strategy.base import Strategy
from clbench.training import numerics
from clbench.training.evaluation import evaluate
from clbench.training.lifecycle import Learner, retrace
from clbench.training.trainer import Trainer
from clbench.training.trials import checkpoint
from clbench.training.trials.costs import PeakMemory, measure
from clbench.training.trials.facts import record_of
from clbench.training.trials.growing import grow, read_state
from clbench.training.trials.keeper import Keeper
from clbench.training.trials.kept import KeptHeader, read_model, stand_in
from clbench.training.trials.runner import TrialRunner, train_task
from clbench.training.trials.state import TrialState


@dataclass(frozen=True)
class Parent:
    """A trial that goes on: its record, and what was kept of it."""

    record: Record
    folder: Path
    kept: KeptHeader

    @property
    def trial(self) -> Trial:
        """Return the trial."""
        return self.record.trial

    @property
    def learned(self) -> int:
        """Return how many tasks it has learned."""
        return self.kept.learned


def continue_trial(run: Path, trial: str | None, benchmark: Resolved, settings: ExecutionSettings, device: str = "auto",
                   out: Path | None = None, command: str = "", registry: Registry | None = None) -> Record:
    """Let a trial learn the tasks of another benchmark by its own recipe, and return the new record.

    It is stored, and its model and state are kept, in the folder `out`, by default the run's. In scenarios `task` and
    `class` the new tasks have new outputs. Of the old tasks only test samples are read, where they are there, to see
    what is forgotten (`Record.earlier`).

    Raises:
        SpecError: its scenario, inputs or method do not allow it.
        StoreError: no such trial, or it has no state (`--keep state`).
        DataError: the data of the new tasks are missing.
    """
    store = Store(run)
    record = find_record(store, trial)
    folder = store.artifacts / record.key
    header, state, generator = read_state(folder / STATE)
    parent = Parent(record, folder, read_model(folder / MODEL)[0])
    refuse(parent)
    runner = TrialRunner(settings, device, command, registry or discover())
    done = record.trial.continues
    ours = record.trial.model_copy(update={"benchmark": benchmark, "continues": Continued(
        parent=record.key, benchmarks=[*(done.benchmarks if done else []), record.trial.benchmark],
        tasks=parent.learned, outputs=parent.kept.outputs)})
    target = Store(out or run)
    if target.get(ours.key) is not None:
        raise StoreError(f"{record.name} has gone on to {benchmark.name} before: {target.path(ours.key)}; remove it, "
                         "or choose another --out")
    target.check_writable()
    runner.note_code(ours)
    origin = provenance.collect(str(runner.registry.origin("method", ours.method.name)), runner.device, command,
                                code_of(ours, runner.registry, identity.running))
    more = runner.stream(ours.model_copy(update={"continues": None}))
    earlier, notes = old_tasks(parent, runner)
    whole = joined(parent, earlier, more, ours)
    strategy = grown(parent, header, state, generator, runner, whole, ours, notes)
    notes.append(f"continues {record.name} ({record.key}), which had learned {parent.learned} tasks of "
                 f"{' and '.join(b.name for b in ours.continues.benchmarks)}" if ours.continues else "")
    member = TrialState(PlannedTrial(ours, record.label, record.reference), strategy, whole, [*notes])
    memory = PeakMemory(runner.device)
    with numerics.products(ours.trained_by):
        rows = learn(member, parent.learned, settings)
    made = record_of(replace_stream(member, parent.learned), origin, memory, record.provenance.weights)
    if earlier is not None:
        made = made.model_copy(update={"earlier": Earlier(before=rows[0], after=rows[1:])})
    if made.status == "done":
        Keeper(target.artifacts, True, origin, runner.registry).keep([member], None)
        made = made.model_copy(update={"notes": member.notes})
    target.write(made)
    return made


def refuse(parent: Parent) -> None:
    """Raise a SpecError where nothing can be learned after a trial's stream."""
    trial = parent.trial
    if trial.arrival != Arrival():
        raise SpecError(f"{parent.record.name} learned a stream without clear tasks ({trial.arrival}); only one whose "
                        "classes arrive task by task can learn on")


def old_tasks(parent: Parent, runner: TrialRunner) -> tuple[Stream | None, list[str]]:
    """Return the stream that a trial has learned, for its test samples; None, and a note, where it is not to be had."""
    try:
        if parent.trial.continues is not None:
            raise SpecError("they are of several benchmarks")
        stream = runner.stream(parent.trial)
        if parent.record.stream is None or stream.fingerprint != parent.record.stream.fingerprint:
            raise SpecError("the data have changed since")
    except ClbenchError as error:
        return None, [f"what became of the old tasks is not known: {error}"]
    return stream, []


def joined(parent: Parent, earlier: Stream | None, more: Stream, trial: Trial) -> Stream:
    """Return the old tasks, with noise for their training samples, and behind them the new ones.

    Raises:
        SpecError: the new samples are no inputs of the model, or their outputs not those of the old tasks where all
            tasks share them.
    """
    kept, rules = parent.kept, scenario_rules(trial.scenario)
    raw = stored(more.tasks[0].test)
    if list(raw.shape[1:]) != kept.sample_shape or list(more.input_shape) != kept.input_shape or (
            raw.dtype == torch.uint8) != (kept.sample_dtype == "uint8"):
        raise SpecError(f"benchmark {trial.benchmark.name} has samples {list(raw.shape[1:])} ({raw.dtype}), the model "
                        f"takes {kept.sample_shape} ({kept.sample_dtype}); choose a benchmark with the same")
    if rules.shared_outputs and more.classes != kept.outputs:
        raise SpecError(f"benchmark {trial.benchmark.name} has {more.classes} classes, and in scenario "
                        f"{trial.scenario} they are those of the old tasks, {kept.outputs}")
    old = stand_in(kept).to(more.tests.y.device)
    if earlier is not None:
        old = replace(old, tasks=tuple(replace(noise, test=known.test, class_names=known.class_names)
                                       for noise, known in zip(old.tasks, earlier.tasks, strict=True)))
    offset = 0 if rules.shared_outputs else kept.outputs
    new = tuple(StreamTask(tuple(c + offset for c in task.classes), moved(task.train, offset, parent.learned),
                           moved(task.test, offset, parent.learned), task.class_names) for task in more.tasks)
    return replace(more, tasks=(*old.tasks, *new), classes=more.classes + offset, prepare=kept.prepare)


def moved(samples: Samples, outputs: int, tasks: int) -> Samples:
    """Return samples whose labels and tasks are counted from others on."""
    y, of = samples.y + outputs, samples.tasks + tasks
    if isinstance(samples, PermutedSamples):
        return PermutedSamples(samples.base, samples.permutation, y, of, samples.held)
    if isinstance(samples, StochasticSamples):
        return StochasticSamples(samples.x, y, of, samples.draw)
    return type(samples)(stored(samples), y, of)


def grown(parent: Parent, header: checkpoint.CheckpointHeader, state: dict[str, torch.Tensor], generator: torch.Tensor,
          runner: TrialRunner, whole: Stream, trial: Trial, notes: list[str]) -> Strategy:
    """Return the trial's strategy with what it has learned, for the whole stream; SpecError where it cannot grow."""
    old = replace(whole, tasks=whole.tasks[:parent.learned], classes=parent.kept.outputs)
    recipe = trial.trained_by.model_copy(update={"epochs": None, "iterations": max(parent.kept.steps, 1)})
    led = []
    for stream in (old, whole):
        strategy, _ = runner.build(trial, stream)
        try:
            retrace(Learner(strategy, stream, trial.seed), parent.learned, recipe)
        except Exception as error:  # of a method, which may not expect more tasks
            raise SpecError(f"{parent.record.label} cannot learn on: {type(error).__name__}: {error}") from error
        led.append(strategy)
    like, larger = led
    grow(header, state, like, larger, parent.record.label)
    larger.world.generator.set_state(generator)
    if checkpoint.code_of(larger) != header.code:
        notes.append("the code has changed since the tasks before were learned")
    return larger


def learn(member: TrialState, learned: int, settings: ExecutionSettings) -> list[list[float]]:
    """Train on the tasks from `learned` on; return the accuracies on those before, at first and after each new one."""
    trial, stream = member.trial, member.stream
    trainer = Trainer([member.strategy], trial.trained_by, [trial.seed], stream.augment, None, settings.cache_bytes)
    before = []

    def look(tasks: int) -> None:
        with numerics.forward(trial.trained_by, member.strategy.active.device, member.strategy):
            row = evaluate(member.strategy, stream, trial.scenario, tasks)
        before.append(row.accuracy[:learned])
        member.R.append(row.accuracy[learned:])
        if row.task_inference is not None:
            member.task_inference.append(row.task_inference[learned:])
        if row.flops is not None and tasks > learned:
            member.costs.inference_flops.append(row.flops)

    look(learned)
    for index in range(learned, len(stream.tasks)):
        if not train_task([member], trainer, index):
            member.failure = member.failure or Failure(type="DivergedError", message="training diverged")
            break
        member.add_kept(measure(member.strategy))
        look(index + 1)
    return before


def replace_stream(member: TrialState, learned: int) -> TrialState:
    """Return a trial as its record has it: with the new tasks only."""
    return replace(member, stream=replace(member.stream, tasks=member.stream.tasks[learned:]))
