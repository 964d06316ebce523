"""`clbench continue`: a trial that had ended learns new tasks, without the samples of the old ones."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from clbench.accounting.callback import FlopsCallback
from clbench.core import identity
from clbench.core.errors import ClbenchError, SpecError, StoreError
from clbench.core.registry import Registry, discover
from clbench.core.scenario import scenario_rules
from clbench.data.samples import PermutedSamples, Samples, StochasticSamples
from clbench.data.stream import Stream, StreamTask, stored
from clbench.execution.loading import find_record
from clbench.execution.trial_runner import TrialRunner
from clbench.experiment.arrival import Arrival
from clbench.experiment.execution_settings import ExecutionSettings
from clbench.experiment.spec import Recipe, changed
from clbench.experiment.trial import Continued, PlannedTrial, Resolved, Trial
from clbench.persistence import checkpoint
from clbench.persistence.growing import grow, read_state
from clbench.persistence.keeper import SaveCallback
from clbench.persistence.kept import KeptHeader, names_of, read_model, stand_in
from clbench.results import provenance
from clbench.results.records import Earlier, Record
from clbench.results.staleness import code_of
from clbench.results.store import MODEL, STATE, Store
from clbench.strategy.base import Strategy
from clbench.training import precision
from clbench.training.callbacks.interface import Callback, Training
from clbench.training.costs import PeakMemory, measure
from clbench.training.evaluation import evaluate
from clbench.training.facts import record_of
from clbench.training.loop import TrainingLoop
from clbench.training.replica import Replica


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


Classes = Literal["same", "new"]  # whether classes with the names of old ones are these, or others


def continue_trial(run: Path, trial: str | None, benchmark: Resolved, settings: ExecutionSettings, device: str = "auto",
                   out: Path | None = None, command: str = "", registry: Registry | None = None,
                   recipe: Mapping[str, Any] | None = None, classes: Classes | None = None) -> Record:
    """Let a trial learn the tasks of another benchmark, and return the new record.

    It is stored, and its model and state are kept, in the folder `out`, by default the run's. In scenarios `task` and
    `class` new classes have new outputs. Of the old tasks only test samples are read, where they are there, to see what
    is forgotten (`Record.earlier`).

    Args:
        run: the run folder.
        trial: its `label/seed` or the beginning of its key; None where there is one.
        benchmark: the new tasks.
        settings: how it is run.
        device: where.
        out: the folder of the new record.
        command: what the user typed, kept in the record.
        registry: what is installed.
        recipe: what differs from the trial's own recipe, as in {"epochs": 3}.
        classes: whether new classes that have the names of old ones are the same, or others, which get new outputs.

    Raises:
        SpecError: its scenario, inputs or method do not allow it, or classes have the names of old ones and `classes`
            does not say what they are.
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
        tasks=parent.learned, outputs=parent.kept.outputs, same_classes=classes == "same"),
        **changed_recipe(record.trial, recipe or {})})
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
    whole = joined(parent, earlier, more, ours, classes)
    strategy = grown(parent, header, state, generator, runner, whole, ours, notes)
    notes.append(f"continues {record.name} ({record.key}), which had learned {parent.learned} tasks of "
                 f"{' and '.join(b.name for b in ours.continues.benchmarks)}" if ours.continues else "")
    replica = Replica.of(PlannedTrial(ours, record.label, record.reference), strategy, whole, notes)
    save = SaveCallback(target.artifacts, True, origin, runner.registry)
    memory = PeakMemory(runner.device)
    with precision.products(ours.trained_by):
        earlier_tasks = EarlierTasks(parent.learned)
        loop = TrainingLoop([replica], ours.trained_by, [FlopsCallback(), earlier_tasks, save],
                            cache_bytes=settings.cache_bytes)
        loop.run(parent.learned)
    made = record_of(replace_stream(replica, parent.learned), origin, memory, record.provenance.weights)
    if earlier is not None:
        rows = earlier_tasks.rows
        made = made.model_copy(update={"earlier": Earlier(before=rows[0], after=rows[1:])})
    target.write(made)
    return made


def refuse(parent: Parent) -> None:
    """Raise a SpecError where nothing can be learned after a trial's stream."""
    trial = parent.trial
    if trial.arrival != Arrival():
        raise SpecError(f"{parent.record.name} learned a stream without clear tasks ({trial.arrival}); only one whose "
                        "classes arrive task by task can continue training")


