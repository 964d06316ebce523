"""What a method will keep beside the model, told before it runs where that is more than the training data.

What a strategy keeps from the beginning is counted on the strategy itself, which a run builds anyway. What it adds
while it learns is counted on shapes: it is led through the first tasks with a few samples of each class, and the later
tasks are taken to add what these did. Memories of samples are then smaller than they will be, but those cannot be
larger than the data. This takes 10 to 300 ms, so a run does it only where it could find something, and for a moment in
all; a dry run counts every method to the end (`counting`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import torch

from clbench.accounting.counting import around
from clbench.core import seeds
from clbench.core.registry import Registry
from clbench.data.samples import Samples
from clbench.data.stream import Stream, stored
from clbench.experiment.trial import Trial
from clbench.strategy.base import Strategy, overrides
from clbench.training.budget import phases_of, steps_of, whole_phase
from clbench.training.building import build_model
from clbench.training.costs import measure, model_bytes, nbytes
from clbench.training.replica import Replica, begin_phase
from clbench.training.stream_loop import in_one_task

FLOOR = 100_000_000  # bytes that are no burden, however small the data are
SECONDS = 0.2  # of the processor, of counting on shapes, after which a run leaves it
TASKS = 3  # that are counted: enough to see what grows with the number of tasks, and with its square
PER_CLASS = 2  # samples that a strategy is led through; with one, some hold none out
MEGA = 1e6


def told(name: str, kept: int, data: int, keeps_less: str) -> str | None:
    """Return the line on what a method keeps, None where that is less than the data or no burden.

    Args:
        name: of the method.
        kept: bytes beside the model.
        data: bytes of all training samples of the stream.
        keeps_less: what makes it keep less, as `Strategy.keeps_less` says it.
    """
    if kept <= max(FLOOR, data):
        return None
    way = f"; {name.partition(':')[0]}:{keeps_less} keeps less" if keeps_less else ""
    return f"{name} stores {_megabytes(kept)} in addition to the model; the training data take {_megabytes(data)}{way}"


def data_bytes(stream: Stream) -> int:
    """Return the bytes of the training inputs of all tasks, as they are stored."""
    return sum(len(task.train) * nbytes(stored(task.train)[:1]) for task in stream.tasks)


class Foresight:
    """Looks ahead at what the methods of a run will keep."""

    def __init__(self, registry: Registry) -> None:
        """Start with all of the time."""
        self.registry = registry
        self.left = SECONDS

    def warning(self, trial: Trial, label: str, strategy: Strategy, stream: Stream) -> str | None:
        """Return the line on what a trial's method will keep, None where there is nothing to tell or to find out.

        Args:
            trial: the trial.
            label: what its method is called.
            strategy: its own, untrained.
            stream: its own.
        """
        size = model_bytes(strategy.model)  # with what the strategy has put into it, so that this is a lower bound
        kept, data = sum(measure(strategy).bytes.values()) - size, data_bytes(stream)
        if kept <= max(FLOOR, data):
            if self.left <= 0 or not grows(strategy) or room(strategy, size) + kept <= max(FLOOR, data):
                return None
            began = time.process_time()
            try:
                kept = expected(trial, stream, self.registry, began + self.left)
            except Exception:  # of a plugin, which may ask for values that shapes have not: the run itself will show
                return None
            finally:
                self.left -= time.process_time() - began
        return told(label, kept, data, strategy.keeps_less)


def grows(strategy: Strategy) -> bool:
    """Tell whether a strategy may keep more after a task than before, and whether that can be counted."""
    changes = overrides(strategy, "before_task") or overrides(strategy, "after_task")
    return changes and not strategy.owns_loop


def room(strategy: Strategy, size: int) -> int:
    """Return about how many bytes a strategy around a model of so many could come to keep, generously.

    For each pair of tasks a part of the network as large as all of it, and a square matrix in float64 for its widest
    tensor and for the features of each class.
    """
    world, features = strategy.world, strategy.model.head.in_features
    widest = max((side for tensor in (*strategy.parameters(), *strategy.buffers()) for side in tensor.shape), default=0)
    return world.tasks * (world.tasks + 1) // 2 * size + 8 * (widest**2 + world.classes * features**2)


def expected(trial: Trial, stream: Stream, registry: Registry, deadline: float = math.inf) -> int:
    """Return the bytes that a trial's method will keep beside the model after the last task.

    Past `deadline` (of `time.process_time`) it is what the method keeps after the tasks counted by then, at least one.
    """
    with torch.device("meta"):
        model, _ = build_model(trial.model, None, stream.input_shape, stream.classes, registry)
    size = model_bytes(model)
    with seeds.scope(0, "strategy"):
        short = few_samples(stream)
        strategy = around(model, trial.method, short, trial.scenario, trial.weights is not None, registry)
        if stream.hidden:
            short = in_one_task(short)
        replica = Replica(strategy, short, seed=0)
        kept = [sum(measure(strategy).bytes.values())]
        for index in range(min(TASKS, len(short.tasks))):
            if index and time.process_time() > deadline:
                return kept[-1] - size
            task = replica.begin(index)
            with replica.training(index):
                if strategy.phases(task):
                    steps = (whole_phase(trial.trained_by, stream).steps if stream.hidden
                             else steps_of(trial.trained_by, len(stream.tasks[index].train)))
                    for phase in phases_of(strategy, task, trial.trained_by, steps):
                        begin_phase(strategy, task, phase)
            replica.finish(task)
            kept.append(sum(measure(strategy).bytes.values()))
    return extended(kept, len(short.tasks)) - size


def extended(kept: Sequence[int], tasks: int) -> int:
    """Return what is kept after so many tasks, from what is kept before any and after each of the first.

    Each further task adds what the last one did, and more by as much as that was more than the one before had added.

    >>> extended([10, 11, 13, 16], 5)  # 1, 2, 3, and so 4 and 5
    25
    """
    counted = len(kept) - 1
    added = [after - before for before, after in pairwise(kept)][-2:]
    more = max(0, added[-1] - added[0]) if counted >= TASKS else 0
    left = tasks - counted
    return kept[-1] + left * added[-1] + more * left * (left + 1) // 2


def few_samples(stream: Stream) -> Stream:
    """Return a stream with some training samples of each class, whose inputs have no values; labels have."""
    tasks = []
    for task in stream.tasks:
        y, origin = task.train.y.cpu(), task.train.tasks.cpu()
        chosen = torch.cat([torch.nonzero(y == c)[:PER_CLASS, 0] for c in torch.unique(y)])
        x = stored(task.train)
        some = Samples(torch.empty(len(chosen), *x.shape[1:], dtype=x.dtype, device="meta"), y[chosen], origin[chosen])
        tasks.append(replace(task, train=some, test=some))
    return replace(stream, tasks=tuple(tasks))


def _megabytes(count: int) -> str:
    """Return bytes as megabytes, with two digits where they are few."""
    return f"{count / MEGA:,.0f} MB" if count >= 10 * MEGA else f"{count / MEGA:.2g} MB"
