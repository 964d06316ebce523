"""Streaming linear discriminant analysis (Hayes & Kanan 2020, arXiv 1909.01520).

Classes are equally likely Gaussians with a common covariance S. With L = ((1 - epsilon) S + epsilon I)^-1, the logit of
a class with mean m is f.L m - m.L m/2. The means and S are running sums, so each sample is needed only once.

Differences to the paper and its code (tyler-hayes/Deep_SLDA):

- Here, S is exactly the covariance of all samples around their final class means, for any order of the samples. The
  streaming estimate subtracts from each sample the mean that its class had before, which is 0 for a class's first
  sample. It weights the result by t / (t + 1) for t samples of all classes so far. The estimate therefore depends on
  the order and is too large early on. Both converge as the number of samples grows.
- The code begins with an OAS estimate of the covariance on the base data (scikit-learn); here, the first task is
  treated like any other. Its variant with a covariance that is fixed from then on is left out.
- The code computes the pseudo-inverse. Here, the linear system is solved; with epsilon > 0 it has one solution.
"""

from __future__ import annotations

from torch import Tensor

from clbench import Network, StreamInfo
from clbench.strategy.gaussians import linear_rule
from clbench_prototypes import SLDAOptions
from clbench_prototypes.closed_form import SecondOrder


class SLDA(SecondOrder):
    """Linear discriminant analysis of features; only sums by class and one second moment are stored."""

    method = "slda"
    options: SLDAOptions

    def __init__(self, model: Network, stream_info: StreamInfo, options: SLDAOptions | None = None) -> None:
        """Start with no class."""
        super().__init__(model, stream_info, options if options is not None else SLDAOptions())

    def rule(self) -> tuple[Tensor, Tensor]:
        """Return L m and -m.L m/2."""
        return linear_rule(self.sums, self.counts, self.moment, self.options.shrinkage)
