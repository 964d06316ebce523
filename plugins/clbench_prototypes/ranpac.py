"""RanPAC (McDonnell et al. 2023, arXiv 2307.02251): ridge regression on random nonlinear projections of features.

Features f are projected to M numbers h = ReLU(R^T f) with R drawn once from N(0, 1). The logits are W h with
W = (G + r I)^-1 Q, where G = sum h h^T and Q is the sum of h by class: the regression on one-hot labels of all samples
so far. r is chosen from 10^-8, 10^-7, ..., 10^8: the value whose regression on 80% of the task's training samples has
the smallest squared error on the other 20%. It is chosen again for each task, as in the paper's algorithm 1. Test
samples are not used. The last task alone therefore determines r for all classes; `ridge` sets one r for all tasks
instead.

Differences to the paper and its code (RanPAC/RanPAC):

- The paper's M is 10,000, for networks with 768 features. G has M^2 numbers and W takes M^3 operations, hundreds of
  times the cost of a small network. With fewer than 768 features, M is therefore 5 times the number of features.
- The candidates for r are compared by a well-conditioned solution, of as many equations as samples. W solves M
  equations, as in the code. With fewer samples so far than M, a chosen r that is below the rounding error of G makes
  predictions noise. This can happen with features of great length in tasks of one class; `ridge` prevents it.
- The code stores G and Q in float32. They are float64 here, because r may be 10^-8, which doubles the storage.
- The first session adapts a pretrained network by a small number of parameters: AdaptFormer (their choice for
  CIFAR-100), VPT or SSF. By default AdaptFormer's bottlenecks do so here in a vision transformer (`closed_form`). With
  `adapt = none` the weights stay as they are, as in the paper's results without that step, and the record says so.
  `base = task1` trains all weights on the first task.
- With `projections = 0` the features take the place of h, as in their results without random projections: ridge
  regression without a bias. `ridge` is the same on features whose mean is 0; it centers features and labels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from clbench import Network, StreamInfo
from clbench.core.device import send
from clbench_prototypes import RanPACOptions
from clbench_prototypes.closed_form import SecondOrder
from clbench_prototypes.first_session import feature_width, settle

PROJECTIONS, FEATURES = 10_000, 768  # the paper's, for ViT-B/16
PER_FEATURE = 5  # of smaller networks
FITTED = 0.8  # share of a task's samples that the candidates are fitted to
RIDGES = [10.0**power for power in range(-8, 9)]


class RanPAC(SecondOrder):
    """Ridge regression; `projection` [D, M] is R, and `ridge` the r of the last task, or the given one."""

    method = "ranpac"
    keeps_less = "projections=N"
    roles = (("projection", "projection"), ("ridge", "heads"), *SecondOrder.roles)
    has_first_session = True
    options: RanPACOptions
    projection: Tensor
    ridge: Tensor

    def __init__(self, model: Network, stream_info: StreamInfo, options: RanPACOptions | None = None) -> None:
        """Draw the projection, on the CPU so that it does not depend on the device."""
        options = settle(options if options is not None else RanPACOptions(), model, stream_info)
        features = feature_width(model, options)
        width = PROJECTIONS if features >= FEATURES else PER_FEATURE * features
        if options.projections is not None:
            width = options.projections
        super().__init__(model, stream_info, options, width or features)
        projection = torch.randn(features, width, generator=stream_info.generator, device="cpu")
        self.register_buffer("projection", projection.to(self.sums.device))
        self.register_buffer("ridge", self.sums.new_tensor(options.ridge or 0.0))

    def map(self, features: Tensor) -> Tensor:
        """Return ReLU(R^T f), or f if there are no random projections."""
        if not self.projection.shape[1]:
            return features
        return (features @ self.projection.double()).relu_()

    def take_in(self, features: Tensor, labels: Tensor) -> None:
        """Choose the ridge on the task's features, unless it is given, then sum them up."""
        if self.options.ridge is None:
            self.ridge.copy_(self.choose_ridge(features, labels))
        super().take_in(features, labels)

    def choose_ridge(self, features: Tensor, labels: Tensor) -> Tensor:
        """Return the best ridge on a fifth of a task's features [N, D], with candidates fitted to the others."""
        order = send(torch.randperm(len(features), generator=self.stream_info.generator, device="cpu"), features.device)
        fit_rows, validation_rows = order[:int(FITTED * len(order))], order[int(FITTED * len(order)):]
        candidates = self.candidates(features[fit_rows], labels[fit_rows])
        return self.best_ridge(candidates, features[validation_rows], labels[validation_rows])

    def candidates(self, features: Tensor, labels: Tensor) -> Tensor:
        """Return W^T for each of `RIDGES`, fitted to these features alone, [17, M, C]; NaN if rounding prevents a fit.

        With H [N, M], (H^T H + r I)^-1 H^T Y = H^T (H H^T + r I)^-1 Y. The side with the smaller system is computed.
        """
        has_few_samples = len(features) < self.sums.shape[1]
        if has_few_samples:
            rows = torch.cat([mapped for mapped, _ in self.chunks(features, labels)])
            system, right = rows @ rows.T, labels
        else:
            system, right = self.sums.new_zeros(2 * self.sums.shape[1:]), self.sums.new_zeros(self.sums.T.shape)
            for mapped, part_labels in self.chunks(features, labels):
                system.addmm_(mapped.T, mapped)
                right.addmm_(mapped.T, part_labels)
        solutions = []
        for ridge in RIDGES:
            factor, failed = torch.linalg.cholesky_ex(shifted(system, ridge))
            solution = torch.cholesky_solve(right, factor).masked_fill(failed > 0, float("nan"))
            solutions.append(rows.T @ solution if has_few_samples else solution)
        return torch.stack(solutions)

    def best_ridge(self, candidates: Tensor, features: Tensor, labels: Tensor) -> Tensor:
        """Return the ridge whose candidate has the smallest squared error on other features [N, D]."""
        errors = self.sums.new_zeros(len(RIDGES))
        for mapped, part_labels in self.chunks(features, labels):
            errors += (mapped @ candidates - part_labels).square().sum((1, 2))
        best = errors.nan_to_num(nan=float("inf")).argmin()
        return self.sums.new_tensor(RIDGES).gather(0, best[None])[0]  # not read back from the device

    def rule(self) -> tuple[Tensor, Tensor]:
        """Return (G + r I)^-1 Q and no bias."""
        return torch.linalg.solve(shifted(self.moment, self.ridge), self.sums.T).T, torch.zeros_like(self.bias)


def shifted(symmetric: Tensor, ridge: float | Tensor) -> Tensor:
    """Return a square matrix with a number added to its diagonal."""
    out = symmetric.clone()
    out.diagonal().add_(ridge)
    return out
