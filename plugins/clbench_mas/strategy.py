"""Memory aware synapses: importance is how much the outputs' squared length changes with a parameter.

    Omega <- Omega + mean over samples of |d ||f(x)||^2 / d theta|      after each task
    loss:  cross-entropy + lambda sum Omega (theta - theta*)^2          theta* the latest; no 1/2

f are the active outputs (logits) of the sample. As in the paper (section 4.1) the magnitude is taken sample by sample;
the authors' code and Avalanche's take that of a batch's gradient, in which samples cancel, so their strengths mean
something else. The sum over tasks is that of the authors' code; Avalanche averages old and new.
"""

from __future__ import annotations

import torch
from torch import Tensor

from clbench import Network, Options, Task, World
from clbench.strategy.per_sample_gradients import mean_gradients
from clbench.strategy.regularization import QuadraticPenalty
from clbench_mas import MASOptions


class MAS(QuadraticPenalty):
    """Fine-tuning with the penalty whose importance is the outputs' sensitivity."""

    options: MASOptions

    def __init__(self, model: Network, world: World, options: Options | None = None) -> None:
        """Start with Omega = 0."""
        super().__init__(model, world, options or MASOptions())

    @property
    def weight(self) -> float:
        """Return the penalty's weight, half of which is the strength."""
        return 2 * self.options.strength

    def after_task(self, task: Task) -> None:
        """Add the task's importance and hold the parameters where they are."""
        samples = task.train.subset(self.options.samples, self.world.generator)
        self.anchor_here(mean_gradients(self, samples, task.index, read=self._active_outputs,
                                        seeds=lambda outputs, part: [2 * outputs], measure=torch.abs))

    def _active_outputs(self, logits: Tensor, tasks: Tensor) -> Tensor:
        """Return logits [N, C] with 0 where an output is not active for the sample's task."""
        return logits.masked_fill(~self.active[tasks], 0.0)
