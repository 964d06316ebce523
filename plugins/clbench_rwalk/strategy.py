"""RWalk: importance is a running Fisher information (EWC++) plus a score of the gain along a parameter's path.

    F <- alpha g^2 + (1 - alpha) F                                      in each step, g the gradient of the batch
    s <- s + relu(dL / (1/2 F (change of theta)^2 + epsilon))           after each interval of steps
    dL = - sum over the interval's steps of g (change of theta)
    loss:  cross-entropy + lambda sum (F' + s') (theta - theta*)^2      theta* the latest; no 1/2

A score is thus the fall of the loss per distance in the space of the model's distributions. After the first task, s is
the task's own score. After each later task it is the mean of the old scores and the task's, so that the penalty does
not grow with the number of tasks. F' and s' are F and s, scaled to [0, 1] by the smallest and largest value of all
parameters together. The gradient is that of the cross-entropy alone: the penalty's is subtracted, as in `si`.

The paper also stores samples of old tasks in scenario `class`. Here nothing is stored.

The gradient is the mean of the batch, as in both codes below, and F starts as the square of the first gradient, as in
Avalanche. An interval that the end of a task cuts short counts too. Differences to these codes:

- facebookresearch/agem (the first author's): F starts at 0, because it is set before the first gradient. It is updated
  once in an interval, by the sum of squared gradients since the task began, divided by the interval's steps. The
  denominator has no 1/2. Unfinished intervals are dropped. After a later task, the mean of old and new scores is added
  to the old scores instead of replacing them.
- Avalanche 0.6 sets epsilon to the machine precision (the default here is the first author's), clips the negative
  scores of a task and not of an interval, and divides F and s by their largest values only.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from clbench import Network, Options, StreamInfo, Task
from clbench.strategy.regularization import QuadraticPenalty, slot
from clbench_rwalk import RWalkOptions

WALK = ("path", "before", "pull", "start", "gain")  # buffers of a task


class RWalk(QuadraticPenalty):
    """Fine-tuning with the penalty; the buffers `fisher__*` and `score__*` are F and s.

    There are further buffers while a task is trained. `start__*` are the parameters at the start of the interval, and
    `path__*` is dL since then. `before__*` are the parameters before the latest step, and `pull__*` is its gradient.
    `gain__*` is the task's own score.
    """

    roles = (*QuadraticPenalty.roles, *((f"{kind}__*", "importance") for kind in (*WALK, "fisher", "score")))
    options: RWalkOptions

    def __init__(self, model: Network, stream_info: StreamInfo, options: Options | None = None) -> None:
        """Start with F = s = 0."""
        self.steps, self.interval_steps = 0, 0  # number of steps in all tasks, and in the interval
        super().__init__(model, stream_info, options or RWalkOptions())

    @property
    def weight(self) -> float:
        """Return the weight of the penalty, which is twice the strength."""
        return 2 * self.options.strength

    def before_task(self, task: Task) -> None:
        """Start to record paths from the current parameters."""
        super().before_task(task)
        for name, parameter in self.named_parameters():
            if self.covers(name) and f"fisher__{slot(name)}" not in self._buffers:
                for kind in ("fisher", "score"):
                    self.register_buffer(f"{kind}__{slot(name)}", torch.zeros_like(parameter, requires_grad=False))
            if parameter.requires_grad:
                start = parameter.detach().clone()
                for kind in WALK:
                    value = start.clone() if kind in ("before", "start") else torch.zeros_like(start)
                    self.register_buffer(f"{kind}__{slot(name)}", value)

    @torch.no_grad()
    def edit_gradients(self, gradients: dict[str, Tensor]) -> dict[str, Tensor]:
        """Account for the previous step, update F, and store where this step starts. The gradients do not change."""
        self._account()
        if self.interval_steps == self.options.interval:
            self._close_interval()
        for name, parameter in self.named_parameters():
            if name in gradients and self._walks(name):
                importance, anchor = self.importance_and_anchor(name)
                pull, fisher = self._part("pull", name), self._part("fisher", name)
                pull.copy_(gradients[name] - self.weight * importance * (parameter - anchor))
                self._part("before", name).copy_(parameter)
                fisher.lerp_(pull.square(), self.options.alpha if self.steps else 1.0)
        self.steps += 1
        self.interval_steps += 1
        return gradients

    @torch.no_grad()
    def after_task(self, task: Task) -> None:
        """Compute the importance from F and the scores, and anchor the parameters at their current values."""
        self._account()
        self._close_interval()
        walked = {name: parameter for name, parameter in self.named_parameters() if self._walks(name)}
        for name in walked:
            score, gain = self._part("score", name), self._part("gain", name)
            score.copy_((score + gain) / 2 if task.index else gain)
        covered = [name for name, _ in self.named_parameters() if self.covers(name)]
        scaled = [scaled_together({name: self._part(kind, name) for name in covered}) for kind in ("fisher", "score")]
        for name in covered:
            self.importance_and_anchor(name)[0].copy_(scaled[0][name] + scaled[1][name])
        for name, parameter in walked.items():
            self.importance_and_anchor(name)[1].copy_(parameter)
            for kind in WALK:
                delattr(self, f"{kind}__{slot(name)}")

    def _account(self) -> None:
        """Add the gain of the latest step, by its gradient. A second call before the next step adds nothing."""
        for name, parameter in self.named_parameters():
            if self._walks(name):
                before = self._part("before", name)
                self._part("path", name).sub_(self._part("pull", name) * (parameter - before))
                before.copy_(parameter)

    def _close_interval(self) -> None:
        """Add the interval's scores, and start the next interval at the current parameters."""
        for name, parameter in self.named_parameters():
            if self._walks(name):
                path, start = self._part("path", name), self._part("start", name)
                distance = self._part("fisher", name) * (parameter - start).square() / 2
                self._part("gain", name).add_((path / (distance + self.options.damping)).relu_())
                path.zero_()
                start.copy_(parameter)
        self.interval_steps = 0

    def _walks(self, name: str) -> bool:
        """Return whether a parameter is trained in the current task."""
        return f"path__{slot(name)}" in self._buffers

    def _part(self, kind: str, name: str) -> Tensor:
        """Return a buffer that belongs to a parameter."""
        return self.get_buffer(f"{kind}__{slot(name)}")


def scaled_together(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors scaled to [0, 1] by the smallest and largest number in any of them; 0 if all are equal."""
    smallest = torch.stack([value.min() for value in values.values()]).min()
    largest = torch.stack([value.max() for value in values.values()]).max()
    width = (largest - smallest).clamp_min(torch.finfo(smallest.dtype).tiny)
    return {name: (value - smallest) / width for name, value in values.items()}
