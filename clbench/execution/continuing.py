"""`clbench continue`: a trial that had ended learns new tasks, without the samples of the old ones."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace
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
from clbench.persistence.callbacks import SaveCallback, code_of
from clbench.persistence.growing import grow
from clbench.persistence.model_file import names_of, stand_in, stand_in_recipe
from clbench.persistence.snapshot import ModelHeader, TrainingHeader, read_saved
from clbench.persistence.strategy_state import SnapshotError, retrace
from clbench.results import provenance
from clbench.results.records import Earlier, Record
from clbench.results.store import MODEL, STATE, Store
from clbench.strategy.base import Strategy
from clbench.training import precision
from clbench.training.callbacks.interface import Callback, Training
from clbench.training.costs import PeakMemory, measure
from clbench.training.evaluation import evaluate
from clbench.training.facts import record_of
from clbench.training.loop import TrainingLoop
from clbench.training.replica import Replica

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
    state, tensors = read_saved(store.artifacts / record.key / STATE, TrainingHeader, "state")
    model, _ = read_saved(store.artifacts / record.key / MODEL, ModelHeader, "state")
    if record.trial.arrival != Arrival():
        raise SpecError(f"{record.name} learned a stream without clear tasks ({record.trial.arrival}); only one whose "
                        "classes arrive task by task can continue training")
    runner = TrialRunner(settings, device, command, registry or discover())
    continued = record.trial.continues
    benchmarks = [*(continued.benchmarks if continued else []), record.trial.benchmark]
    longer = record.trial.model_copy(update={"benchmark": benchmark, "continues": Continued(
        parent=record.key, benchmarks=benchmarks, tasks=model.learned, outputs=model.outputs,
        same_classes=classes == "same"), **changed_recipe(record.trial, recipe or {})})
    target = Store(out or run)
    if target.get(longer.key) is not None:
        raise StoreError(f"{record.name} has gone on to {benchmark.name} before: {target.path(longer.key)}; remove it, "
                         "or choose another --out")
    target.check_writable()
    runner.note_code(longer)
    origin = provenance.collect(str(runner.registry.origin("method", longer.method.name)), runner.device, command,
                                provenance.code_of(longer, runner.registry, identity.running))
    more = runner.stream(longer.model_copy(update={"continues": None}))
    earlier, notes = old_tasks(record, runner)
    whole = joined(model, earlier, more, longer, classes)
    strategy = larger_strategy(model, state, tensors, runner, whole, longer, record.label)
    if code_of(strategy) != state.code:
        notes.append("the code has changed since the tasks before were learned")
    notes.append(f"continues {record.name} ({record.key}), which had learned {model.learned} tasks of "
                 f"{' and '.join(earlier_benchmark.name for earlier_benchmark in benchmarks)}")
    replica = Replica.of(PlannedTrial(longer, record.label, record.reference), strategy, whole, notes)
    memory = PeakMemory(runner.device)
    earlier_tasks = EarlierTasks(model.learned)
    callbacks = [FlopsCallback(), earlier_tasks, SaveCallback(target.artifacts, True, origin, runner.registry)]
    with precision.products(longer.trained_by):
        TrainingLoop([replica], longer.trained_by, callbacks, cache_bytes=settings.cache_bytes).run(model.learned)
    new_tasks = replace(replica, stream=replace(whole, tasks=whole.tasks[model.learned:]))
    longer_record = record_of(new_tasks, origin, memory, record.provenance.weights)
    if earlier is not None:
        before, *after = earlier_tasks.rows
        longer_record = longer_record.model_copy(update={"earlier": Earlier(before=before, after=after)})
    target.write(longer_record)
    return longer_record


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


def old_tasks(record: Record, runner: TrialRunner) -> tuple[Stream | None, list[str]]:
    """Return the stream that a trial has learned, for its test samples; None, and a note, where there is none."""
    try:
        if record.trial.continues is not None:
            raise SpecError("they are of several benchmarks")
        stream = runner.stream(record.trial)
        if record.stream is None or stream.fingerprint != record.stream.fingerprint:
            raise SpecError("the data have changed since")
    except ClbenchError as error:
        return None, [f"what became of the old tasks is not known: {error}"]
    return stream, []


def joined(model: ModelHeader, earlier: Stream | None, more: Stream, trial: Trial, classes: Classes | None) -> Stream:
    """Return the old tasks, with noise for their training samples, and behind them the new ones.

    Raises:
        SpecError: the new samples are no inputs of the model, or it is not clear which outputs they have.
    """
    refuse_samples(model, more, trial.benchmark.name)
    outputs = outputs_of(model, more, trial, classes)
    device = more.tests.y.device
    tasks = list(stand_in(model).to(device).tasks)
    if earlier is not None:
        tasks = [replace(noise, test=task.test, class_names=task.class_names)
                 for noise, task in zip(tasks, earlier.tasks, strict=True)]
    table = torch.tensor(outputs, device=device)
    for task in more.tasks:
        tasks.append(StreamTask(tuple(outputs[output] for output in task.classes),
                                moved(task.train, table, model.learned), moved(task.test, table, model.learned),
                                task.class_names))
    return replace(more, tasks=tuple(tasks), classes=max(model.outputs, max(outputs) + 1), prepare=model.prepare)


CONVERSIONS = {"uint8": 'x = (255 * x).round().clip(0, 255).astype("uint8"), if they are from 0 to 1',
               "float32": 'x = x.astype("float32") / 255, if the old ones are from 0 to 1'}  # of arrays to a dtype


def refuse_samples(model: ModelHeader, more: Stream, benchmark: str) -> None:
    """Raise a SpecError where new samples are no inputs of a model, and say how they become some."""
    raw = stored(more.tasks[0].test)
    dtype, shape = str(raw.dtype).removeprefix("torch."), list(raw.shape[1:])
    given = f"benchmark {benchmark} has samples {shape} ({dtype}), the model takes {model.sample_shape} " \
            f"({model.sample_dtype})"
    if shape != model.sample_shape or list(more.input_shape) != model.input_shape or more.is_text != (
            model.sample_dtype == "int32"):
        raise SpecError(f"{given}; choose a benchmark with the same")
    if (dtype == "uint8") != (model.sample_dtype == "uint8"):
        raise SpecError(f"{given}; convert the new ones: {CONVERSIONS[model.sample_dtype]}")


def outputs_of(model: ModelHeader, more: Stream, trial: Trial, classes: Classes | None) -> list[int]:
    """Return the model's output of each class of new tasks, by the number that it has in their own stream.

    Raises:
        SpecError: new classes have the names of old ones and `classes` does not say whether they are these, or what it
            says does not go with the scenario or the names.
    """
    benchmark = f"benchmark {trial.benchmark.name}"
    if scenario_rules(trial.scenario).shared_outputs:
        if classes == "new":
            raise SpecError(f"scenario {trial.scenario} has no outputs for new classes; leave --new-classes out")
        if more.classes != model.outputs:
            raise SpecError(f"{benchmark} has {more.classes} classes, and in scenario {trial.scenario} they are those "
                            f"of the old tasks, {model.outputs}")
        return list(range(more.classes))
    names = names_of(more)
    shared = [name for name in names if name in model.class_names]
    shown = f"{', '.join(shared[:3])}{', ...' if len(shared) > 3 else ''}"
    if shared and classes is None:
        raise SpecError(f"{benchmark} has classes with the names of old ones ({shown}); say whether they are the same, "
                        "so that their samples train the old outputs (--same-classes), or others, which get new "
                        "outputs (--new-classes)")
    if classes != "same":
        return [model.outputs + output for output in range(more.classes)]
    if not shared:
        raise SpecError(f"{benchmark} has no class with the name of an old one ({', '.join(model.class_names[:3])}, "
                        "...); leave --same-classes out")
    if any(names.count(name) > 1 or model.class_names.count(name) > 1 for name in shared):
        raise SpecError(f"{benchmark}: several outputs have one name ({shown}), so --same-classes does not say which "
                        "are the same; use --new-classes")
    others = itertools.count(model.outputs)
    return [model.class_names.index(name) if name in shared else next(others) for name in names]


def moved(samples: Samples, outputs: torch.Tensor, tasks: int) -> Samples:
    """Return samples with the outputs [C] of their labels in the place of these, and tasks counted from others on."""
    y, of = outputs[samples.y], samples.tasks + tasks
    if isinstance(samples, PermutedSamples):
        return PermutedSamples(samples.base, samples.permutation, y, of, samples.cache)
    if isinstance(samples, StochasticSamples):
        return StochasticSamples(samples.x, y, of, samples.draw)
    return type(samples)(stored(samples), y, of)


def larger_strategy(model: ModelHeader, state: TrainingHeader, tensors: dict[str, torch.Tensor], runner: TrialRunner,
                    whole: Stream, trial: Trial, label: str) -> Strategy:
    """Return the trial's strategy with what it has learned, for the whole stream; SpecError where it cannot grow."""
    old = replace(whole, tasks=whole.tasks[:model.learned], classes=model.outputs)
    strategies = []
    try:
        for stream in (old, whole):
            strategy, _ = runner.build(trial, stream)
            retrace(Replica(strategy, stream, trial.seed), model.learned, stand_in_recipe(model, trial))
            strategies.append(strategy)
        like, larger = strategies
        grow(state, tensors, like, larger)
    except SnapshotError as error:
        raise SpecError(f"{label} cannot continue training: {error}") from error
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
