"""The work of a trial, in steps and FLOPs, and the speed of a machine. Run times are estimated from these."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict


class Workload(BaseModel):
    """The work of a trial on T tasks. Row k of the matrix R is evaluated after k learned tasks."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: list[int]  # optimizer steps of training on each task
    train_flops: list[int]  # FLOPs of training on each task
    test_flops: list[int]  # FLOPs of evaluating each of the T + 1 rows

    def amount(self, flops_of_a_step: float, learned: int | None = None) -> float:
        """Return the work as a number of steps, with FLOPs converted to steps.

        `flops_of_a_step` FLOPs take as long as the part of a step that does not depend on FLOPs. With `learned`, only
        the first `learned` tasks and the rows up to them count.
        """
        rows = None if learned is None else learned + 1
        flops = sum(self.train_flops[:learned]) + sum(self.test_flops[:rows])
        return sum(self.steps[:learned]) + flops / flops_of_a_step

    def share(self, task: int, flops_of_a_step: float) -> float:
        """Return the share of the work, from 0 to 1, that is done after `task` tasks and the rows up to them."""
        if task == 0:
            return 0.0
        return self.amount(flops_of_a_step, task) / max(self.amount(flops_of_a_step), 1e-9)


class Speed(BaseModel):
    """The speed at which a machine trains a model: seconds per step without its FLOPs, and FLOPs per second."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: float
    flops: float


class WorkEstimate(BaseModel):
    """The workload of a trial and the speed of the machine, as far as they are known before the trial runs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    workload: Workload | None = None  # None if it cannot be counted on shapes
    speed: Speed | None = None  # None if it was not measured


def workload(steps: Sequence[int], train_flops: Sequence[int], inference_flops: Sequence[float],
             tested: int) -> Workload:
    """Return the work of a trial on a stream. Row 0 of R is assumed to cost as much as row 1.

    Args:
        steps: the optimizer steps on each task.
        train_flops: the FLOPs of training on each task.
        inference_flops: the FLOPs of predicting one sample after each task.
        tested: the number of test samples in each row.

    >>> workload([5, 10], [50, 100], [3, 4], 30).test_flops
    [90, 90, 120]
    """
    rows = [inference_flops[0], *inference_flops]
    return Workload(steps=list(steps), train_flops=list(train_flops), test_flops=[round(tested * row) for row in rows])
