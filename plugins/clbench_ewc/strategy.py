"""Elastic weight consolidation: after each task, a quadratic penalty that holds what the task needs.

Loss: cross-entropy + strength/2 sum_i F_i (theta_i - theta*_i)^2, F the diagonal Fisher per sample (clbench.fisher).

`separate` is Kirkpatrick et al. 2017 (arXiv 1612.00796): one such sum for each old task t, with F_t taken at theta*_t.
Kept as it stands there it takes 2 T numbers per parameter after T tasks. A sum of quadratics is one quadratic, though,

    sum_t F_t (theta - theta*_t)^2 = F (theta - m)^2 + c,   F = sum_t F_t,  m = sum_t F_t theta*_t / F,

so this keeps F, m and the constant c: the same loss and gradient with 2 numbers per parameter however many tasks.
`online` is Schwarz et al. 2018 (arXiv 1805.06370): F <- gamma F + F_t, and the anchor is the latest theta. Their
rescaling of each task's F to a common norm is left out, as in van de Ven & Tolias.

Plain gradient steps diverge where lr * strength * F exceeds 2; Adam bounds its step and does not.

Reference codes: van de Ven's has the 1/2 and per-sample gradients as here; its version of 2019 (arXiv 1904.07734) takes
the label that the model predicts (fisher=predicted), later ones all labels. Mammoth's weighs a sample's squared
gradient by the probability of its label and has no 1/2. Avalanche 0.6 has no 1/2 and squares the mean gradient of each
batch. A strength from there means something else here.
"""

from __future__ import annotations

import torch
from torch import Tensor

from clbench import Batch, Network, Options, Strategy, Task, World
from clbench.errors import PluginError
from clbench.fisher import diagonal_fisher
from clbench_ewc import EWCOptions


class EWC(Strategy):
    """Fine-tuning with the penalty; the buffers `fisher__*`, `anchor__*` and `offset` are F, m and c."""

    roles = (("fisher__*", "importance"), ("anchor__*", "importance"), ("offset", "importance"))
    options: EWCOptions
    offset: Tensor

    def __init__(self, model: Network, world: World, options: Options | None = None) -> None:
        """Start with F = 0, which is no penalty."""
        super().__init__(model, world, options or EWCOptions())
        self.register_buffer("offset", torch.zeros_like(next(self.parameters()).detach().flatten()[0]))
        self._cover_parameters()

    def before_task(self, task: Task) -> None:
        """Take in parameters that are new or trained for the first time; nothing holds them yet."""
        self._cover_parameters()

    def loss(self, batch: Batch) -> Tensor:
        """Return the cross-entropy over the active outputs plus the penalty."""
        return super().loss(batch) + self.penalty()

    def penalty(self) -> Tensor:
        """Return strength/2 (sum F (theta - m)^2 + c), a scalar.

        The pull F (theta - m) is computed once, for the value and as the gradient; so only first derivatives are right.
        """
        total = self.offset
        for name, parameter in self.named_parameters():
            slot = _slot(name)
            if f"fisher__{slot}" in self._buffers:
                fisher, anchor = getattr(self, f"fisher__{slot}"), getattr(self, f"anchor__{slot}")
                shift = parameter - anchor
                total = total + torch.dot((fisher * shift).detach().flatten(), shift.flatten())
        return self.options.strength * (total - 0.5 * total.detach())

    def after_task(self, task: Task) -> None:
        """Add the task's Fisher, taken at the parameters as they are now."""
        new = diagonal_fisher(self, task.train, task.index, generator=self.world.generator, kind=self.options.fisher,
                              limit=self.options.fisher_samples)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if name not in new:
                    continue
                fisher, anchor = getattr(self, f"fisher__{_slot(name)}"), getattr(self, f"anchor__{_slot(name)}")
                if self.options.mode == "online":
                    fisher.mul_(self.options.gamma).add_(new[name])
                    anchor.copy_(parameter)
                    continue
                total = fisher + new[name]
                share = torch.where(total > 0, new[name] / total, 1.0)  # nothing held so far: the anchor is free
                shift = parameter - anchor
                self.offset += (fisher * share * shift.square()).sum()
                anchor.add_(share * shift)
                fisher.copy_(total)

    def _cover_parameters(self) -> None:
        """Register F = 0 and the present value for each trainable parameter that has no buffers yet."""
        for name, parameter in self.named_parameters():
            if not parameter.requires_grad:
                continue
            known = self._buffers.get(f"fisher__{_slot(name)}")
            if known is None:
                self.register_buffer(f"fisher__{_slot(name)}", torch.zeros_like(parameter, requires_grad=False))
                self.register_buffer(f"anchor__{_slot(name)}", parameter.detach().clone())
            elif known.shape != parameter.shape:
                raise PluginError(f"ewc: {name!r} changed its shape from {tuple(known.shape)} to "
                                  f"{tuple(parameter.shape)}; let a model grow by new parameters, not larger ones")


def _slot(name: str) -> str:
    """Return a parameter's name without dots, which a buffer's name may not have."""
    return name.replace(".", "__")
