"""Synaptic intelligence: importance is a parameter's share in the decrease of the loss, summed along its path.

    omega = - sum over steps of (d loss / d theta) (change of theta)
    Omega <- relu(Omega + omega / ((theta_end - theta_start)^2 + xi))   after each task
    loss:  cross-entropy + c sum Omega (theta - theta*)^2               theta* the latest; no 1/2

The gradient is that of the cross-entropy alone, as in the authors' code (ganguli-lab/pathint, `unreg_grads`): the
penalty's gradient, 2 c Omega (theta - theta*), is subtracted. Their code also has the relu, which the paper does not
mention. Without it, noise can make an importance negative and the loss unbounded. Van de Ven's and Avalanche's codes
take the gradient of the whole loss; Avalanche also clips Omega at 0.001. `gradient = total` is the form of van de Ven's
code: the gradient of the whole loss, and no relu.

The change that a step makes is known when the next step begins. Until then, the step's gradient and starting point are
stored in buffers. These are removed after the task.
"""

from __future__ import annotations

import torch
from torch import Tensor

from clbench import Network, Options, StreamInfo, Task
from clbench.strategy.regularization import QuadraticPenalty, slot
from clbench_si import SIOptions


class SI(QuadraticPenalty):
    """Fine-tuning with the penalty whose importance is the path integral of the gradient."""

    roles = (*QuadraticPenalty.roles, ("path__*", "importance"), ("before__*", "importance"), ("pull__*", "importance"))
    options: SIOptions

    def __init__(self, model: Network, stream_info: StreamInfo, options: Options | None = None) -> None:
        """Start with Omega = 0."""
        super().__init__(model, stream_info, options or SIOptions())

    @property
    def weight(self) -> float:
        """Return the weight of the penalty, which is twice the strength."""
        return 2 * self.options.strength

    def before_task(self, task: Task) -> None:
        """Start to record paths from the current parameters, and anchor the parameters there from now on."""
        super().before_task(task)
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                start = parameter.detach().clone()
                self.importance_and_anchor(name)[1].copy_(start)
                for kind, value in (("path", torch.zeros_like(start)), ("before", start),
                                    ("pull", torch.zeros_like(start))):
                    self.register_buffer(f"{kind}__{slot(name)}", value)

    @torch.no_grad()
    def edit_gradients(self, gradients: dict[str, Tensor]) -> dict[str, Tensor]:
        """Account for the previous step, and store this step's start and gradient. The gradients do not change."""
        for name, parameter in self.named_parameters():
            if name in gradients and f"path__{slot(name)}" in self._buffers:
                before, pull = self._account(name, parameter)
                importance, anchor = self.importance_and_anchor(name)
                before.copy_(parameter)
                pull.copy_(gradients[name])
                if self.options.gradient == "loss":
                    pull.sub_(self.weight * importance * (parameter - anchor))
        return gradients

    @torch.no_grad()
    def after_task(self, task: Task) -> None:
        """Compute the importance from the path, and anchor the parameters at their current values."""
        for name, parameter in self.named_parameters():
            if f"path__{slot(name)}" in self._buffers:
                self._account(name, parameter)
                importance, anchor = self.importance_and_anchor(name)
                path = self.get_buffer(f"path__{slot(name)}")
                moved = (parameter - anchor).square()
                importance.add_(path / (moved + self.options.damping))
                if self.options.gradient == "loss":
                    importance.relu_()
                anchor.copy_(parameter)
                for kind in ("path", "before", "pull"):
                    delattr(self, f"{kind}__{slot(name)}")

    def _account(self, name: str, parameter: Tensor) -> tuple[Tensor, Tensor]:
        """Add the gain of the step since `before` to the path, and return the buffers `before` and `pull`."""
        path, before, pull = (self.get_buffer(f"{kind}__{slot(name)}") for kind in ("path", "before", "pull"))
        path.sub_(pull * (parameter - before))
        return before, pull
