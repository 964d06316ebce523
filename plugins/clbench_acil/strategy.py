"""ACIL: ridge regression on random features of a frozen network, by recursive least squares; DS-AL adds a second one.

Features f are projected to M numbers h = P f, with P drawn once. The main stream is the regression of one-hot labels on
x = ReLU(h). For the rows X and labels Y of a chunk of samples,

    R <- R - R X^T (I + X R X^T)^-1 X R          R = I / gamma at first
    W <- W + R X^T (Y - X W)

so that R = (sum x x^T + gamma I)^-1 and W is the ridge regression on all samples so far, up to rounding (float64).
Nothing depends on how samples are divided into chunks or tasks.

DS-AL (`compensation = C`) has a second stream, which is fitted in the same way to the errors of the main stream. Its
inputs are tanh(h). Its targets are Y - X W with the main stream's W after the task, and 0 for classes that are not
among the task's ("previous label cleansing"). The logits are those of the main stream plus C times those of the second.

- ACIL's regression is that of `ranpac` with a fixed ridge. It stores R instead of the sums. Its P is drawn like the
  weights of a linear layer of torch, uniformly within 1 / sqrt(D); RanPAC's is drawn from N(0, 1).
- In the authors' code (ZHUANGHP/Analytic-continual-learning), ACIL and DS-AL have 8192 random features for CIFAR-100,
  also on the 64 features of a ResNet-32. R has M^2 numbers in float64, so the default here is smaller for small
  networks (`projections`).
- Their code fits the second stream after each batch, to the errors that the main stream has then. Here it is fitted
  after the whole task, as in the equations of the paper, so that the size of chunks makes no difference.
- Their first task has half of the classes, and trains the network with SGD (learning rate 0.5, cosine, weight decay
  5e-4). Here the experiment determines the first task, as for the other analytic classifiers
  (`clbench_prototypes.closed_form`).
"""

from __future__ import annotations

import torch
from clbench_prototypes.closed_form import ClosedForm
from clbench_prototypes.first_session import feature_width, settle
from torch import Tensor, nn

from clbench import Network, StreamInfo
from clbench.core.errors import DivergedError
from clbench_acil import ACILOptions

PROJECTIONS, FEATURES = 8192, 768
PER_FEATURE = 5  # projections for each feature of a smaller network


class ACIL(ClosedForm):
    """Recursive ridge regression; `projection` [D, M] is P, `inverse` [M, M] is R, empty before any task.

    `weight` [C, M] is W^T. With DS-AL, `second_inverse` and `second_weight` are the same for the second stream.
    """

    method = "acil"
    keeps_less = "projections=N"
    roles = (("projection", "projection"), ("*inverse", "second moments"), ("second_weight", "heads"),
             *ClosedForm.roles)
    options: ACILOptions
    projection: Tensor
    inverse: Tensor
    second_inverse: Tensor

    def __init__(self, model: Network, stream_info: StreamInfo, options: ACILOptions | None = None) -> None:
        """Draw the projection, on the CPU so that it does not depend on the device."""
        options = settle(options if options is not None else ACILOptions(), model, stream_info)
        features = feature_width(model, options)
        width = options.projections or (PROJECTIONS if features >= FEATURES else PER_FEATURE * features)
        super().__init__(model, stream_info, options, width)
        bound = features**-0.5
        projection = torch.rand(features, width, generator=stream_info.generator, device="cpu") * 2 * bound - bound
        self.register_buffer("projection", projection.to(self.sums.device))
        self.weight = nn.Parameter(self.sums, requires_grad=False)
        self.register_buffer("inverse", self.sums.new_empty(0, 0))
        self.register_buffer("second_inverse", self.sums.new_empty(0, 0))
        second = torch.zeros_like(self.weight if options.compensation else self.weight[:0])
        self.second_weight = nn.Parameter(second, requires_grad=False)
        self.sums = self.sums.new_empty(0, 0)  # not used by this method

    def map(self, features: Tensor) -> Tensor:
        """Return P f."""
        return features @ self.projection.double()

    def take_in(self, features: Tensor, labels: Tensor) -> None:
        """Update the main stream with features [N, D] and their labels, and then the second stream, if there is one."""
        if not len(self.inverse):
            self.inverse = self.identity(self.options.ridge)
        for mapped, part_labels in self.chunks(features, labels):
            update(self.inverse, self.weight, mapped.relu(), part_labels)
            self.counts += part_labels.sum(0)
        if self.options.compensation:
            if not len(self.second_inverse):
                self.second_inverse = self.identity(self.options.compensation_ridge)
            task_classes = (labels.sum(0) > 0).to(labels.dtype)
            for mapped, part_labels in self.chunks(features, labels):
                residual = (part_labels - mapped.relu() @ self.weight.T) * task_classes
                update(self.second_inverse, self.second_weight, mapped.tanh(), residual)

    def identity(self, ridge: float) -> Tensor:
        """Return I / ridge [M, M], float64."""
        return torch.eye(self.weight.shape[1], dtype=self.weight.dtype, device=self.weight.device) / ridge

    def score(self, mapped: Tensor) -> Tensor:
        """Return the logits [N, C] of projected features [N, M]."""
        logits = mapped.relu() @ self.weight.T
        if self.options.compensation:
            logits = logits + self.options.compensation * (mapped.tanh() @ self.second_weight.T)
        return logits


def update(inverse: Tensor, weight: Tensor, rows: Tensor, targets: Tensor) -> None:
    """Update R [M, M] and W^T [C, M] in place with rows [N, M] and targets [N, C].

    Raises:
        DivergedError: the rows are not finite or too large.
    """
    products = rows @ inverse  # [N, M]: R is symmetric
    system = products @ rows.T
    system.diagonal().add_(1)
    factor, failure = torch.linalg.cholesky_ex(system)
    if not failure.is_meta and failure:
        raise DivergedError("the features are not finite or too large for a ridge regression")
    gain = torch.cholesky_solve(products, factor)  # [N, M]: X times the new R
    inverse.sub_(products.T @ gain)
    weight.add_((targets - rows @ weight.T).T @ gain)
