"""Features of samples and their mean for each class, as nearest-mean classifiers need them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from clbench.data.samples import Samples
from clbench.strategy.base import Strategy
from clbench.strategy.per_sample_gradients import evaluating

CHUNK = 1024  # samples at a time

Features = Callable[[Tensor], Tensor]


def features_of(strategy: Strategy, samples: Samples, features: Features) -> Iterator[tuple[Samples, Tensor]]:
    """Yield raw samples in chunks, with their features [n, D]; the strategy is in eval mode during the iteration.

    Args:
        strategy: its `world.prepare` turns raw samples into inputs; its modes are restored afterwards.
        samples: raw samples.
        features: computes features of prepared inputs [n, *input_shape].
    """
    with evaluating(strategy):
        for part in samples.chunks(CHUNK):
            with torch.no_grad():
                part_features = features(strategy.world.prepare(part.x))
            yield part, part_features


def class_means(strategy: Strategy, samples: Samples, features: Features) -> tuple[Tensor, Tensor]:
    """Return the mean features [C, D] of each class (NaN if it does not occur) and its number of samples [C].

    Args: as in `features_of`; there is at least one sample.
    """
    classes = strategy.world.classes
    total: Tensor | float = 0.0
    for part, part_features in features_of(strategy, samples, features):
        total = total + F.one_hot(part.y, classes).to(part_features.dtype).T @ part_features
    assert isinstance(total, Tensor)
    count = torch.bincount(samples.y, minlength=classes)
    return total / count[:, None], count
