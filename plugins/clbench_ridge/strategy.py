"""Ridge classifier (Hoerl & Kennard 1970, Technometrics 12(1)) on the features of a frozen network.

With features f and one-hot labels y of all samples so far, both centered on their means m and p, the weights
W = Y^T F (F^T F + lambda I)^-1 minimize the squared error plus lambda |W|^2, and the bias is p - W m. The logit of a
class is its row of W f + b. The sums behind it do not depend on the order of samples or tasks, so the solution is that
of all samples at once: a linear classifier that forgets nothing and has no learning rate.

scikit-learn's `RidgeClassifier` has labels of -1 and 1 instead of 0 and 1. Its decision values are 2 z - 1 for our
logits z, so both predict the same class. A class without samples so far is never predicted.
"""

from __future__ import annotations

import torch
from clbench_prototypes.closed_form import SecondOrder
from torch import Tensor

from clbench import Network, StreamInfo
from clbench_ridge import RidgeOptions


class Ridge(SecondOrder):
    """Ridge regression of one-hot labels; sums by class and one second moment of the features are stored in float64."""

    method = "ridge"
    options: RidgeOptions

    def __init__(self, model: Network, stream_info: StreamInfo, options: RidgeOptions | None = None) -> None:
        """Start with no class."""
        super().__init__(model, stream_info, options if options is not None else RidgeOptions())

    def rule(self) -> tuple[Tensor, Tensor]:
        """Return W [C, D] and b [C]."""
        samples = self.counts.sum()
        mean, shares = self.sums.sum(0) / samples, self.counts / samples
        system = self.moment - samples * torch.outer(mean, mean)
        system.diagonal().add_(self.options.strength)
        # The sum over samples of (y - p) (f - m)^T is the sum of y f^T minus each class's number of samples times m.
        products = self.sums - torch.outer(self.counts, mean)
        weight = torch.linalg.solve(system, products.T).T
        return weight, shares - weight @ mean
