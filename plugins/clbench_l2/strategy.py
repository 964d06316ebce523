"""L2: a penalty toward the last task's weights, with the same strength for each: EWC without Fisher information.

    loss: cross-entropy + strength sum (theta - theta*)^2      theta* after the last task; no 1/2

Kirkpatrick et al. 2017 (arXiv 1612.00796, figure 2) compare EWC with this baseline. In Hsu et al. 2018 (arXiv
1810.12488), it is as strong as SI and EWC. This implementation follows the code of Hsu et al.: there is one anchor, the
latest, and an importance that stays 1 instead of growing with the tasks. The penalty covers all trained parameters,
including the heads of other tasks. It stores one number per parameter. Hsu et al. count two, because their code stores
the ones.

A parameter without an earlier task is free: there is no penalty in the first task, nor on parameters that first appear
in a task. L2 is not weight decay, which pulls weights toward 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from clbench import Network, Options, StreamInfo, Task
from clbench.strategy.regularization import QuadraticPenalty
from clbench_l2 import L2Options


class L2(QuadraticPenalty):
    """Fine-tuning with the penalty whose importance is 1."""

    options: L2Options

    def __init__(self, model: Network, stream_info: StreamInfo, options: Options | None = None) -> None:
        """Start with no penalty."""
        super().__init__(model, stream_info, options or L2Options())

    @property
    def weight(self) -> float:
        """Return the penalty's weight, half of which is the strength."""
        return 2 * self.options.strength

    def no_importance(self, parameter: Tensor) -> Tensor:
        """Return 0, one number for the whole parameter."""
        return parameter.new_zeros((), requires_grad=False)

    def after_task(self, task: Task) -> None:
        """Anchor the parameters at their current values, in place of the earlier anchor."""
        ones = {name: torch.ones_like(self.importance_and_anchor(name)[0]) for name, _ in self.named_parameters()
                if self.covers(name)}
        self.anchor_here(ones, decay=0.0)
