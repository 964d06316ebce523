"""The diagonal Fisher information of a strategy's trainable parameters, from per-sample gradients.

F_i = E_x E_y~q [(d log p(y|x) / d theta_i)^2], where p is the model's distribution over the active outputs of x and q
is p itself (`exact`: the sum over all labels; `sampled`: one label drawn per sample), the true label (`empirical`) or
the most probable one (`predicted`). The last two are not the Fisher information (Kunstner et al. 2019, arXiv
1905.12558; van de Ven 2025, arXiv 2502.11756). Gradients are squared sample by sample; the square of a batch's mean
gradient, which some toolkits use (Avalanche 0.6), is a different and usually smaller quantity.

A label with weight w is given to log p as a gradient of sqrt(w), so that the square has weight w.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from clbench.core.errors import DivergedError
from clbench.data.samples import Samples
from clbench.strategy.base import Strategy
from clbench.strategy.per_sample_gradients import mean_gradients

Kind = Literal["exact", "sampled", "empirical", "predicted"]


def diagonal_fisher(strategy: Strategy, samples: Samples, task: int, *, generator: torch.Generator,
                    kind: Kind = "exact", limit: int | None = None, layerwise: bool = True) -> dict[str, Tensor]:
    """Return the mean diagonal Fisher over samples, by name of each parameter that requires a gradient.

    The strategy is in eval mode meanwhile; its modes, parameters and gradients are unchanged afterwards. For weights on
    the meta device the result has shapes but no values.

    Args:
        strategy: its `forward`, `mask` and `world.prepare` define log p; inactive outputs have probability 0.
        samples: raw samples, on the strategy's device.
        task: the task index passed to `forward`.
        generator: on the CPU; draws the samples (if `limit` is smaller than their number) and the labels (`sampled`).
        kind: where the labels come from.
        limit: number of samples to use, drawn without replacement; None for all.
        layerwise: compute linear and convolutional layers in closed form (same result, faster) where possible; False
            uses `torch.func` for every parameter.

    Raises:
        ValueError: no samples, or nothing to train.
        DivergedError: the model gives NaN.
    """
    samples = samples.subset(limit, generator)
    draws = torch.rand(len(samples), generator=generator, dtype=torch.float32) if kind == "sampled" else None

    def log_p(logits: Tensor, tasks: Tensor) -> Tensor:
        return F.log_softmax(strategy.mask(logits, tasks), dim=1)

    def seeds(log_p: Tensor, part: slice) -> list[Tensor]:
        if log_p.isnan().any():
            raise DivergedError(f"the model's probabilities are NaN after task {task + 1}; there is no Fisher of them")
        return list(_seeds(log_p, kind, samples.y[part], None if draws is None else draws[part]))

    return mean_gradients(strategy, samples, task, read=log_p, seeds=seeds, measure=torch.square, layerwise=layerwise)


def _seeds(log_p: Tensor, kind: Kind, y: Tensor, u: Tensor | None) -> Iterator[Tensor]:
    """Yield gradients [N, C] for log_p [N, C], each with at most one label per sample: the root of that label's weight.

    `exact` yields one for each output that is active for any sample; for samples where it is not active it is 0.
    """
    if kind == "exact":
        root = (log_p / 2).exp()
        for label in log_p.isfinite().any(0).nonzero().flatten().tolist():
            seed = torch.zeros_like(log_p)
            seed[:, label] = root[:, label]
            yield seed
    else:
        labels = log_p.argmax(1) if kind == "predicted" else y if u is None else draw_labels(log_p, u)
        yield F.one_hot(labels, log_p.shape[1]).to(log_p.dtype)


def draw_labels(log_p: Tensor, u: Tensor) -> Tensor:
    """Return one label for each row of log_p [N, C] by inverting its distribution at uniform numbers u [N] in [0, 1).

    Each draw depends on its own row only, so not on the chunks or the device. Labels of probability 0 are never drawn.
    """
    cumulative = log_p.cpu().double().exp().cumsum(1)
    labels = torch.searchsorted(cumulative, (u.double() * cumulative[:, -1])[:, None], right=True)
    return labels[:, 0].to(log_p.device)
