"""What trials will have to do and how fast this machine does it, found out before they run and in little time.

The work is counted on shapes (`counting`), on the first tasks only; later ones are taken to go on as these do. The
speed is measured on a few real steps of the model as plain fine-tuning trains it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from clbench.core import seeds
from clbench.core.device import synchronize
from clbench.core.registry import Registry
from clbench.data.stream import Stream
from clbench.experiment.trial import PlannedTrial, Trial
from clbench.experiment.workload import Foreseen, Speed, Workload, workload
from clbench.strategy.base import Batch, Strategy
from clbench.training.flops import FlopCount
from clbench.training.stacking import make_engine
from clbench.training.trials.building import build_model, channels_last, world_of
from clbench.training.trials.counting import Count, forecast
from clbench.training.trials.rehearsal import stream_without_values

SECONDS = 3.0  # of the processor, of counting, after which a run leaves it; a kind takes about 50 ms
TASKS = 3  # that are counted
PILOT_SECONDS = 0.1  # of steps that are timed, of each size
MOST_SECONDS = 1.0  # that one of them is to take
FEW = 4  # samples in a step that shows what a step costs by itself


class Foreseer:
    """Foresees the trials of a run, one of each kind."""

    def __init__(self, registry: Registry) -> None:
        """Start with all of the time."""
        self.registry = registry
        self.left = SECONDS
        self.known: dict[tuple[str, ...], Workload | None] = {}  # a method's work in other scenarios is about the same
        self.speed: Speed | None = None
        self.measured = False

    def foresee(self, planned: PlannedTrial, stream: Stream) -> Foreseen:
        """Return what is known of a trial beforehand; of a plugin that asks shapes for values that is nothing."""
        trial = planned.trial
        if not self.measured:
            self.measured = True
            self.speed = self._try(lambda: measure_speed(trial, stream, self.registry))
        kind = (str(trial.benchmark), str(trial.model), trial.row)
        if kind not in self.known and self.left > 0:
            self.known[kind] = self._try(lambda: count_work(planned, stream, self.registry))
        return Foreseen(workload=self.known.get(kind), speed=self.speed)

    def _try(self, find: Callable[[], Any]) -> Any:
        """Return what is found out, None where a plugin fails; the run itself will show why."""
        began = time.process_time()
        try:
            return find()
        except Exception:
            return None
        finally:
            self.left -= time.process_time() - began


def count_work(planned: PlannedTrial, stream: Stream, registry: Registry) -> Workload | None:
    """Return the work of a trial, counted on its first tasks; None where shapes do not tell."""
    bare = stream_without_values(stream)
    return work_of(forecast(planned, replace(bare, tasks=bare.tasks[:TASKS]), registry), stream)


def work_of(count: Count, stream: Stream) -> Workload | None:
    """Return the work on a stream that was counted on it or on its first tasks; None where the FLOPs were not."""
    if not count.train_flops or not count.row_flops:
        return None
    samples = [len(task.train) for task in stream.tasks]
    steps, flops, rows = count.steps, count.train_flops, [float(flops) for flops in count.row_flops]
    if stream.hidden:  # it was counted as one task
        few = samples[:TASKS] if len(count.steps) == 1 else samples
        steps, flops = ([round(sum(amount) * own / sum(few)) for own in few] for amount in (steps, flops))
    return workload(steps, flops, rows, samples, [len(task.test) for task in stream.tasks])


def measure_speed(trial: Trial, stream: Stream, registry: Registry) -> Speed:
    """Return how fast a trial's model is trained here, by the recipe of the trial, from steps on few and on many.

    Nothing is left of it: the model is another one, and the generators go on from where they stood.
    """
    recipe, samples = trial.recipe, stream.tasks[0].train
    device = stream.tests.y.device
    with seeds.scope(0, "speed"):
        model, _ = build_model(trial.model, None, stream.input_shape, stream.classes, registry)
        world = world_of(stream, trial.scenario, 0, False)
        strategy = Strategy(channels_last(model.to(device)), world).to(device).train()
        strategy.active.fill_(True)
        engine = make_engine([strategy], recipe, None)

        def timed(size: int) -> tuple[int, float]:
            part = samples.take(torch.arange(size, device=samples.index_device))
            batch = Batch(world.prepare(part.x), part.y, part.tasks, 0)
            with FlopCount() as count:
                engine.step([batch])  # the first is slow, too
            return count.total, seconds_of(lambda: engine.step([batch]), device)

        few, short = timed(min(FEW, len(samples)))
        bearable = max(2, int(MOST_SECONDS / short)) * FEW
        many, long = timed(min(recipe.batch_size, bearable, len(samples)))
    rate = (many - few) / max(long - short, 1e-9)
    if many <= few or long <= short:  # one batch is as large as the other, or too small to tell
        rate = many / long
    return Speed(step=max(short - few / rate, long / 1000), flops=rate)


def seconds_of(step: Callable[[], object], device: torch.device) -> float:
    """Return the seconds that a step takes, the mean of a few."""
    taken, began = 0, time.perf_counter()
    while taken == 0 or time.perf_counter() - began < PILOT_SECONDS:
        step()
        synchronize(device)
        taken += 1
    return (time.perf_counter() - began) / taken
