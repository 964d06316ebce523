"""Streaming linear discriminant analysis (Hayes & Kanan 2020, arXiv 1909.01520).

Classes are Gaussians of one covariance S, each as likely as the others: with L = ((1 - epsilon) S + epsilon I)^-1 the
logit of a class with mean m is f.L m - m.L m/2. The means and S are running sums, so that a sample is needed only once.

Where this differs from the paper and its code (tyler-hayes/Deep_SLDA):

- S here is the covariance of all samples about their final class means, exactly, whatever their order. The streaming
  estimate subtracts from each sample the mean that its class had before it, which is 0 for a class's first sample, and
  weighs the result by t / (t + 1) for t samples so far of all classes. So it depends on the order, and is too large
  early on; the two meet as samples become many.
- The code begins from an OAS estimate of the covariance on the base data (scikit-learn); here the first task counts as
  any other. Its variant with a covariance that is fixed from then on is left out.
- The code takes the pseudo-inverse, here the system is solved: with epsilon > 0 it has one solution.
"""

from __future__ import annotations

from torch import Tensor

from clbench import Network, World
from clbench.strategy.gaussians import linear_rule
from clbench_prototypes import SLDAOptions
from clbench_prototypes.closed_form import SecondOrder


class SLDA(SecondOrder):
    """Linear discriminant analysis of features; it keeps sums by class and one second moment."""

    method = "slda"
    options: SLDAOptions

    def __init__(self, model: Network, world: World, options: SLDAOptions | None = None) -> None:
        """Start with no class."""
        super().__init__(model, world, options if options is not None else SLDAOptions())

    def rule(self) -> tuple[Tensor, Tensor]:
        """Return L m and -m.L m/2."""
        return linear_rule(self.sums, self.counts, self.moment, self.options.shrinkage)
