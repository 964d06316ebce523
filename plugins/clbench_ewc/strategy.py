"""Elastic weight consolidation: after each task, a quadratic penalty that holds what the task needs.

Loss: cross-entropy + strength/2 sum_i F_i (theta_i - theta*_i)^2, F the diagonal Fisher (clbench.strategy.fisher).

`separate` is Kirkpatrick et al. 2017 (arXiv 1612.00796): one such sum for each old task t, with F_t taken at theta*_t.
Kept as it stands there it takes 2 T numbers per parameter after T tasks; `QuadraticPenalty.add_anchor` keeps the same
loss and gradient in 2 numbers per parameter however many tasks.
`online` is Schwarz et al. 2018 (arXiv 1805.06370): while a task is learned the one sum there is has F and the anchor of
before, weighed by gamma: strength/2 sum_i gamma F_i (theta_i - theta*_i)^2. After it F <- gamma F + F_t, and the anchor
is the latest theta. Their rescaling of each task's F to a common norm is left out, as in van de Ven & Tolias.

Plain gradient steps diverge where lr * strength * F exceeds 2; Adam bounds its step and does not.

Reference codes: van de Ven's has 1/2, gamma and per-sample gradients as here; its version of 2019 (arXiv 1904.07734)
takes the label that the model predicts (fisher=predicted), later ones all labels. Mammoth's weighs a sample's squared
gradient by the probability of its label and has no 1/2. Avalanche 0.6 has no 1/2 and squares the mean gradient of each
batch. The online forms of both leave gamma out of the penalty: old tasks weigh 1/gamma as much there. A strength from
there means something else here.
"""

from __future__ import annotations

from clbench import Network, Options, StreamInfo, Task
from clbench.strategy.fisher import check_kind, diagonal_fisher
from clbench.strategy.regularization import QuadraticPenalty
from clbench_ewc import EWCOptions


class EWC(QuadraticPenalty):
    """Fine-tuning with the penalty whose importance is the Fisher information."""

    options: EWCOptions

    def __init__(self, model: Network, stream_info: StreamInfo, options: Options | None = None) -> None:
        """Start with F = 0, which is no penalty; SpecError if the model has no such Fisher."""
        super().__init__(model, stream_info, options or EWCOptions())
        check_kind(stream_info, self.options.fisher)

    @property
    def weight(self) -> float:
        """Return the penalty's weight; gamma is 1 but in the online form."""
        return self.options.strength * self.options.gamma

    def after_task(self, task: Task) -> None:
        """Add the task's Fisher, taken at the parameters as they are now."""
        new = diagonal_fisher(self, task.train, task.index, generator=self.stream_info.generator,
                              kind=self.options.fisher, limit=self.options.fisher_samples)
        if self.options.mode == "online":
            self.anchor_here(new, self.options.gamma)
        else:
            self.add_anchor(new)
