"""Quadratic penalty on changes of parameters, weighted by importance: the base class of EWC, SI, MAS and L2.

    cross-entropy + weight/2 (sum F (theta - m)^2 + c)

The methods differ in the definition of F and in the time when it is computed. F, the anchor m and the constant c are
buffers. They have two values per parameter for any number of tasks, or one if F is equal for all (`no_importance`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor

from clbench.core.errors import PluginError
from clbench.core.options import Options
from clbench.core.renamed import Renamed
from clbench.models.network import Network
from clbench.strategy.base import Batch, Strategy, StreamInfo, Task


class QuadraticPenalty(Strategy, ABC):
    """Fine-tuning with the penalty; the buffers `importance__*`, `anchor__*` and `offset` are F, m and c.

    Subclasses define `weight` and call `anchor_here` or `add_anchor` in `after_task`.
    """

    roles: tuple[tuple[str, str], ...] = (("importance__*", "importance"), ("anchor__*", "importance"),
                                          ("offset", "importance"))
    inputs_only_through_model = loss_is_mean = True
    offset: Tensor
    hold, hold_too = Renamed("anchor_here"), Renamed("add_anchor")  # old names, until 0.3
    quadratic = Renamed("importance_and_anchor")

    def __init__(self, model: Network, stream_info: StreamInfo, options: Options | None = None) -> None:
        """Start with F = 0, so that there is no penalty."""
        super().__init__(model, stream_info, options)
        self.register_buffer("offset", torch.zeros_like(next(self.parameters()).detach().flatten()[0]))
        self._cover_parameters()

    @property
    @abstractmethod
    def weight(self) -> float:
        """Return the weight of the penalty, from the options."""

    def before_task(self, task: Task) -> None:
        """Add buffers for parameters that are new or trained for the first time, with F = 0."""
        self._cover_parameters()

    def loss(self, batch: Batch) -> Tensor:
        """Return the cross-entropy over the active outputs plus the penalty."""
        return super().loss(batch) + self.penalty()

    def penalty(self) -> Tensor:
        """Return weight/2 (sum F (theta - m)^2 + c), a scalar."""
        def importances_and_shifts() -> Iterator[tuple[Tensor, Tensor]]:
            for name, parameter in self.named_parameters():
                if self.covers(name):
                    importance, anchor = self.importance_and_anchor(name)
                    yield importance, parameter - anchor

        return quadratic_penalty(self.weight, self.offset, importances_and_shifts())

    def no_importance(self, parameter: Tensor) -> Tensor:
        """Return F = 0 for a parameter, in a shape that broadcasts to the parameter's shape. Default: this shape."""
        return torch.zeros_like(parameter, requires_grad=False)

    def covers(self, name: str) -> bool:
        """Return whether a parameter has buffers for F and m, because it is or was trainable."""
        return f"importance__{slot(name)}" in self._buffers

    def importance_and_anchor(self, name: str) -> tuple[Tensor, Tensor]:
        """Return F and m of a parameter that has these buffers (`covers`)."""
        return self.get_buffer(f"importance__{slot(name)}"), self.get_buffer(f"anchor__{slot(name)}")

    @torch.no_grad()
    def anchor_here(self, new: Mapping[str, Tensor], decay: float = 1.0) -> None:
        """Anchor parameters at their current values: F <- decay F + new, m <- theta; `new` by parameter name."""
        for name, parameter in self.named_parameters():
            if name in new:
                importance, anchor = self.importance_and_anchor(name)
                importance.mul_(decay).add_(new[name])
                anchor.copy_(parameter)

    @torch.no_grad()
    def add_anchor(self, new: Mapping[str, Tensor]) -> None:
        """Add a quadratic around the current values, sum new (theta - theta_now)^2, to the existing ones.

        A sum of quadratics is one quadratic: if the t-th was added at theta_t,
        sum_t F_t (theta - theta_t)^2 = F (theta - m)^2 + c,  F = sum_t F_t,  m = sum_t F_t theta_t / F.
        If F was 0, m is theta_now bit for bit. Parameters that no later task uses then have a gradient of exactly 0.
        With a gradient of rounding errors, Adam would take steps of full size.
        """
        for name, parameter in self.named_parameters():
            if name in new:
                importance, anchor = self.importance_and_anchor(name)
                total = importance + new[name]
                share = torch.where(total > 0, new[name] / total, 1.0)  # if F = 0 and new = 0, the anchor has no effect
                shift = parameter - anchor
                self.offset += (importance * share * shift.square()).sum()
                anchor.copy_(torch.lerp(anchor, parameter, share.to(anchor.dtype)))
                importance.copy_(total)

    def _cover_parameters(self) -> None:
        """Register F = 0 and m = theta for each trainable parameter that has no buffers yet."""
        for name, parameter in self.named_parameters():
            if not parameter.requires_grad:
                continue
            if not self.covers(name):
                self.register_buffer(f"importance__{slot(name)}", self.no_importance(parameter))
                self.register_buffer(f"anchor__{slot(name)}", parameter.detach().clone())
            elif (shape := self.importance_and_anchor(name)[1].shape) != parameter.shape:
                raise PluginError(f"{type(self).__name__}: {name!r} changed its shape from {tuple(shape)} to "
                                  f"{tuple(parameter.shape)}; let a model grow by new parameters, not larger ones")


def quadratic_penalty(weight: float, offset: Tensor, shifts: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """Return weight/2 (sum F d^2 + offset), a scalar.

    F d is computed once and used for the value and for the gradient. Therefore, only first derivatives are correct.

    Args:
        weight: the weight of the penalty.
        offset: c, a scalar.
        shifts: pairs of F and d; F broadcasts to d's shape.
    """
    total = offset
    for importance, raw_shift in shifts:
        shift = raw_shift.to(importance.dtype)  # with autocast, the difference may have a lower precision
        total = total + torch.dot((importance * shift).detach().flatten(), shift.flatten())
    # F d is a constant, so `total` has the gradient of half the sum already. Only its value has to be halved.
    return weight * (total - 0.5 * total.detach())


def slot(name: str) -> str:
    """Return a parameter's name without dots, which are not allowed in a buffer's name."""
    return name.replace(".", "__")
