"""Memory aware synapses: importance is how much the outputs' squared length changes with a parameter.

    Omega <- Omega + mean over samples of |d ||f(x)||^2 / d theta|      after each task
    loss:  cross-entropy + lambda sum Omega (theta - theta*)^2          theta* the latest; no 1/2

f are the active outputs (logits) of the sample. As in the paper (section 4.1), the magnitude is taken sample by sample.
The authors' code, Hsu et al.'s and Avalanche's take the magnitude of a batch's mean gradient, in which samples cancel.
The option `batch` does the same: importance is then a mean over random batches of a task, all with the same weight (the
last one may be smaller). A strength then has another meaning. Hsu et al. also take the mean of the squared outputs
instead of their sum. With C outputs, their coefficient is C times the strength here. Importance is summed over tasks as
in the authors' code; Avalanche averages old and new.
"""

from __future__ import annotations

import torch
from torch import Tensor

from clbench import Network, Options, Samples, StreamInfo, Task
from clbench.strategy.per_sample_gradients import evaluating, mean_gradients
from clbench.strategy.regularization import QuadraticPenalty
from clbench_mas import MASOptions


class MAS(QuadraticPenalty):
    """Fine-tuning with the penalty whose importance is the outputs' sensitivity."""

    options: MASOptions

    def __init__(self, model: Network, stream_info: StreamInfo, options: Options | None = None) -> None:
        """Start with Omega = 0."""
        super().__init__(model, stream_info, options or MASOptions())

    @property
    def weight(self) -> float:
        """Return the weight of the penalty, which is twice the strength."""
        return 2 * self.options.strength

    def after_task(self, task: Task) -> None:
        """Add the task's importance, and anchor the parameters at their current values."""
        samples = task.train.subset(self.options.samples, self.stream_info.generator)
        if self.options.batch > 1:
            self.anchor_here(self._of_batches(samples, task.index))
        else:
            self.anchor_here(mean_gradients(self, samples, task.index, read=self._active_outputs,
                                            seeds=lambda outputs, part: [2 * outputs], measure=torch.abs))

    def _of_batches(self, samples: Samples, task: int) -> dict[str, Tensor]:
        """Return the mean over random batches of |d mean ||f(x)||^2 / d theta|, by name of each trainable parameter."""
        parameters = {name: p for name, p in self.named_parameters() if p.requires_grad}
        sums = {name: torch.zeros_like(p, requires_grad=False) for name, p in parameters.items()}
        if any(p.is_meta for p in parameters.values()):
            return sums
        batches = torch.split(torch.randperm(len(samples), generator=self.stream_info.generator), self.options.batch)
        with evaluating(self), torch.enable_grad():
            for index in batches:
                batch = samples.take(index.to(samples.index_device))
                outputs = self._active_outputs(self(self.stream_info.prepare(batch.x), task), batch.tasks)
                length = outputs.square().sum(1).mean()
                gradients = torch.autograd.grad(length, list(parameters.values()), allow_unused=True)
                for name, gradient in zip(parameters, gradients, strict=True):
                    if gradient is not None:
                        sums[name] += gradient.abs() / len(batches)
        return sums

    def _active_outputs(self, logits: Tensor, tasks: Tensor) -> Tensor:
        """Return logits [N, C] with 0 where an output is not active for the sample's task."""
        return logits.masked_fill(~self.class_mask[tasks], 0.0)
