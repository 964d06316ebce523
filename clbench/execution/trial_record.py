"""The record of a trial, with the facts of its stream and its failure, and its number of steps in words."""

from __future__ import annotations

import traceback
from collections.abc import Collection

from clbench.core.device import out_of_memory
from clbench.core.entry_points import package_of
from clbench.core.errors import ClbenchError
from clbench.core.files import as_utf8
from clbench.core.registry import Registry
from clbench.core.user_code import place
from clbench.data.stream import Stream
from clbench.experiment.execution_settings import ExecutionSettings
from clbench.experiment.trial import Trial
from clbench.results.records import DIGITS, SCHEMA, Failure, Provenance, Record, StreamFacts
from clbench.training.budget import describe_task_steps, steps_of
from clbench.training.callbacks.curve import describe_evaluation_cost
from clbench.training.costs import PeakMemory
from clbench.training.replica import Replica

LESS_MEMORY = "To need less memory, use --accumulate 4, a smaller --batch-size, --precision bf16 or fewer --workers"


def describe(stream: Stream) -> StreamFacts:
    """Return the facts of a stream that a record stores; records are UTF-8, and names of files may not be."""
    mean, std = ([*v] if len(stream.input_shape) == 1 else [] for v in (stream.prepare.mean, stream.prepare.std))
    return StreamFacts(classes=[list(t.classes) if stream.has_classes else [] for t in stream.tasks],
                       train_samples=[len(t.train) for t in stream.tasks],
                       test_samples=[len(t.test) for t in stream.tasks], input_shape=list(stream.input_shape),
                       fingerprint=stream.fingerprint, data=stream.data[:DIGITS], notes=[*map(as_utf8, stream.notes)],
                       class_names=[[*map(as_utf8, t.class_names)] for t in stream.tasks if t.class_names],
                       mean=mean, std=std, arrivals=list(map(list, stream.arrivals)),
                       task_names=[*map(as_utf8, stream.task_names)], common_test=stream.common_test)


def settings_problem(stream: Stream, settings: ExecutionSettings, general: Collection[str]) -> str:
    """Return an error message if a setting does not fit the labels or the tests of a stream; empty if all settings fit.

    `general` has the names of the files of general texts.
    """
    if general and not stream.predicts_tokens:
        return "--general scores texts under language models, and this benchmark is for others"
    if stream.has_classes and not stream.common_test:
        return ""
    flag = ("--probe" if settings.probe else "--anatomy" if settings.anatomy == "each" else
            "--evaluate-every" if settings.evaluate_every is not None and stream.common_test else "")
    if not flag:
        return ""
    remedy = "leave it out, or add --validation"
    if flag == "--evaluate-every":
        remedy += "; in place of --online, which turns it on, use --epochs 1 --batch-size 10"
    return (f"{flag} needs a test set for each task, and here all tasks share one; {remedy}"
            if stream.common_test else f"{flag} is about classes, which this benchmark does not have; leave it out")


def describe_trial_steps(trial: Trial, label: str, stream: Stream) -> str:
    """Describe the number of steps of a trial's tasks, in a line that is equal for all methods that share a recipe."""
    samples = [len(task.train) for task in stream.tasks]
    if stream.hidden:
        recipe = trial.trained_by
        return (f"one pass over {sum(samples):,} samples, batch {recipe.batch_size:,}: "
                f"{steps_of(recipe, sum(samples)):,} optimizer steps; methods do not know where tasks end")
    usual, special = (describe_task_steps(recipe, samples) for recipe in (trial.recipe, trial.trained_by))
    return usual if special == usual else f"{label}, by a recipe of its own: {special}"


def failure_of(error: BaseException, trial: Trial, registry: Registry) -> Failure:
    """Return the failure that a record stores for an exception that ended a trial, while the exception is handled.

    A `ClbenchError` is an error that the user can fix and that its message explains, so it needs no traceback.
    """
    kind, message = type(error).__name__, as_utf8(str(error))
    if isinstance(error, ClbenchError):
        return Failure(type=kind, message=message)
    if out_of_memory(error):
        kind, message = "OutOfMemoryError", f"{(message or 'out of memory').rstrip('.')}. {LESS_MEMORY}"
    parts = registry.strategy(trial.method.name).strategy, registry.model(trial.model.name).build
    return Failure(type=kind, message=message, traceback=as_utf8(traceback.format_exc()),
                   place=place(error, *map(package_of, parts)))


def note_of_stack(size: int, error: BaseException) -> str:
    """Return the note of a trial that ran alone because its stack of `size` trials failed."""
    return as_utf8(f"ran alone: the stack of {size} trials failed with {type(error).__name__}: {error}")


def record_of(replica: Replica, origin: Provenance, memory: PeakMemory, weights: str) -> Record:
    """Return the record of a finished trial; `weights` is the hash of published weights that it started from."""
    planned, stream, failure = replica.planned, replica.stream, replica.failure
    assert planned is not None
    status = "done" if failure is None else "diverged" if failure.type == "DivergedError" else "failed"
    return Record(schema_version=SCHEMA, key=planned.trial.key, label=planned.label, reference=planned.reference,
                  searched=planned.searched, until=planned.until, seen=list(planned.seen), status=status,
                  trial=planned.trial, stream=describe(stream),
                  R=replica.R, metric="" if stream.has_classes else replica.strategy.objective.info.primary,
                  scores=replica.scores, general=replica.general, general_files=replica.general_files,
                  answers=replica.answers,
                  task_inference=replica.task_inference or None,
                  outputs=replica.strategy.outputs if planned.trial.scenario == "class" else None,
                  curve=replica.curve,
                  last_losses=replica.last_losses if any(replica.last_losses) else [],
                  items=replica.items, item_scores=replica.item_scores, errors=replica.errors, probe=replica.probe,
                  costs=replica.costs.model_copy(update={"peak_host_bytes": memory.host(),
                                                        "peak_device_bytes": memory.accelerator()}),
                  timings=replica.timings, failure=failure, notes=replica.notes,
                  provenance=origin.model_copy(update={"started": replica.started or origin.started,
                                                       "weights": weights}))


def describe_training(trial: Trial, label: str, stream: Stream, settings: ExecutionSettings) -> list[str]:
    """Return lines on the number of a trial's steps and on the cost of evaluation during training, if it is enabled."""
    steps, interval = describe_trial_steps(trial, label, stream), settings.evaluate_every
    if interval is None:
        return [steps]
    return [steps, describe_evaluation_cost(trial.trained_by, stream, interval, settings.evaluate_samples)]
