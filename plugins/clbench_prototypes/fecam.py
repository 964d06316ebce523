"""FeCAM (Goswami et al. 2023, arXiv 2309.14062): the nearest class mean, with a Mahalanobis distance per class.

    d_c(x) = (g(x) - m_c)^T R_c^-1 (g(x) - m_c),  the logit is -d_c(x)

g(x) and m_c are Tukey's power f^lambda of a sample's features and of the class's mean features, scaled to length 1. R_c
comes from the covariance S of the class's f^lambda in two steps:

    S'  = S + alpha1 V1 I + alpha2 V2 (1 - I)    shrinkage: V1 is the mean variance, V2 the mean off the diagonal
    R_c = S'_ij / sqrt(S'_ii S'_jj)              correlations, so that distances to different classes compare

With `covariance = common`, all classes have one S': the mean of the tasks' covariances, weighted by the tasks' numbers
of classes. A task's covariance is that of all its samples around their common mean. As in the code, the mean is shrunk
but not turned into correlations.

Vision transformers have negative features, which have no square root. The authors' scripts for them (FeCAM_vit_*.py)
omit Tukey's power, use features of length 1 for means and covariances alike, and shrink with alpha1 = 1, alpha2 = 0.
These are the defaults for a `TokenNetwork` here; any network gets them with `tukey=1` and `alpha2=0`. Other negative
features (after SiLU, for example) keep their sign: sign(f) |f|^lambda, which is Tukey's power if none is negative.

Other differences to the paper and its code (dipamgoswami/FeCAM):

- The code for convolutional networks shrinks a class's S twice. The second V1 and V2 are 1 + alpha times the first, so
  this equals shrinking once with alpha (2 + alpha): `alpha1=3:alpha2=3` corresponds to its CIFAR-100. The paper and the
  scripts for vision transformers shrink once, as is done here. Of a common S, the code does not shrink the first task's
  part; here all of it is shrunk.
- The code averages V2 over entries that are not exactly 0. If features are dead (ReLU), V2 can then exceed V1, and S'
  can have negative eigenvalues. Here V2 is the mean over all entries, so S' has none as long as alpha2 <= alpha1.
- After the first task, the code for convolutional networks does not use FeCAM yet, but the Euclidean distance to the
  weights of the trained head. Here every task has the same rule.
- The code computes a pseudo-inverse, rounded to float32. Here, a Cholesky factor in float64 is used.
- If a class returns (`domain`), its old and new samples are treated as one class. The authors' script for CORe50
  shrinks each domain's S and averages it with the mean so far, so half of the weight is the last domain's.
- A class with no spread in any feature (with one sample, for example) has R_c = I, the Euclidean distance. The code has
  NaN.
- LAMDA-PILOT's `fecam` is another rule, which is not followed here. It adds 100 I to S and takes `corrcoef` of the
  result, which gives correlations of the rows of a covariance.

A second moment of D^2 numbers in float64 is stored for each class seen: C D^2 in the end. The factor of R_c is computed
when it is needed. Storing it would double the storage; computing it costs as much as the distances of D / 3 samples.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from clbench import Network, StreamInfo, Task
from clbench.models.network import TokenNetwork
from clbench_prototypes import FeCAMOptions
from clbench_prototypes.closed_form import ClosedForm


class FeCAM(ClosedForm):
    """Mahalanobis distances to class means.

    `powers` [C, D] are the sums of f^lambda. `moment_0`, `moment_1`, ... [D, D] are the sums of f^lambda (f^lambda)^T
    for the classes in `met`, in that order. With a common covariance, `moment` is the sum of the tasks' covariances,
    each times the number of its classes, and `class_total` is the sum of these numbers.
    """

    method = "fecam"
    keeps_less = "covariance=common"
    roles = (("moment_*", "second moments"), ("class_total", "second moments"), ("powers", "prototypes"),
             *ClosedForm.roles)
    options: FeCAMOptions
    powers: Tensor
    moment: Tensor
    class_total: Tensor

    def __init__(self, model: Network, stream_info: StreamInfo, options: FeCAMOptions | None = None) -> None:
        """Start with no class."""
        super().__init__(model, stream_info, options if options is not None else FeCAMOptions())
        transformer = isinstance(model, TokenNetwork)
        chosen = self.options.tukey, self.options.alpha2
        self.tukey = chosen[0] if chosen[0] is not None else 1.0 if transformer else 0.5
        self.alpha2 = chosen[1] if chosen[1] is not None else 0.0 if transformer else self.options.alpha1
        if chosen != (self.tukey, self.alpha2):
            self.notes.append(f"fecam: tukey = {self.tukey:g} and alpha2 = {self.alpha2:g} on this network")
        self.common = self.options.covariance == "common"
        self.met: list[int] = []
        self.current: list[int] = []  # the task's classes, by their positions in `met`
        if self.common:
            self.register_buffer("moment", self.sums.new_empty(0, 0))
            self.register_buffer("class_total", self.sums.new_zeros(()))
        else:
            self.register_buffer("powers", torch.zeros_like(self.sums))

    def map(self, features: Tensor) -> Tensor:
        """Return the features, scaled to length 1 if no power is taken."""
        return F.normalize(features, dim=1) if self.tukey == 1 else features

    def power(self, mapped: Tensor) -> Tensor:
        """Return f^lambda of mapped features, with their sign."""
        return mapped if self.tukey == 1 else mapped.sign() * mapped.abs() ** self.tukey

    def point(self, mapped: Tensor) -> Tensor:
        """Return the points [N, D] whose distances are measured: f^lambda of length 1, or f if no power is taken."""
        return mapped if self.tukey == 1 else F.normalize(self.power(mapped), dim=1)

    def after_task(self, task: Task) -> None:
        """Make room for the second moments of new classes, then learn the task's features."""
        for new_class in (c for c in task.classes if c not in self.met):
            self.met.append(new_class)
            if not self.common:
                width = self.sums.shape[1]
                self.register_buffer(f"moment_{len(self.met) - 1}", self.sums.new_zeros(width, width))
        self.current = [self.met.index(c) for c in task.classes]
        super().after_task(task)

    def add(self, mapped: Tensor, labels: Tensor) -> None:
        """Add mapped features [N, D] with one-hot labels [N, C] to the sums, and their powers and products by class."""
        super().add(mapped, labels)
        if self.common:
            return
        powers = self.power(mapped)
        self.powers += labels.T @ powers
        for place in self.current:
            # Samples of other classes are set to 0, because selecting the class's samples would wait for the device.
            class_powers = powers * labels[:, self.met[place], None]
            self.get_buffer(f"moment_{place}").addmm_(class_powers.T, class_powers)

    def take_in(self, features: Tensor, labels: Tensor) -> None:
        """Learn a task's features [N, D] with one-hot labels [N, C]."""
        super().take_in(features, labels)
        if not self.common:
            return
        width = self.sums.shape[1]
        total, moment = self.sums.new_zeros(width), self.sums.new_zeros(width, width)
        for mapped, _ in self.chunks(features, labels):
            powers = self.power(mapped)
            total += powers.sum(0)
            moment.addmm_(powers.T, powers)
        classes = (labels.sum(0) > 0).sum()
        if not len(self.moment):
            self.moment = torch.zeros_like(moment)
        self.moment += classes * covariance(labels.sum(), total, moment)
        self.class_total += classes

    def metric(self, place: int) -> Tensor:
        """Return R_c [D, D] of a class, given its position in `met`, or S' of all classes if it is common."""
        if self.common:
            return shrunk(self.moment / self.class_total, self.options.alpha1, self.alpha2)
        label = self.met[place]
        class_covariance = covariance(self.counts[label], self.powers[label], self.get_buffer(f"moment_{place}"))
        return correlations(shrunk(class_covariance, self.options.alpha1, self.alpha2))

    def score(self, mapped: Tensor) -> Tensor:
        """Return negative squared distances [N, C] of mapped features [N, D]."""
        points, means = self.point(mapped), self.point(self.means)
        logits = mapped.new_full((len(mapped), self.stream_info.classes), float("-inf"))
        factor = mapped.new_empty(0)
        for place, label in enumerate(self.met):
            if not (self.common and place):
                factor, failed = torch.linalg.cholesky_ex(self.metric(place))
                factor = factor.masked_fill(failed > 0, float("nan"))
            deviations = torch.linalg.solve_triangular(factor, (points - means[label]).T, upper=False)
            logits[:, label] = -deviations.square().sum(0)
        return logits


def covariance(count: Tensor, total: Tensor, moment: Tensor) -> Tensor:
    """Return the covariance [D, D] from a number of samples, their sum [D] and their second moment [D, D]."""
    mean = total / count.clamp(min=1)
    return (moment - count * torch.outer(mean, mean)) / (count - 1).clamp(min=1)


def shrunk(matrix: Tensor, alpha1: float, alpha2: float) -> Tensor:
    """Return S + alpha1 V1 I + alpha2 V2 (1 - I) for the covariance S [D, D]."""
    size, trace = len(matrix), matrix.trace()
    variance, mean_covariance = trace / size, (matrix.sum() - trace) / max(size * (size - 1), 1)
    out = matrix + alpha2 * mean_covariance
    out.diagonal().copy_(matrix.diagonal() + alpha1 * variance)
    return out


def correlations(matrix: Tensor) -> Tensor:
    """Return the correlations [D, D] of a covariance, which are I for a matrix of zeros."""
    deviation = matrix.diagonal().clamp(min=0).sqrt()
    deviation = deviation.masked_fill(deviation == 0, 1.0)
    out = matrix / torch.outer(deviation, deviation)
    out.diagonal().fill_(1.0)
    return out
