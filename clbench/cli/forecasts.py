"""The forecasts of a dry run: parameters and FLOPs of each trial, and the time that missing trials will take."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import click
from tabulate import tabulate

from clbench.cli.params import format_scaled
from clbench.core.entry_points import package_of
from clbench.core.errors import ClbenchError, MissingDataError, SpecError, typed_message
from clbench.core.user_code import users_place
from clbench.execution.time_left import Kind, TimeLeft, is_comparable, kind_of, read_times
from clbench.experiment.trial import PlannedTrial, has_slow_heads
from clbench.experiment.workload import Speed, WorkEstimate
from clbench.report.formatting import NONE
from clbench.results.provenance import group_by_reason

if TYPE_CHECKING:
    from clbench.core.registry import Registry
    from clbench.data.stream import Stream
    from clbench.execution.run import Experiment
    from clbench.execution.trial_runner import TrialRunner
    from clbench.results.records import Record

HEADERS = ("key", "method", "scenario", "seed", "state", "trainable", "training FLOPs", "FLOPs per sample")


class Forecast(NamedTuple):
    """The forecast for trials of one kind: the last cells of their rows in the table, and the estimated work."""

    cells: list[str]
    estimate: WorkEstimate


def listing(experiment: Experiment, duration: bool = True) -> tuple[str, list[str]]:
    """Return a table of the trials, and a line for each method that cannot be built.

    The table has the state, the trainable parameters and the FLOPs of each trial. The numbers of finished trials come
    from their records. For other trials they are counted on shapes, once for each setting and method. Notes go to
    standard error.

    With `duration`, a last line of the table shows how long the missing trials will take.

    Raises:
        ClbenchError: some trials cannot run as they are planned; a line for each mistake.
    """
    stale = ((experiment.records[key], reasons) for key, reasons in experiment.staleness.reasons.items())
    for line in group_by_reason(stale):
        click.echo(f"Stale: {line}", err=True)
    counted, errors = forecasts(experiment)
    rows = []
    for planned in experiment.planned:
        trial, record = planned.trial, experiment.records.get(planned.trial.key)
        if record is not None and record.status != "failed":
            figures = cells(record.costs.trainable, record.costs.train_flops, record.costs.inference_flops)
        elif kind_of(trial) in counted:
            figures = counted[kind_of(trial)].cells
        else:
            figures = [NONE] * 3
        rows.append([trial.key, planned.label, trial.scenario, trial.seed, state(record, experiment), *figures])
    table = tabulate(rows, headers=HEADERS, disable_numparse=True, colalign=("left",) * 5 + ("right",) * 3)
    line = describe_duration(experiment, counted) if duration else ""
    return f"{table}\n\n{line}" if line else table, errors


def report_unbuilt(errors: Sequence[str]) -> int:
    """Print the lines about methods that cannot be built, and return the exit code of the dry run."""
    for line in errors:
        click.echo(f"Error: {line}", err=True)
    return int(bool(errors))


def describe_duration(experiment: Experiment, counted: Mapping[Kind, Forecast]) -> str:
    """Return how long the missing trials will take, and the basis of this estimate; empty if there is none."""
    if not experiment.missing or not (counted or experiment.records):
        return ""
    settings = experiment.spec.execution
    if settings.executor == "ray" and settings.workers is None:
        return ""  # only the cluster knows how many workers fit
    from clbench.core.device import pick_device
    from clbench.execution.progress import clock
    from clbench.execution.run import plan_workers
    from clbench.report.formatting import plural

    try:
        plan, device = plan_workers(experiment, ""), pick_device(experiment.spec.device).type
    except SpecError:  # the device is not on this machine; `measure_trial_speed` has said so
        return ""
    workers = 1 if plan.shrink and device != "cpu" else max(plan.workers, 1)
    time_left = TimeLeft(experiment.missing)
    time_left.ready(workers)
    threads = plan.start.threads_on(device)
    records = [record for record in experiment.records.values() if is_comparable(record, device, threads)]
    time_left.known(records)
    for record in records:
        if result := read_times(record):
            time_left.take_estimate(kind_of(record.trial), WorkEstimate(workload=result[0]))
    for kind, forecast in counted.items():
        time_left.take_estimate(kind, forecast.estimate)
    seconds = time_left.seconds(0.0)
    if seconds is None:
        return ""
    timed_count = sum(map(len, time_left.earlier.values()))
    basis = (f"from the times of {plural(timed_count, 'trial')} here" if timed_count else
             "from FLOPs and a few steps of the model, timed now; it may well be half or twice that")
    kinds = {kind_of(planned.trial): planned.label for planned in experiment.missing}
    uncounted = {label for kind, label in kinds.items() if kind not in time_left.work and kind not in time_left.earlier}
    remark = f"; {plural(len(uncounted), 'method')} that cannot be counted taken for the mean" if uncounted else ""
    return (f"{'about' if timed_count else 'roughly'} {clock(seconds)} for {plural(len(experiment.missing), 'trial')} "
            f"with {plural(workers, 'worker')}, {basis}{remark}")


def state(record: Record | None, experiment: Experiment) -> str:
    """Return the state of a trial, and whether its record is stale or lacks requested results."""
    if record is None:
        return "missing"
    if missing := experiment.staleness.lacking.get(record.key):
        return f"{record.status}, without {missing.partition(' (')[0]}"
    return f"{record.status}, stale" if record.key in experiment.staleness.reasons else record.status


def cells(trainable: Sequence[int], train_flops: Sequence[int] | None, inference_flops: Sequence[int]) -> list[str]:
    """Return three cells: trainable parameters of the last task, all training FLOPs, and last FLOPs per sample.

    A value that is not known is a dash.
    """
    return [f"{trainable[-1]:,}" if trainable else NONE,
            format_scaled(sum(train_flops)).strip() if train_flops else NONE,
            format_scaled(inference_flops[-1]).strip() if inference_flops else NONE]


def forecasts(experiment: Experiment) -> tuple[dict[Kind, Forecast], list[str]]:
    """Return the forecasts for the missing trials, by setting and method, and a line for each that cannot be built.

    Raises:
        ClbenchError: as `listing`.
    """
    from clbench.execution.reuse import check_inputs
    from clbench.execution.workers.plan import Listener, PreflightChecks, refuse_default_domain

    checks = PreflightChecks(experiment.missing, Listener())
    kinds = len(checks.left)
    if not kinds:
        return {}, []
    try:
        check_inputs([planned.trial for planned in checks.left], experiment.spec.execution, experiment.registry)
    except MissingDataError as error:  # reported before torch is imported
        click.echo(f"Note: {error}; FLOPs are counted once the data are there", err=True)
        return {}, []
    from clbench.accounting.count import count
    from clbench.accounting.estimator import counted_work, data_bytes, storage_line
    from clbench.accounting.shapes import stream_without_values
    from clbench.data.datasets import without_downloads
    from clbench.data.own.instruction_streams import examples
    from clbench.execution.trial_record import describe_training
    from clbench.execution.trial_runner import TrialRunner

    settings = experiment.spec.execution.model_copy(update={"compile": False})
    runner = TrialRunner(settings, "cpu", "", experiment.registry)
    counted: dict[Kind, Forecast] = {}
    speed: Speed | None = None
    notes: dict[str, None] = {}
    errors: list[str] = []
    scenarios = {planned.trial.scenario for planned in experiment.planned}
    while planned := checks.next():
        name = planned.label + (f" ({planned.trial.scenario})" if len(scenarios) > 1 else "")
        if sys.stderr.isatty():  # a method on a large model takes seconds
            click.echo(f"counting {name} ({kinds - len(checks.left)} of {kinds})", err=True)
        stream = None
        try:
            with without_downloads():
                stream = runner.stream(planned.trial)
            refuse_default_domain(planned, stream, experiment.registry)
            lines = describe_training(planned.trial, planned.label, stream, runner.settings)
            notes |= dict.fromkeys([*lines, *stream.notes])
            if stream.predicts_tokens:
                notes |= dict.fromkeys(examples(stream, planned.trial.benchmark.options["tokenizer"]))
            result = count(planned, stream_without_values(stream), experiment.registry, training=True,
                           cache_bytes=settings.cache_bytes)
        except MissingDataError as error:
            notes[f"{error}; FLOPs are counted once the data are there"] = None
            checks.skip_setting(planned)
        except ClbenchError as error:
            checks.refused(planned, error)
        except Exception as error:  # a run would store the error in the trial's record
            if stream is not None and (problem := build_problem(planned, stream, runner)):
                errors.append(f"{name}: {problem}")
            else:
                notes[f"{name}: cannot be counted, {with_place(error, planned, experiment.registry)}"] = None
        else:
            if result.note and not result.kept and (problem := build_problem(planned, stream, runner)):
                errors.append(f"{name}: {problem}")
                continue
            speed = speed or measure_trial_speed(planned, stream, experiment)
            inference = [] if result.flops is None else [result.flops]
            counted[kind_of(planned.trial)] = Forecast(
                cells(result.trainable, result.train_flops, inference),
                WorkEstimate(workload=counted_work(result, stream), speed=speed))
            notes |= {f"{name}: {note}": None for note in result.notes}
            extra = result.bytes[-1] - result.model_bytes if result.kept else 0
            if not stream.predicts_tokens and has_slow_heads(
                    planned.trial, result.trainable, [stored.parameters for stored in result.kept], result.steps):
                notes[f"{name} trains a pretrained backbone and its heads with one low learning rate; new heads need a "
                      "higher one (--head-lr, see docs/pretrained.md)"] = None
            if line := storage_line(planned.label, extra, data_bytes(stream), result.keeps_less):
                notes[line] = None
    for note in notes:
        click.echo(f"Note: {note}", err=True)
    return counted, errors


def build_problem(planned: PlannedTrial, stream: Stream, runner: TrialRunner) -> str:
    """Return the error of building a trial's strategy on a model with values; empty if it can be built.

    A method that cannot be counted may only need the values that shapes do not have.
    """
    try:
        runner.build(planned.trial, stream)
    except Exception as error:  # the code of a method can raise any error
        return with_place(error, planned, runner.registry)
    return ""


def with_place(error: Exception, planned: PlannedTrial, registry: Registry) -> str:
    """Return the error of a trial's method in one line, with the file and line of user code that it comes from."""
    place = users_place(error, package_of(registry.strategy(planned.trial.method.name).strategy))
    return typed_message(error) + (f" ({place})" if place else "")


def measure_trial_speed(planned: PlannedTrial, stream: Stream, experiment: Experiment) -> Speed | None:
    """Return how fast a trial's model is trained here, with the threads of a worker; None if that fails."""
    import torch

    from clbench.accounting.estimator import measure_speed
    from clbench.core.device import pick_device
    from clbench.execution.run import plan_workers

    previous_threads = torch.get_num_threads()
    try:
        device = pick_device(experiment.spec.device)
        torch.set_num_threads(plan_workers(experiment, "").start.threads_on(device.type) or previous_threads)
        return measure_speed(planned.trial, stream.to(device), experiment.registry).speed
    except Exception as error:  # the run itself will report the cause
        click.echo(f"Note: no step of the model could be timed: {typed_message(error)}", err=True)
        return None
    finally:
        torch.set_num_threads(previous_threads)
