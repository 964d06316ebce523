"""Test saved adapters again on their tasks, and train an adapter for one more task on their base."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from clbench.core.artifacts import task_folder
from clbench.core.errors import DataError, SpecError, StoreError
from clbench.data.stream import Stream
from clbench.execution.trial_runner import TrialRunner
from clbench.experiment.execution_settings import ExecutionSettings
from clbench.experiment.trial import Resolved
from clbench.training import precision
from clbench.training.evaluation import evaluate
from clbench.training.loop import TrainingLoop
from clbench.training.replica import Replica
from clbench_lora import reload
from clbench_lora.files import write_adapter
from clbench_lora.peft_format import Origin
from clbench_lora.run_adapters import TrialAdapters


def evaluate_tasks(source: TrialAdapters, tasks: Sequence[int] | None = None, data_dir: Path | None = None,
                   device: str = "auto") -> dict[int, float]:
    """Return the accuracy in [0, 1] of saved adapters on the test samples of their own tasks.

    The scenario is the trial's. If it does not give the task ID, the task is inferred among `tasks`, and only their
    outputs compete.

    Args:
        source: the trial's saved adapters.
        tasks: the tasks whose adapters are tested; by default all.
        data_dir: folder of the data sets; None for CLBENCH_DATA or the user's cache folder.
        device: auto | cpu | cuda[:i] | mps.

    Raises:
        SpecError: the adapters belong to several benchmarks, and the task must be inferred.
        DataError: the data are missing, or differ from those of the trial.
        StoreError: see `reload.load`.
    """
    source.refuse_language_model("eval", "clbench forget BASE ADAPTER --tasks FILE scores them")
    numbers = source.tasks if tasks is None else list(tasks)
    trial = source.record.trial
    origins = {n: source.origin(n) for n in numbers}
    groups: dict[str, list[int]] = {}
    for number, origin in origins.items():
        groups.setdefault(str(origin.benchmark), []).append(number)
    if len(groups) > 1 and trial.scenario != "task":
        raise SpecError(f"in scenario {trial.scenario} the task is inferred, which makes no sense between benchmarks; "
                        "name tasks of one with --tasks")
    runner = TrialRunner(ExecutionSettings(data=data_dir), device, "clbench adapters eval", source.registry)
    accuracies: dict[int, float] = {}
    for members in groups.values():
        stream = runner.stream(trial.model_copy(update={"benchmark": origins[members[0]].benchmark}))
        for member in members:
            same_data(stream, origins[member])
        part = replace(stream, tasks=tuple(stream.tasks[origins[n].task] for n in members), classes=source.outputs)
        strategy = reload.load(source, members, stream.prepare).to(runner.device)
        with precision.allow_tf32(trial.trained_by), precision.autocast_context(trial.trained_by, runner.device):
            row = evaluate(strategy, part, trial.scenario, len(members))
        accuracies.update(zip(members, row.accuracy, strict=True))
    return {n: accuracies[n] for n in numbers}


def same_data(stream: Stream, origin: Origin) -> None:
    """Raise a DataError if a stream is not the one that an adapter was trained on."""
    if stream.fingerprint != origin.fingerprint:
        raise DataError(f"benchmark {origin.benchmark} has other data here (fingerprint {stream.fingerprint}) than the "
                        f"adapter was trained on ({origin.fingerprint}); use the same data folder")


def add(source: TrialAdapters, task: int, benchmark: Resolved | None = None, data_dir: Path | None = None,
        device: str = "auto") -> int:
    """Train another adapter and head on a saved base in the trial's configuration, and return their task's number.

    The base and the other adapters are only read. Seeds are those of the trial, so the adapter of a removed task is
    reproduced bit for bit on the same machine with the same number of threads, if the trial was trained alone and not
    in a stack. The exception is the first task with `base = task1`: the adapter now gets
    the whole budget, of which W took half in the trial.

    Args:
        source: the trial's saved adapters.
        task: index of the task in the benchmark.
        benchmark: the task's benchmark; by default the trial's. A task of another benchmark gets the next free number,
            and its classes are the first outputs, as in that benchmark alone.
        data_dir: folder of the data sets; None for CLBENCH_DATA or the user's cache folder.
        device: auto | cpu | cuda[:i] | mps.

    Raises:
        SpecError: the task does not exist, its inputs have another shape, it has more classes than the model has
            outputs, or training diverged.
        StoreError: the task already has an adapter, or files cannot be read or written.
        DataError: the data are missing, or differ from those of the trial.
    """
    source.refuse_language_model("add", "clbench run with more tasks trains them")
    trial = source.record.trial
    is_trial_benchmark = benchmark is None or benchmark == trial.benchmark
    if is_trial_benchmark and task in source.tasks:
        raise StoreError(f"{source.name} has an adapter of task {task + 1}; remove it first")
    if benchmark is not None:
        trial = trial.model_copy(update={"benchmark": benchmark})
    runner = TrialRunner(ExecutionSettings(data=data_dir), device, "clbench adapters add", source.registry)
    stream = runner.stream(trial)
    check_fits(source, stream, trial.benchmark, task)
    origin = Origin(benchmark=trial.benchmark, task=task, fingerprint=stream.fingerprint)
    if is_trial_benchmark:
        same_data(stream, origin.model_copy(update={"fingerprint": source.stream.fingerprint}))
    number = task if is_trial_benchmark else max([*source.tasks, len(source.stream.classes) - 1]) + 1
    strategy = reload.rebuild(source, len(stream.tasks), stream.prepare).to(runner.device)
    # With earlier tasks reserved, the task has its index in the benchmark, on which data order and draws depend.
    for earlier in stream.tasks[:task]:
        reload.reserve(strategy, earlier.classes)
    replica = Replica(strategy, stream, trial.seed)
    with precision.allow_tf32(trial.trained_by):
        result, = TrainingLoop([replica], trial.trained_by).train_task(task)
    if result.diverged is not None:
        raise SpecError(f"training diverged: {result.diverged}; nothing was added")
    write_adapter(task_folder(source.folder, number), strategy.adapter(
        replica.task(task), source.record.key, source.digest, number, None if is_trial_benchmark else origin))
    return number


def check_fits(source: TrialAdapters, stream: Stream, benchmark: Resolved, task: int) -> None:
    """Raise a SpecError if a task of a stream cannot be trained on a saved base."""
    if not 0 <= task < len(stream.tasks):
        raise SpecError(f"benchmark {benchmark.name!r} has tasks 1 to {len(stream.tasks)}, not {task + 1}")
    if list(stream.input_shape) != source.stream.input_shape:
        raise SpecError(f"benchmark {benchmark.name!r} has inputs {list(stream.input_shape)}, the base takes "
                        f"{source.stream.input_shape}; choose a benchmark with the same")
    if stream.classes > source.outputs:
        raise SpecError(f"benchmark {benchmark.name!r} has {stream.classes} classes, the model {source.outputs} "
                        "outputs; choose a benchmark with as many or fewer")
