"""Quick estimates before a trial runs: of the time that it takes, and of the storage of its method.

Time: clbench measures a few steps of sequential fine-tuning of the model. They stand for every method until a trial of
the method has ended, because the code of a plugin runs only in its trials.

Storage: the bytes that a strategy stores from the start, counted on the strategy itself, which a run builds anyway.

`--dry-run` counts both for each method (`clbench.accounting.count`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from clbench.accounting.count import Count
from clbench.accounting.flops import FlopCount
from clbench.core import seeds
from clbench.core.device import synchronize
from clbench.core.registry import Registry
from clbench.data.stream import Stream, stored_inputs
from clbench.experiment.trial import Trial
from clbench.experiment.workload import Speed, WorkEstimate, Workload, workload
from clbench.report.formatting import number
from clbench.strategy.base import Batch, Strategy
from clbench.training import precision
from clbench.training.budget import steps_of
from clbench.training.building import build_model, channels_last, stream_info_of
from clbench.training.costs import measure, model_bytes
from clbench.training.steps import make_train_step, take_step

TIMED_SECONDS = 0.05  # minimum for all timed steps of one batch size
MOST_SECONDS = 1.0  # intended maximum for one timed step
FEW = 4  # samples in a small step, which shows the fixed costs of a step
FLOOR = 100_000_000  # bytes up to which there is no warning, even if the data are small


class ModelSpeed(NamedTuple):
    """The measured speed of a model, and the FLOPs of training on one sample and of predicting one."""

    speed: Speed
    train_flops: float
    test_flops: float


class CostEstimator:
    """Estimates the costs of the trials of a run; the speed of each model is measured once."""

    def __init__(self, registry: Registry) -> None:
        """Start without measured speeds."""
        self.registry = registry
        self.speeds: dict[str, ModelSpeed | None] = {}

    def estimate_time(self, trial: Trial, stream: Stream) -> WorkEstimate:
        """Return the workload of sequential fine-tuning in a trial, and its speed; nothing if a step of it fails."""
        model = f"{trial.benchmark} {trial.model}"
        if model not in self.speeds:
            try:
                self.speeds[model] = measure_speed(trial, stream, self.registry)
            except Exception:  # the trial itself will report the error
                self.speeds[model] = None
        measured = self.speeds[model]
        if measured is None:
            return WorkEstimate()
        return WorkEstimate(workload=plain_work(measured, trial, stream), speed=measured.speed)


def plain_work(measured: ModelSpeed, trial: Trial, stream: Stream) -> Workload:
    """Return the workload of sequential fine-tuning on a stream: its training steps and its tests on all tasks."""
    recipe, samples = trial.trained_by, [len(task.train) for task in stream.tasks]
    steps = [steps_of(recipe, size) for size in samples]
    drawn = [recipe.epochs * size * (recipe.repeats or 1) if recipe.epochs else count * recipe.batch_size
             for size, count in zip(samples, steps, strict=True)]
    return workload(steps, [round(measured.train_flops * size) for size in drawn],
                    [measured.test_flops] * len(samples), sum(len(task.test) for task in stream.tested_tasks))


def counted_work(count: Count, stream: Stream) -> Workload | None:
    """Return the workload on a stream that a dry run has counted; None if it did not count the FLOPs."""
    if not count.train_flops or not count.sample_flops:
        return None
    steps, flops, rows = count.steps, count.train_flops, [float(row) for row in count.sample_flops]
    if stream.hidden:  # the dry run counted it as one task
        samples = [len(task.train) for task in stream.tasks]
        shares = [size / sum(samples) for size in samples]
        steps, flops = [round(steps[0] * share) for share in shares], [round(flops[0] * share) for share in shares]
        rows *= len(samples)
    return workload(steps, flops, rows, sum(len(task.test) for task in stream.tested_tasks))


def measure_speed(trial: Trial, stream: Stream, registry: Registry) -> ModelSpeed:
    """Return the speed of a trial's model, from steps with few and with many samples by the experiment's recipe.

    The steps train a model of their own, and the random generators are restored.
    """
    recipe, samples = trial.recipe, stream.tasks[0].train
    device = stream.tests.y.device
    with seeds.scope(0, "pilot"), precision.allow_tf32(recipe):
        model, _ = build_model(trial.model, None, stream.input_shape, stream.classes, registry)
        stream_info = stream_info_of(stream, trial.scenario, 0, False)
        strategy = Strategy(channels_last(model.to(device)), stream_info).to(device).train()
        strategy.class_mask.fill_(True)
        train_step = make_train_step([strategy], recipe, None)

        def first_batch(size: int) -> Batch:
            part = samples.take(torch.arange(size, device=samples.index_device))
            return strategy.collate([Batch(stream_info.prepare(part.x), part.y, part.tasks, 0)])[0]

        def timed(size: int) -> tuple[int, int, float]:
            batch = first_batch(size)
            with FlopCount() as count:
                take_step(train_step, [batch], recipe.accumulate)  # not timed, because the first step is slow
            return size, count.total, seconds_of(lambda: take_step(train_step, [batch], recipe.accumulate), device)

        few_samples, few_flops, few_seconds = timed(min(FEW, len(samples)))
        sample_limit = max(2, int(MOST_SECONDS / few_seconds)) * FEW
        many_samples, many_flops, many_seconds = timed(min(recipe.batch_size, sample_limit, len(samples)))
        strategy.eval()
        with torch.no_grad(), FlopCount() as tested:
            strategy.predict(first_batch(few_samples).x, 0 if stream_info.task_given else None)
    rate = many_flops / many_seconds
    if many_flops > few_flops and many_seconds > few_seconds:
        rate = (many_flops - few_flops) / (many_seconds - few_seconds)
    speed = Speed(step=max(few_seconds - few_flops / rate, many_seconds / 1000), flops=max(rate, 1.0))
    return ModelSpeed(speed, many_flops / many_samples, tested.total / few_samples)


def seconds_of(step: Callable[[], object], device: torch.device) -> float:
    """Return the mean seconds that a step takes, measured on a few steps."""
    repeats, began = 0, time.perf_counter()
    while repeats == 0 or time.perf_counter() - began < TIMED_SECONDS:
        step()
        synchronize(device)
        repeats += 1
    return (time.perf_counter() - began) / repeats


def storage_line(name: str, extra: int, data: int, keeps_less: str, verb: str = "stores") -> str | None:
    """Return a warning about the storage of a method; None if it is less than that of the data, or small.

    `extra` is the number of bytes that the method stores in addition to the model, and `data` that of all training
    samples. `keeps_less` is the option that makes the method store less (`Strategy.keeps_less`). `verb` says whether
    `extra` is exact ("stores") or a lower bound ("stores at least").
    """
    if extra <= max(FLOOR, data):
        return None
    hint = f"; {name.partition(':')[0]}:{keeps_less} keeps less" if keeps_less else ""
    stored_bytes, data_size = number(extra, "bytes"), number(data, "bytes")
    return f"{name} {verb} {stored_bytes} in addition to the model; the training data take {data_size}{hint}"


def data_bytes(stream: Stream) -> int:
    """Return the bytes of the training inputs of all tasks, as they are stored."""
    return sum(len(task.train) * stored_inputs(task.train)[:1].nbytes for task in stream.tasks)


def storage_warning(label: str, strategy: Strategy, stream: Stream) -> str | None:
    """Return a warning about the storage of an untrained strategy; None if it is small.

    A strategy can store more once it is trained, for example the importance of each weight.
    """
    extra = sum(measure(strategy).bytes.values()) - model_bytes(strategy.model)
    return storage_line(label, extra, data_bytes(stream), strategy.keeps_less, "stores at least")
