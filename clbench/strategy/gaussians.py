"""Statistics of features: means of classes, and Gaussians with one covariance.

Every class is as likely as any other. With S the covariance of all samples about their class means and
L = ((1 - shrinkage) S + shrinkage I)^-1, the log-density of a class with mean m at f is f.L m - m.L m/2, up to terms
that are the same for all classes: linear discriminant analysis. Strategies infer the task by it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clbench.core.device import send
from clbench.data.samples import Samples
from clbench.strategy.base import Strategy
from clbench.strategy.per_sample_gradients import evaluating

CHUNK = 1024  # samples at a time
ITEMS = 32  # of a language model, whose features of all tokens are in memory

Features = Callable[[Tensor], Tensor]


def features_of(strategy: Strategy, samples: Samples, features: Features) -> Iterator[tuple[Samples, Tensor]]:
    """Yield raw samples in chunks, with their features [n, D]; the strategy is in eval mode during the iteration.

    Args:
        strategy: its `stream_info.prepare` turns raw samples into inputs; its modes are restored afterwards.
        samples: raw samples.
        features: computes features of prepared inputs [n, *input_shape].
    """
    with evaluating(strategy):
        for part in samples.chunks(ITEMS if strategy.stream_info.predicts_tokens else CHUNK):
            with torch.no_grad():
                part_features = features(strategy.stream_info.prepare(part.x))
            yield part, part_features


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
    """Return the weights L m [K, D] and biases -m.L m/2 [K] of K classes; those of a class without samples are 0.

    Args:
        sums: of each class's features [K, D], float64.
        counts: its number of samples [K], float64.
        moment: sum of f f^T over the features f of all samples [D, D], float64.
        shrinkage: as above, above 0.
    """
    means = sums / counts.clamp(min=1)[:, None]
    covariance = (moment - sums.T @ means) / counts.sum()
    identity = torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
    weight = torch.linalg.solve((1 - shrinkage) * covariance + shrinkage * identity, means.T).T
    return weight, -(weight * means).sum(1) / 2


class TaskGaussians(nn.Module):
    """A Gaussian for each class of each task, all of one covariance: the task of a sample is that of the likeliest.

    A class that several tasks have has a Gaussian for each. All buffers are float64. What is kept are running sums:
    `sums` [K, D], `counts` [K] and the one second moment `moment` [D, D] of all tasks; and what follows from them,
    `weight` [K, D] and `bias` [K]. `task` [K] says whose the Gaussians are. K grows by the number of a task's classes.

    Args:
        features: D.
        device: where the buffers are.
    """

    sums: Tensor
    counts: Tensor
    moment: Tensor
    weight: Tensor
    bias: Tensor
    task: Tensor

    def __init__(self, features: int, device: torch.device) -> None:
        """Start with no class; the moment takes its size with the first, so that a stack has no copies of zeros."""
        super().__init__()
        for name, shape in (("sums", (0, features)), ("counts", (0,)), ("moment", (0, 0)), ("weight", (0, features)),
                            ("bias", (0,))):
            self.register_buffer(name, torch.zeros(shape, dtype=torch.float64, device=device))
        self.register_buffer("task", torch.zeros(0, dtype=torch.int64, device=device))

    @torch.no_grad()
    def learn(self, task: int, classes: Sequence[int], parts: Iterable[tuple[Samples, Tensor]]) -> None:
        """Add a task's features, given in parts [n, D] with their samples, and fit the rule again."""
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
        """Return the task [N] of the class whose Gaussian is the likeliest at features [N, D]; the earliest of equals.

        In float64, which autocast leaves alone.
        """
        return self.task[F.linear(features.double(), self.weight, self.bias).argmax(1)]
