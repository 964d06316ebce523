"""`clbench continue`: train a finished trial on new tasks, without the training samples of the old ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from clbench.accounting.callback import FlopsCallback
from clbench.core.errors import ClbenchError, FewClassesError, SpecError, StoreError
from clbench.core.objective import RMSE
from clbench.core.registry import Registry, discover
from clbench.data.own.columns import require_same_inputs
from clbench.data.own_options import TableOptions
from clbench.data.stream import Stream
from clbench.execution.joining import Classes, describe_matches, join_streams
from clbench.execution.loading import find_record, learned_stream
from clbench.execution.trial_record import failure_of, record_of
from clbench.execution.trial_runner import TrialRunner
from clbench.experiment.arrival import Arrival
from clbench.experiment.execution_settings import ExecutionSettings
from clbench.experiment.recipe import Recipe
from clbench.experiment.spec import change_recipe
from clbench.experiment.trial import Continued, PlannedTrial, Resolved, Trial
from clbench.persistence.callbacks import SaveCallback, code_of, restore_optimizer_state
from clbench.persistence.snapshot import read_saved, restore
from clbench.persistence.strategy_state import SnapshotError
from clbench.results.records import Earlier, Record
from clbench.results.store import STATE, Store
from clbench.training import precision
from clbench.training.callbacks.evaluation import EvaluationCallback
from clbench.training.costs import PeakMemory
from clbench.training.loop import TrainingLoop
from clbench.training.replica import Replica


def continue_trial(run: Path, trial: str | None, benchmark: Resolved, settings: ExecutionSettings, device: str = "auto",
                   out: Path | None = None, command: str = "", registry: Registry | None = None,
                   recipe: Mapping[str, Any] | None = None, classes: Classes | None = None) -> Record:
    """Train a finished trial on the tasks of another benchmark, and return the new record.

    The record, the model and the state are stored in the folder `out`, by default that of the run. In scenarios `task`
    and `class`, new classes get new outputs. Only the test samples of the old tasks are read, if they are available, to
    measure forgetting (`Record.earlier`).

    Args:
        run: the run folder of the finished trial.
        trial: the trial, named as in `load_model`; None if the folder has one finished trial only.
        benchmark: the benchmark with the new tasks.
        settings: the execution settings.
        device: auto | cpu | cuda[:i] | mps.
        out: the run folder of the new record; None for `run`.
        command: the command that the user typed, stored in the record.
        registry: the installed plugins.
        recipe: changes to the trial's training configuration, as in {"epochs": 3}.
        classes: whether new classes with the names of old classes are the same ("same"), or different classes, which
            get new outputs ("new"); None if no names are shared.

    Raises:
        SpecError: the trial's scenario, inputs or method do not allow it, or new classes have the names of old ones and
            `classes` is None.
        StoreError: there is no such trial, it has no state (`--keep state`), or the new record already exists.
        DataError: the data of the new tasks are missing.
        ClbenchError: the training failed; no record is written then.
    """
    store, registry = Store(run), registry or discover()
    record = find_record(store, trial, registry)
    if record.metric == RMSE.name:
        raise SpecError(f"{record.name} predicts numbers, and such a model cannot continue training: add the new tasks "
                        "to its data and run them all")
    if record.metric:
        raise SpecError(f"{record.name} is a language model, which cannot continue training here: add the new tasks "
                        "to its folder and run them all. If clbench export can write the model, a new run can also "
                        "start from it (--model hf:FOLDER)")
    if record.trial.arrival != Arrival():
        raise SpecError(f"{record.name} learned a stream without clear tasks ({record.trial.arrival}); only one whose "
                        "classes arrive task by task can continue training")
    snapshot = read_saved(store.artifacts / record.key / STATE, "state")
    outline, learned = snapshot.header.outline, snapshot.header.learned
    runner = TrialRunner(settings, device, command, registry)
    benchmark = allow_one_task(benchmark, record.trial, runner)
    continued = record.trial.continues
    benchmarks = [*(continued.benchmarks if continued else []), record.trial.benchmark]
    longer_trial = record.trial.model_copy(update={"benchmark": benchmark, "continues": Continued(
        parent=record.key, benchmarks=benchmarks, tasks=learned, outputs=outline.outputs,
        same_classes=classes == "same"), **changed_recipe(record.trial, recipe or {})})
    target = Store(out or run)
    if target.get(longer_trial.key) is not None:
        raise StoreError(f"{record.name} has gone on to {benchmark.name} before: {target.path(longer_trial.key)}; "
                         "remove it, or choose another --out")
    target.check_writable()
    origin = runner.origin_of(longer_trial)
    new_stream = runner.stream(longer_trial.model_copy(update={"continues": None}))
    if new_stream.common_test:
        raise SpecError(f"benchmark {benchmark.name} has one test set for all tasks, and a trial that continues "
                        "another needs one for each; choose another benchmark, or run all tasks in one trial")
    notes = []
    try:
        earlier: Stream | None = learned_stream(record, runner)
        if record.common_test:
            raise SpecError(f"all tasks of {record.trial.benchmark.name} share one test set")
    except ClbenchError as error:
        earlier = None
        notes.append(f"what became of the old tasks is not known: {error}")
    tables = [(b.name, options) for b in (record.trial.benchmark, benchmark) if isinstance(
        options := registry.benchmark(b.name).options.stored(b.options), TableOptions)]
    if earlier is not None and len(tables) == 2:
        require_same_inputs(tables[0], tables[1], settings.data_dir)
    joined_stream = join_streams(outline, earlier, new_stream, longer_trial, classes)
    if note := describe_matches(outline, new_stream, longer_trial, classes):
        notes.append(note)
    notes.append(f"continues {record.name} ({record.key}), which had learned {learned} tasks of "
                 f"{' and '.join(earlier_benchmark.name for earlier_benchmark in benchmarks)}")
    planned = PlannedTrial(longer_trial, record.label, record.reference)
    old_stream = replace(joined_stream, tasks=joined_stream.tasks[:learned], classes=outline.outputs)
    original, replica = (Replica.of(planned, runner.build(longer_trial, stream)[0], stream)
                         for stream in (old_stream, joined_stream))
    try:
        restore(snapshot, replica, snapshot.header.recipe(longer_trial.trained_by), original)
    except SnapshotError as error:
        raise SpecError(f"{record.label} cannot continue training: {error}") from error
    if code_of(replica.strategy) != snapshot.header.conditions.get("code"):
        notes.insert(0, "the code has changed since the tasks before were learned")
    replica.notes += notes
    memory, evaluation = PeakMemory(runner.device), EvaluationCallback()
    callbacks = [FlopsCallback(), evaluation, SaveCallback(target.artifacts, True, origin, runner.registry)]
    new_recipe = longer_trial.trained_by
    try:
        with precision.allow_tf32(new_recipe):
            evaluation.add_row(replica, new_recipe, learned)
            loop = TrainingLoop([replica], new_recipe, callbacks, cache_bytes=settings.cache_bytes)
            if new_recipe.optimizer_state == "keep":
                optimizer_state = fitting_optimizer_state(snapshot.optimizer, record.trial.trained_by, replica)
                loop.train_step = restore_optimizer_state([replica.strategy], new_recipe, [optimizer_state])
            loop.run(learned)
    except ClbenchError:
        raise
    except (Exception, SystemExit) as error:  # code of a plugin can raise any error
        failure = failure_of(error, longer_trial, registry)
        place = f" ({failure.place})" if failure.place else ""
        raise ClbenchError(f"{record.name} failed to continue training: {failure.type}: {failure.message}"
                           f"{place}") from error
    new_tasks = replace(replica, stream=replace(joined_stream, tasks=joined_stream.tasks[learned:]), errors=[],
                        R=[row[learned:] for row in replica.R],
                        task_inference=[row[learned:] for row in replica.task_inference])
    before, *after = (row[:learned] for row in replica.R)
    longer_record = record_of(new_tasks, origin, memory, record.provenance.weights).model_copy(
        update={"earlier": None if earlier is None else Earlier(before=before, after=after)})
    target.write(longer_record)
    return longer_record


def fitting_optimizer_state(state: Mapping[str, Tensor], saved_recipe: Recipe, replica: Replica) -> dict[str, Tensor]:
    """Return the part of a saved optimizer state that fits a replica; the replica gets a note about the rest.

    Args:
        state: the state, by `<parameter>/<field>`.
        saved_recipe: the recipe of the trial that saved it.
        replica: the replica that continues this trial.
    """
    if (saved_recipe.optimizer_state, saved_recipe.optimizer) != ("keep", replica.trial.trained_by.optimizer):
        replica.add_note("the optimizer began without state, because the tasks before were learned with optimizer = "
                         f"{saved_recipe.optimizer}, optimizer_state = {saved_recipe.optimizer_state}")
        return {}
    shapes = {name: parameter.shape for name, parameter in replica.strategy.named_parameters()}
    values = [(key.rpartition("/")[0], value) for key, value in state.items()]
    unfit = {name for name, value in values if name not in shapes or (value.dim() and value.shape != shapes[name])}
    if unfit:
        replica.add_note("the optimizer began without the state of parameters of another shape: "
                         + ", ".join(sorted(unfit)))
    return {key: value for key, value in state.items() if key.rpartition("/")[0] not in unfit}


def allow_one_task(benchmark: Resolved, trial: Trial, runner: TrialRunner) -> Resolved:
    """Return a benchmark with all its options, set to one task if it has too few classes for the default of two."""
    try:
        runner.stream(trial.model_copy(update={"benchmark": benchmark, "continues": None}))
    except FewClassesError:
        return benchmark.model_copy(update={"options": {**benchmark.options, "tasks": 1}})
    return benchmark


def changed_recipe(trial: Trial, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return a trial's fields `recipe` and `own_recipe` with changes, or an empty dictionary if there are no changes.

    Raises:
        SpecError: the changes are not valid for the recipe.
    """
    if not changes:
        return {}
    full_recipe = change_recipe(trial.trained_by, changes)[0]
    try:
        shared_recipe = change_recipe(trial.recipe, changes)[0]
    except SpecError:  # the changes suit only the method's own recipe, such as the momentum of its sgd
        shared_recipe = trial.recipe
    return {"recipe": shared_recipe,
            "own_recipe": {name: value for name, value in full_recipe if value != getattr(shared_recipe, name)}}
