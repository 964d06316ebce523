"""What a trial has to do, in steps and FLOPs, and how fast a machine does it: what estimates of time stand on."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from pydantic import BaseModel, ConfigDict


class Workload(BaseModel):
    """The work of a trial. T tasks; row k of the test stands after k learned tasks."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: list[int]  # of training on each task
    train_flops: list[int]  # likewise
    test_flops: list[int]  # of each row, T + 1 of them

    def amount(self, flops_of_a_step: float, learned: int | None = None) -> float:
        """Return all of the work in steps, where so many FLOPs take as long as what a step costs without any.

        With `learned` it is the work on so many tasks and their rows.
        """
        rows = None if learned is None else learned + 1
        flops = sum(self.train_flops[:learned]) + sum(self.test_flops[:rows])
        return sum(self.steps[:learned]) + flops / flops_of_a_step

    def share(self, task: int, flops_of_a_step: float) -> float:
        """Return which share of the work is over, from 0 to 1, once so many tasks are learned and their rows filled."""
        if task == 0:
            return 0.0
        return self.amount(flops_of_a_step, task) / max(self.amount(flops_of_a_step), 1e-9)


class Speed(BaseModel):
    """How fast a machine trains a model: what a step takes without FLOPs, in seconds, and FLOPs per second."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: float
    flops: float


class Foreseen(BaseModel):
    """What is known of a trial before it runs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    workload: Workload | None = None  # None: it cannot be counted on shapes
    speed: Speed | None = None  # where it was measured


def workload(steps: Sequence[int], train_flops: Sequence[int], inference_flops: Sequence[float],
             train_samples: Sequence[int], test_samples: Sequence[int]) -> Workload:
    """Return the work on a whole stream from that on its first tasks.

    Work on a task is in proportion to its samples, and beyond that goes on as it went from the last but one of the
    first tasks to the last of them: a memory that replays is filled by then, a network that grows by columns goes on.

    Args:
        steps: on each of the first tasks.
        train_flops: likewise.
        inference_flops: of predicting one sample after each of them.
        train_samples: of each task of the stream.
        test_samples: of each test set.

    >>> joint = workload([5, 10], [50, 100], [3, 3], [40, 40, 80], [10, 10, 10])
    >>> joint.steps, joint.train_flops, joint.test_flops
    ([5, 10, 30], [50, 100, 300], [90, 90, 90, 90])
    """
    tasks, tests = len(train_samples), sum(test_samples)
    per_sample = [[amount / samples for amount, samples in zip(given, train_samples, strict=False)]
                  for given in (steps, train_flops)]
    whole = [[round(amount * samples) for amount, samples in zip(extended(given, tasks), train_samples, strict=True)]
             for given in per_sample]
    rows = extended([inference_flops[0], *inference_flops], tasks + 1)
    return Workload(steps=whole[0], train_flops=whole[1], test_flops=[round(tests * flops) for flops in rows])


def extended(given: Sequence[float], length: int) -> list[float]:
    """Return a sequence of so many numbers, which goes on by the last difference, and not below 0.

    >>> extended([4, 1, 2], 5)
    [4, 1, 2, 3, 4]
    """
    found = list(given[:length])
    grows = [after - before for before, after in pairwise(found)][-1:] or [0]
    while len(found) < length:
        found.append(max(found[-1] + grows[0], 0))
    return found
