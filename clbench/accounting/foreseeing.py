"""What trials will have to do and how fast this machine does it, found out before they run and in little time.

A run measures a few steps of the model as plain fine-tuning trains it, and takes that for any method's work until the
method has been seen: no code of a plugin runs but in its trials. A dry run counts each method on shapes (`counting`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from clbench.accounting.counting import Count
from clbench.accounting.flops import FlopCount
from clbench.core import seeds
from clbench.core.device import synchronize
from clbench.core.registry import Registry
from clbench.data.stream import Stream
from clbench.experiment.spec import Recipe
from clbench.experiment.trial import Trial
from clbench.experiment.workload import Foreseen, Speed, Workload, workload
from clbench.strategy.base import Batch, Strategy
from clbench.training.budget import steps_of
from clbench.training.building import build_model, channels_last, world_of
from clbench.training.loop import take_step
from clbench.training.steps import make_engine

PILOT_SECONDS = 0.1  # of steps that are timed, of each size
MOST_SECONDS = 1.0  # that one of them is to take
FEW = 4  # samples in a step that shows what a step costs by itself


class Pilot(NamedTuple):
    """What a few steps of a model showed: its speed, and FLOPs of training on a sample and of predicting one."""

    speed: Speed
    train_flops: float
    test_flops: float


class Foreseer:
    """Foresees the trials of a run; the model's steps are measured once."""

    def __init__(self, registry: Registry) -> None:
        """Know nothing yet."""
        self.registry = registry
        self.pilots: dict[str, Pilot | None] = {}

    def foresee(self, trial: Trial, stream: Stream) -> Foreseen:
        """Return what plain fine-tuning would do in a trial; nothing where a step fails, as its trial will show."""
        model = f"{trial.benchmark} {trial.model}"
        if model not in self.pilots:
            try:
                self.pilots[model] = pilot(trial, stream, self.registry)
            except Exception:
                self.pilots[model] = None
        found = self.pilots[model]
        return Foreseen() if found is None else Foreseen(workload=plain_work(found, trial.trained_by, stream),
                                                         speed=found.speed)


def plain_work(found: Pilot, recipe: Recipe, stream: Stream) -> Workload:
    """Return the work of plain fine-tuning on a stream: steps on all samples, and tests on those of all tasks."""
    samples = [len(task.train) for task in stream.tasks]
    steps = [steps_of(recipe, own) for own in samples]
    seen = [recipe.epochs * own if recipe.epochs else taken * recipe.batch_size
            for own, taken in zip(samples, steps, strict=True)]
    return workload(steps, [round(found.train_flops * own) for own in seen], [found.test_flops] * len(samples),
                    samples, [len(task.test) for task in stream.tasks])


def work_of(count: Count, stream: Stream) -> Workload | None:
    """Return the work on a stream as it was counted on shapes; None where the FLOPs were not."""
    if not count.train_flops or not count.row_flops:
        return None
    samples = [len(task.train) for task in stream.tasks]
    steps, flops, rows = count.steps, count.train_flops, [float(flops) for flops in count.row_flops]
    if stream.hidden:  # it was counted as one task
        steps, flops = ([round(amount[0] * own / sum(samples)) for own in samples] for amount in (steps, flops))
    return workload(steps, flops, rows, samples, [len(task.test) for task in stream.tasks])


def pilot(trial: Trial, stream: Stream, registry: Registry) -> Pilot:
    """Return what some steps of a trial's model show, by the experiment's recipe, on few samples and on many.

    Nothing is left of it: the model is another one, and the generators go on from where they stood.
    """
    recipe, samples = trial.recipe, stream.tasks[0].train
    device = stream.tests.y.device
    with seeds.scope(0, "pilot"):
        model, _ = build_model(trial.model, None, stream.input_shape, stream.classes, registry)
        world = world_of(stream, trial.scenario, 0, False)
        strategy = Strategy(channels_last(model.to(device)), world).to(device).train()
        strategy.active.fill_(True)
        engine = make_engine([strategy], recipe, None)

        def batch(size: int) -> Batch:
            part = samples.take(torch.arange(size, device=samples.index_device))
            return Batch(world.prepare(part.x), part.y, part.tasks, 0)

        def timed(size: int) -> tuple[int, int, float]:
            some = batch(size)
            with FlopCount() as count:
                take_step(engine, [some])  # the first is slow, too
            return size, count.total, seconds_of(lambda: take_step(engine, [some]), device)

        few, own, short = timed(min(FEW, len(samples)))
        bearable = max(2, int(MOST_SECONDS / short)) * FEW
        many, flops, long = timed(min(recipe.batch_size, bearable, len(samples)))
        strategy.eval()
        with torch.no_grad(), FlopCount() as tested:
            strategy.predict(batch(few).x, 0 if world.task_given else None)
    rate = (flops - own) / (long - short) if flops > own and long > short else flops / long
    return Pilot(Speed(step=max(short - own / rate, long / 1000), flops=max(rate, 1.0)), flops / many,
                 tested.total / few)


def seconds_of(step: Callable[[], object], device: torch.device) -> float:
    """Return the seconds that a step takes, the mean of a few."""
    taken, began = 0, time.perf_counter()
    while taken == 0 or time.perf_counter() - began < PILOT_SECONDS:
        step()
        synchronize(device)
        taken += 1
    return (time.perf_counter() - began) / taken
