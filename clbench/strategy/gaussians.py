"""Statistics of features: class means, and Gaussians with a shared covariance, by which strategies infer the task.

The Gaussians are linear discriminant analysis with equal prior probabilities. Let S be the covariance of all samples
about their class means, and L = ((1 - shrinkage) S + shrinkage I)^-1. The log-density at f of a class with mean m is
f.L m - m.L m/2, up to terms that are equal for all classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clbench.core.device import send
from clbench.data.samples import Samples
from clbench.strategy.base import Strategy, StreamInfo
from clbench.strategy.per_sample_gradients import evaluating

CHUNK, CHUNK_BYTES = 1024, 2**26  # most samples at a time, and most bytes of images
ITEMS = 32  # the same for a language model, which has features for each token

Features = Callable[[Tensor], Tensor]


def features_of(strategy: Strategy, samples: Samples, features: Features) -> Iterator[tuple[Samples, Tensor]]:
    """Yield raw samples in chunks, with their features [n, D]; the strategy is in eval mode during the iteration.

    Args:
        strategy: its `stream_info.prepare` turns raw samples into inputs; its modes are restored afterwards.
        samples: raw samples.
        features: a function from prepared inputs [n, *input_shape] to features.
    """
    with evaluating(strategy):
        for part in samples.chunks(chunk_size(strategy.stream_info)):
            with torch.no_grad():
                part_features = features(strategy.stream_info.prepare(part.x))
            yield part, part_features


def chunk_size(stream_info: StreamInfo) -> int:
    """Return the number of samples whose features are computed at a time."""
    if stream_info.predicts_tokens:
        return ITEMS
    return CHUNK if stream_info.is_text else max(1, min(CHUNK, CHUNK_BYTES // (4 * math.prod(stream_info.input_shape))))


def class_means(strategy: Strategy, samples: Samples, features: Features) -> tuple[Tensor, Tensor]:
    """Return the mean features [C, D] of each class (NaN if it does not occur) and its number of samples [C].

    Args: as in `features_of`; there is at least one sample.
    """
    classes = strategy.stream_info.classes
    total: Tensor | float = 0.0
    for part, part_features in features_of(strategy, samples, features):
        total = total + F.one_hot(part.y, classes).to(part_features.dtype).T @ part_features
    assert isinstance(total, Tensor)
    count = torch.bincount(samples.y, minlength=classes)
    return total / count[:, None], count


SHRINKAGE = 1e-4  # share of the identity; Hayes & Kanan 2020, arXiv 1909.01520, and the default of `slda`


def linear_rule(sums: Tensor, counts: Tensor, moment: Tensor, shrinkage: float) -> tuple[Tensor, Tensor]:
    """Return the weights L m [K, D] and biases -m.L m/2 [K] of K classes; they are 0 for a class without samples.

    Args:
        sums: the sum of the features of each class [K, D], float64.
        counts: the number of samples of each class [K], float64.
        moment: the sum of f f^T over the features f of all samples [D, D], float64.
        shrinkage: the share of the identity, greater than 0 (see the formula above).
    """
    means = sums / counts.clamp(min=1)[:, None]
    covariance = (moment - sums.T @ means) / counts.sum()
    identity = torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
    weight = torch.linalg.solve((1 - shrinkage) * covariance + shrinkage * identity, means.T).T
    return weight, -(weight * means).sum(1) / 2


class TaskGaussians(nn.Module):
    """Infer the task of a sample from Gaussians, one for each class of each task, with a shared covariance.

    A class that returns has a Gaussian for each of its tasks. The buffers `sums` [K, D], `counts` [K] and `moment`
    [D, D] (of all tasks) are running sums. The buffers `weight` [K, D] and `bias` [K] are computed from them. All of
    them are float64. `task` [K] has the task of each Gaussian. K grows by the number of classes of each task.

    Args:
        features: the number of features, D.
        device: the device of the buffers.
    """

    sums: Tensor
    counts: Tensor
    moment: Tensor
    weight: Tensor
    bias: Tensor
    task: Tensor

    def __init__(self, features: int, device: torch.device) -> None:
        """Start without classes; `moment` gets its size in `learn`, so that a stack stores no zeros."""
        super().__init__()
        for name, shape in (("sums", (0, features)), ("counts", (0,)), ("moment", (0, 0)), ("weight", (0, features)),
                            ("bias", (0,))):
            self.register_buffer(name, torch.zeros(shape, dtype=torch.float64, device=device))
        self.register_buffer("task", torch.zeros(0, dtype=torch.int64, device=device))

    @torch.no_grad()
    def learn(self, task: int, classes: Sequence[int], parts: Iterable[tuple[Samples, Tensor]]) -> None:
        """Add a task's features, given in parts [n, D] with their samples, and update `weight` and `bias`."""
        class_ids = send(torch.tensor(classes, device="cpu"), self.sums.device)
        sums = self.sums.new_zeros(len(classes), self.sums.shape[1])
        counts = self.sums.new_zeros(len(classes))
        if not len(self.moment):
            self.moment = self.sums.new_zeros(2 * (self.sums.shape[1],))
        for samples, part in parts:
            features = part.double()
            labels = (samples.y.to(class_ids.device)[:, None] == class_ids).double()
            sums += labels.T @ features
            counts += labels.sum(0)
            self.moment.addmm_(features.T, features)
        self.sums, self.counts = torch.cat([self.sums, sums]), torch.cat([self.counts, counts])
        self.task = torch.cat([self.task, torch.full_like(class_ids, task)])
        self.weight, bias = linear_rule(self.sums, self.counts, self.moment, SHRINKAGE)
        self.bias = bias.masked_fill(self.counts == 0, float("-inf"))

    def infer(self, features: Tensor) -> Tensor:
        """Return the task [N] of the most likely class for features [N, D]; ties go to the earliest class.

        It is computed in float64, which autocast does not change.
        """
        return self.task[F.linear(features.double(), self.weight, self.bias).argmax(1)]
