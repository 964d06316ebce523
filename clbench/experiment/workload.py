"""What a trial has to do, in steps and FLOPs, and how fast a machine does it: what estimates of time stand on."""

from __future__ import annotations

from collections.abc import Sequence

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


class WorkEstimate(BaseModel):
    """What is known of a trial before it runs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    workload: Workload | None = None  # None: it cannot be counted on shapes
    speed: Speed | None = None  # where it was measured


def workload(steps: Sequence[int], train_flops: Sequence[int], inference_flops: Sequence[float],
             tested: int) -> Workload:
    """Return the work on a stream from that on each task, the FLOPs of predicting a sample after it, and test samples.

    Row 0 costs what row 1 does.

    >>> workload([5, 10], [50, 100], [3, 4], 30).test_flops
    [90, 90, 120]
    """
    rows = [inference_flops[0], *inference_flops]
    return Workload(steps=list(steps), train_flops=list(train_flops), test_flops=[round(tested * row) for row in rows])
