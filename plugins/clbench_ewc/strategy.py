"""Elastic weight consolidation (EWC): after each task, add a quadratic penalty on changes of important parameters.

Loss: cross-entropy + strength/2 sum_i F_i (theta_i - theta*_i)^2, F the diagonal Fisher (clbench.strategy.fisher).

`separate` is Kirkpatrick et al. 2017 (arXiv 1612.00796): one such sum for each old task t, with F_t computed at
theta*_t. Stored literally, this takes 2 T numbers per parameter after T tasks. `QuadraticPenalty.add_anchor` gives the
same loss and gradient with 2 numbers per parameter, for any number of tasks.

`online` is Schwarz et al. 2018 (arXiv 1805.06370): there is only one sum. While a task is trained, the sum uses F and
the anchor from before the task, weighted by gamma: strength/2 sum_i gamma F_i (theta_i - theta*_i)^2. After the task,
F <- gamma F + F_t, and the anchor is the latest theta. Their rescaling of each task's F to a common norm is left out,
as in van de Ven & Tolias.

Plain gradient steps diverge if lr * strength * F exceeds 2. Adam does not diverge, because it bounds its steps.

Reference codes differ:

- Van de Ven's code has the factor 1/2, gamma and per-sample gradients, as here. Its version of 2019 (arXiv 1904.07734)
  uses the label that the model predicts (fisher=predicted); later versions use all labels.
- Mammoth weights a sample's squared gradient by the probability of its label, and has no 1/2.
- Avalanche 0.6 has no 1/2, and squares the mean gradient of each batch.
- The online forms of Mammoth and Avalanche leave gamma out of the penalty, so old tasks weigh 1/gamma times as much.

A strength from Mammoth or Avalanche therefore has another meaning here.
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
        """Start with F = 0, which is no penalty; SpecError if the objective has no Fisher of this kind."""
        super().__init__(model, stream_info, options or EWCOptions())
        check_kind(stream_info, self.options.fisher)

    @property
    def weight(self) -> float:
        """Return the penalty's weight; gamma is 1 except in the online form."""
        return self.options.strength * self.options.gamma

    def after_task(self, task: Task) -> None:
        """Add the task's Fisher, computed at the current parameters."""
        fisher = diagonal_fisher(self, task.train, task.index, generator=self.stream_info.generator,
                                 kind=self.options.fisher, limit=self.options.fisher_samples)
        if self.options.mode == "online":
            self.anchor_here(fisher, self.options.gamma)
        else:
            self.add_anchor(fisher)
