"""What a dry run says of trials beside their state: what they train, and what they compute."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import click

from clbench.cli.counts import scaled
from clbench.core.errors import ClbenchError, DataError, MissingDataError
from clbench.experiment.trial import PlannedTrial
from clbench.experiment.workload import Foreseen, Speed
from clbench.report.formatting import NONE, by_task
from clbench.results.provenance import by_reason

if TYPE_CHECKING:
    from clbench.accounting.count import Count
    from clbench.data.stream import Stream
    from clbench.execution.run import Experiment
    from clbench.results.records import Record

HEADERS = ("key", "method", "scenario", "seed", "state", "trainable", "training FLOPs", "FLOPs per sample")


class Forecast(NamedTuple):
    """Parameters that the last task trains, FLOPs of training, and of predicting one sample in the end, as text."""

    trainable: str = NONE
    training: str = NONE
    inference: str = NONE
    foreseen: Foreseen = Foreseen()

    @property
    def texts(self) -> tuple[str, str, str]:
        """Return the figures."""
        return self[:3]


Kind = tuple[tuple[str, ...], str]  # setting and method


def listing(ready: Experiment, duration: bool = True) -> str:
    """Return a table of the trials: the state of each, and what it trains and computes.

    What is done has it in its record. The rest is counted on shapes, once for each setting and method. Notes go to
    standard error.

    Args:
        ready: the experiment.
        duration: whether a last line says how long the missing trials will take.

    Raises:
        ClbenchError: some trials cannot run as they are planned; a line for each mistake.
    """
    from tabulate import tabulate

    for line in by_reason((ready.records[key], reasons) for key, reasons in ready.staleness.reasons.items()):
        click.echo(f"Stale: {line}", err=True)
    counted = forecasts(ready)
    rows = []
    for planned in ready.planned:
        trial, record = planned.trial, ready.records.get(planned.trial.key)
        known = counted.get(kind(planned)) if record is None or record.status == "failed" else recorded(record)
        rows.append([trial.key, planned.label, trial.scenario, trial.seed, state(record, ready),
                     *(known or Forecast()).texts])
    table = tabulate(rows, headers=HEADERS, disable_numparse=True, colalign=("left",) * 5 + ("right",) * 3)
    told = needed(ready, {own: known.foreseen for own, known in counted.items()}) if duration else ""
    return f"{table}\n\n{told}" if told else table


def needed(ready: Experiment, foreseen: Mapping[Kind, Foreseen]) -> str:
    """Return how long the missing trials will take, and how that is known; empty where it is not.

    Args:
        ready: the experiment.
        foreseen: what was counted, by kind of trial.
    """
    if not ready.missing or not (foreseen or ready.records):
        return ""
    from clbench.core.device import pick_device
    from clbench.execution.pace import alike
    from clbench.execution.progress import clock, plural
    from clbench.execution.run import plan_workers
    from clbench.execution.time_left import TimeLeft

    missing, plan = ready.missing, plan_workers(ready, "")
    left, device = TimeLeft(missing), pick_device(ready.spec.device).type
    workers = 1 if plan.shrink and device != "cpu" else max(plan.workers, 1)
    left.ready(workers)
    left.known(r for r in ready.records.values() if alike(r, device, plan.start.threads))
    for planned in missing:
        left.foreseen(planned.trial.key, foreseen.get(kind(planned), Foreseen()), counted=True)
    seconds = left.seconds(0.0)
    if seconds is None:
        return ""
    told = left.paces
    basis = (f"from the times of {plural(told.records, 'trial')} here" if told.records else
             "from FLOPs and a few steps of the model, timed now; it may well be half or twice that")
    unknown = {p.label for p in missing if kind(p) not in told.works and kind(p) not in told.earlier}
    rest = f"; {plural(len(unknown), 'method')} that cannot be counted taken for the mean" if unknown else ""
    return (f"{'about' if told.records else 'roughly'} {clock(seconds)} for {plural(len(missing), 'trial')} with "
            f"{plural(workers, 'worker')}, {basis}{rest}")


def kind(planned: PlannedTrial) -> Kind:
    """Return what trials share that differ in their seed only."""
    return planned.trial.setting, planned.trial.row


def state(record: Record | None, ready: Experiment) -> str:
    """Return how far a trial is, and whether its record does not stand any more."""
    if record is None:
        return "missing"
    if asked := ready.staleness.lacking.get(record.key):
        return f"{record.status}, without {asked.partition(' (')[0]}"
    return f"{record.status}, stale" if record.key in ready.staleness.reasons else record.status


def recorded(record: Record) -> Forecast:
    """Return what a record says."""
    costs = record.costs
    return as_text(costs.trainable, costs.train_flops, costs.inference_flops[-1:])


def as_text(trainable: Sequence[int], train_flops: Sequence[int] | None, inference_flops: Sequence[int]) -> Forecast:
    """Return figures as text; a dash where there are none."""
    return Forecast(f"{trainable[-1]:,}" if trainable else NONE, flops(train_flops), flops(inference_flops))


def flops(counts: Sequence[int] | None) -> str:
    """Return the sum of some numbers with three digits and a prefix; a dash where there are none."""
    return scaled(sum(counts)).strip() if counts else NONE


def forecasts(ready: Experiment) -> dict[Kind, Forecast]:
    """Return what trials to be run will train and compute, by setting and method.

    Raises:
        ClbenchError: as `listing`.
    """
    first: dict[Kind, PlannedTrial] = {}
    for planned in ready.missing:
        first.setdefault(kind(planned), planned)
    if not first:
        return {}
    from clbench.execution.reuse import check_inputs

    try:
        check_inputs([planned.trial for planned in first.values()], ready.spec.execution, ready.registry)
    except MissingDataError as error:
        click.echo(f"Note: {error}; FLOPs are counted once the data are there", err=True)
        return {}
    from clbench.accounting.count import forecast
    from clbench.accounting.estimator import counted_work, data_bytes, storage_line
    from clbench.accounting.shapes import stream_without_values
    from clbench.data.datasets import without_downloads
    from clbench.execution.trial_runner import TrialRunner, describe_steps

    runner = TrialRunner(ready.spec.execution.model_copy(update={"compile": False}), "cpu", "", ready.registry)
    found: dict[Kind, Forecast] = {}
    speed: Speed | None = None
    problems: dict[str, ClbenchError] = {}
    notes: dict[str, None] = {}
    absent: set[tuple[str, ...]] = set()  # settings without a stream
    scenarios = {planned.trial.scenario for planned in ready.planned}
    for number, (own, planned) in enumerate(first.items(), start=1):
        name = planned.label + (f" ({planned.trial.scenario})" if len(scenarios) > 1 else "")
        if own[0] in absent:
            continue
        if sys.stderr.isatty():  # a method on a large model takes seconds
            click.echo(f"counting {name} ({number} of {len(first)})", err=True)
        try:
            with without_downloads():
                stream = runner.stream(planned.trial)
            steps = describe_steps(planned.trial, planned.label, stream, runner.settings)
            notes |= dict.fromkeys([*steps, *stream.notes])
            count = forecast(planned, stream_without_values(stream), ready.registry)
        except MissingDataError as error:
            notes[f"{error}; FLOPs are counted once the data are there"] = None
            absent.add(own[0])
        except ClbenchError as error:
            problems[str(error)] = error
            if isinstance(error, DataError):
                absent.add(own[0])
        except Exception as error:  # as in a run, where the trial's record has it
            notes[f"{name}: cannot be counted, {type(error).__name__}: {' '.join(str(error).split())}"] = None
        else:
            speed = speed or measured(planned, stream, ready)
            estimate = Foreseen(workload=counted_work(count, stream), speed=speed)
            inference = [] if count.flops is None else [count.flops]
            found[own] = as_text(count.trainable, count.train_flops, inference)._replace(foreseen=estimate)
            notes |= {f"{name}: {note}": None for note in remarks(count)}
            extra = count.bytes[-1] - count.model_bytes if count.kept else 0
            if line := storage_line(planned.label, extra, data_bytes(stream), count.keeps_less):
                notes[line] = None
    if problems:
        raise type(next(iter(problems.values())))("\n".join(problems))
    for note in notes:
        click.echo(f"Note: {note}", err=True)
    return found


def measured(planned: PlannedTrial, stream: Stream, ready: Experiment) -> Speed | None:
    """Return how fast a trial's model is trained here, with the threads of a worker; None where that fails."""
    import torch

    from clbench.accounting.estimator import measure_speed
    from clbench.core.device import pick_device
    from clbench.execution.run import plan_workers

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(plan_workers(ready, "").start.threads or before)
        return measure_speed(planned.trial, stream.to(pick_device(ready.spec.device)), ready.registry).speed
    except Exception as error:  # the run itself will show why: say only that there is no estimate from it
        click.echo(f"Note: no step of the model could be timed: {type(error).__name__}: {error}", err=True)
        return None
    finally:
        torch.set_num_threads(before)


def remarks(count: Count) -> list[str]:
    """Return what a count's figures do not say."""
    varying = [f"trains {by_task(count.trainable)}"] if len(set(count.trainable)) > 1 else []
    return [*varying, *count.remarks, *filter(None, [count.note])]