def changed_recipe(trial: Trial, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the recipe of a trial that goes on, and what its method has of its own, with changes to both.

    Raises:
        SpecError: the changes do not go with the recipe.
    """
    if not changes:
        return {}
    shared, whole = changed(trial.recipe, changes)[0], changed(trial.trained_by, changes)[0]
    return {"recipe": shared, "own_recipe": {name: value for name in Recipe.model_fields
                                             if (value := getattr(whole, name)) != getattr(shared, name)}}


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


def joined(parent: Parent, earlier: Stream | None, more: Stream, trial: Trial, classes: Classes | None) -> Stream:
    """Return the old tasks, with noise for their training samples, and behind them the new ones.

    Raises:
        SpecError: the new samples are no inputs of the model, or it is not clear which outputs they have.
    """
    kept = parent.kept
    refuse_samples(kept, more, trial.benchmark.name)
    outputs = outputs_of(kept, more, trial, classes)
    old = stand_in(kept).to(more.tests.y.device)
    if earlier is not None:
        old = replace(old, tasks=tuple(replace(noise, test=known.test, class_names=known.class_names)
                                       for noise, known in zip(old.tasks, earlier.tasks, strict=True)))
    table = torch.tensor(outputs, device=more.tests.y.device)
    new = tuple(StreamTask(tuple(outputs[c] for c in task.classes), moved(task.train, table, parent.learned),
                           moved(task.test, table, parent.learned), task.class_names) for task in more.tasks)
    return replace(more, tasks=(*old.tasks, *new), classes=max(kept.outputs, *(output + 1 for output in outputs)),
                   prepare=kept.prepare)


CONVERSIONS = {"uint8": 'x = (255 * x).round().clip(0, 255).astype("uint8"), if they are from 0 to 1',
               "float32": 'x = x.astype("float32") / 255, if the old ones are from 0 to 1'}  # of arrays to a dtype


def refuse_samples(kept: KeptHeader, more: Stream, benchmark: str) -> None:
    """Raise a SpecError where new samples are no inputs of a model, and say how they become some."""
    raw = stored(more.tasks[0].test)
    dtype, shape = str(raw.dtype).removeprefix("torch."), list(raw.shape[1:])
    given = f"benchmark {benchmark} has samples {shape} ({dtype}), the model takes {kept.sample_shape} " \
            f"({kept.sample_dtype})"
    if shape != kept.sample_shape or list(more.input_shape) != kept.input_shape or more.is_text != (
            kept.sample_dtype == "int32"):
        raise SpecError(f"{given}; choose a benchmark with the same")
    if (dtype == "uint8") != (kept.sample_dtype == "uint8"):
        raise SpecError(f"{given}; convert the new ones: {CONVERSIONS[kept.sample_dtype]}")


def outputs_of(kept: KeptHeader, more: Stream, trial: Trial, classes: Classes | None) -> list[int]:
    """Return the model's output of each class of new tasks, by the number that it has in their own stream.

    Raises:
        SpecError: new classes have the names of old ones and `classes` does not say whether they are these, or what it
            says does not go with the scenario or the names.
    """
    benchmark = f"benchmark {trial.benchmark.name}"
    if scenario_rules(trial.scenario).shared_outputs:
        if classes == "new":
            raise SpecError(f"scenario {trial.scenario} has no outputs for new classes; leave --new-classes out")
        if more.classes != kept.outputs:
            raise SpecError(f"{benchmark} has {more.classes} classes, and in scenario {trial.scenario} they are those "
                            f"of the old tasks, {kept.outputs}")
        return list(range(more.classes))
    names = names_of(more)
    shared = [name for name in names if name in kept.class_names]
    shown = f"{', '.join(shared[:3])}{', ...' if len(shared) > 3 else ''}"
    if shared and classes is None:
        raise SpecError(f"{benchmark} has classes with the names of old ones ({shown}); say whether they are the same, "
                        "so that their samples train the old outputs (--same-classes), or others, which get new "
                        "outputs (--new-classes)")
    if classes != "same":
        return [kept.outputs + output for output in range(more.classes)]
    if not shared:
        raise SpecError(f"{benchmark} has no class with the name of an old one ({', '.join(kept.class_names[:3])}, "
                        "...); leave --same-classes out")
    if any(names.count(name) > 1 or kept.class_names.count(name) > 1 for name in shared):
        raise SpecError(f"{benchmark}: several outputs have one name ({shown}), so --same-classes does not say which "
                        "are the same; use --new-classes")
    others = itertools.count(kept.outputs)
    return [kept.class_names.index(name) if name in shared else next(others) for name in names]


def moved(samples: Samples, outputs: torch.Tensor, tasks: int) -> Samples:
    """Return samples with the outputs [C] of their labels in the place of these, and tasks counted from others on."""
    y, of = outputs[samples.y], samples.tasks + tasks
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
            Replica(strategy, stream, trial.seed).retrace(parent.learned, recipe)
        except Exception as error:  # of a method, which may not expect more tasks
            raise SpecError(f"{parent.record.label} cannot continue training: {type(error).__name__}: {error}"
                            ) from error
        led.append(strategy)
    like, larger = led
    grow(header, state, like, larger, parent.record.label)
    larger.world.generator.set_state(generator)
    if checkpoint.code_of(larger) != header.code:
        notes.append("the code has changed since the tasks before were learned")
    return larger


class EarlierTasks(Callback):
    """Evaluates a replica at first and after each new task, and keeps the accuracies on the tasks before apart."""

    def __init__(self, learned: int) -> None:
        """Begin after so many tasks."""
        self.learned = learned
        self.rows: list[list[float]] = []  # on the tasks before: at first, and after each new one

    def on_start(self, training: Training) -> None:
        """Evaluate before the first new task."""
        self._evaluate(training, self.learned)

    def on_task(self, training: Training, task: int) -> None:
        """Add the footprint, and evaluate."""
        for replica in training.replicas:
            replica.add_footprint(measure(replica.strategy))
        self._evaluate(training, task + 1)

    def _evaluate(self, training: Training, tasks: int) -> None:
        replica, = training.replicas
        with precision.forward(training.recipe, replica.strategy.active.device, replica.strategy):
            row = evaluate(replica.strategy, replica.stream, replica.trial.scenario, tasks)
        self.rows.append(row.accuracy[:self.learned])
        replica.R.append(row.accuracy[self.learned:])
        if row.task_inference is not None:
            replica.task_inference.append(row.task_inference[self.learned:])


def replace_stream(replica: Replica, learned: int) -> Replica:
    """Return a trial as its record has it: with the new tasks only."""
    return replace(replica, stream=replace(replica.stream, tasks=replica.stream.tasks[learned:]))
