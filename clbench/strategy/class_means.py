"""Passes over samples for their features, and the mean features of each class: what nearest-mean classifiers need."""

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
    """Yield raw samples, some at a time, with their features [n, D]; the strategy is in eval mode meanwhile.

    Args:
        strategy: its `world.prepare` makes inputs of raw samples; it keeps its modes.
        samples: raw.
        features: of prepared inputs [n, *input_shape].
    """
    with evaluating(strategy):
        for part in samples.chunks(CHUNK):
            with torch.no_grad():
                found = features(strategy.world.prepare(part.x))
            yield part, found


def class_means(strategy: Strategy, samples: Samples, features: Features) -> tuple[Tensor, Tensor]:
    """Return the mean features [C, D] of each class, NaN where it does not occur, and how often each occurs [C].

    Args: as in `features_of`; there is at least one sample.
    """
    classes = strategy.world.classes
    total: Tensor | float = 0.0
    for part, found in features_of(strategy, samples, features):
        total = total + F.one_hot(part.y, classes).to(found.dtype).T @ found
    assert isinstance(total, Tensor)
    count = torch.bincount(samples.y, minlength=classes)
    return total / count[:, None], count
