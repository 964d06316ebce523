"""The diagonal Fisher information of a strategy's trainable parameters, from per-sample gradients.

F_i = E_x E_y~q [(d log p(y|x) / d theta_i)^2], where p is the model's distribution over the active outputs of x and q
is p itself (`exact`: the sum over all labels; `sampled`: one label drawn per sample), the true label (`empirical`) or
the most probable one (`predicted`). The last two are not the Fisher information (Kunstner et al. 2019, arXiv
1905.12558; van de Ven 2025, arXiv 2502.11756). Gradients are squared sample by sample; the square of a batch's mean
gradient, which some toolkits use (Avalanche 0.6), is a different and usually smaller quantity.

For a label with weight w, backpropagation starts with the gradient sqrt(w) with respect to log p of this label, so that
the squared gradient has weight w.

If the model predicts a number f, p is a Gaussian with variance 1/2, so that its negative log-likelihood is the squared
error: log p(y|x) = -(y - f)^2 up to a constant. Targets are standardized. Then F_i = 2 E_x (df / d theta_i)^2.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from clbench.core.errors import DivergedError, SpecError
from clbench.data.samples import Samples
from clbench.models.scoring import IGNORED
from clbench.strategy.base import Batch, Strategy, StreamInfo
from clbench.strategy.objectives import predicted_numbers
from clbench.strategy.per_sample_gradients import evaluating, mean_gradients

Kind = Literal["exact", "sampled", "empirical", "predicted"]


def diagonal_fisher(strategy: Strategy, samples: Samples, task: int, *, generator: torch.Generator,
                    kind: Kind = "exact", limit: int | None = None, layerwise: bool = True) -> dict[str, Tensor]:
    """Return the mean diagonal Fisher over samples, by name of each parameter that requires a gradient.

    During the computation, the strategy is in eval mode. Afterwards its modes, parameters and gradients are unchanged.
    For weights on the meta device, the result has shapes but no values.

    Args:
        strategy: its `forward`, `mask` and `stream_info.prepare` define log p; inactive outputs have probability 0.
        samples: raw samples, on the strategy's device.
        task: the task index passed to `forward`.
        generator: on the CPU; draws the samples (if `limit` is smaller than their number) and the labels (`sampled`).
        kind: the source of the labels, see above.
        limit: number of samples to use, drawn without replacement; None for all.
        layerwise: use closed forms for layers that have one, such as linear and convolutional layers (same result,
            faster); False uses `torch.func` for every parameter.

    Raises:
        ValueError: there are no samples or no trainable parameters.
        DivergedError: the model's probabilities are NaN.
        SpecError: the model's objective does not support this kind.
    """
    samples = samples.subset(limit, generator)
    if strategy.stream_info.predicts_tokens:
        return _fisher_of_sequences(strategy, samples, task, kind, generator)
    numbers = strategy.stream_info.predicts_numbers
    check_kind(strategy.stream_info, kind)
    draw = torch.randn if numbers else torch.rand
    draws = draw(len(samples), generator=generator, dtype=torch.float32) if kind == "sampled" else None

    def log_p(logits: Tensor, tasks: Tensor) -> Tensor:
        masked = strategy.mask(logits, tasks)
        return masked if numbers else F.log_softmax(masked, dim=1)

    def seeds(log_p: Tensor, part: slice) -> list[Tensor]:
        if log_p.isnan().any():
            raise DivergedError(f"the model's probabilities are NaN after task {task + 1}; there is no Fisher of them")
        y, drawn = samples.y[part], None if draws is None else draws[part]
        return [_number_seed(log_p, kind, y, drawn)] if numbers else list(_seeds(log_p, kind, y, drawn))

    return mean_gradients(strategy, samples, task, read=log_p, seeds=seeds, measure=torch.square, layerwise=layerwise)


def check_kind(stream_info: StreamInfo, kind: Kind) -> None:
    """Check that the objective supports a kind of labels.

    Raises:
        SpecError: a language model would need its distribution over all labels of an item, or the Fisher would be 0.
    """
    if stream_info.predicts_numbers and kind == "predicted":
        raise SpecError("fisher = predicted takes the most probable label, which is the predicted number itself, so "
                        "the gradients are 0; choose fisher = exact, sampled or empirical")
    if stream_info.predicts_tokens and kind not in ("sampled", "empirical"):
        raise SpecError(f"fisher = {kind} needs the distribution over all labels of an item, which a language model "
                        "does not give; choose fisher = sampled or fisher = empirical")


def _fisher_of_sequences(strategy: Strategy, samples: Samples, task: int, kind: Kind, generator: torch.Generator
                         ) -> dict[str, Tensor]:
    """Return the Fisher of a language model.

    log p of an item is the sum over its targets, each given the true tokens before it. `sampled` draws one token for
    each target.
    """
    check_kind(strategy.stream_info, kind)
    parameters = {name: p for name, p in strategy.named_parameters() if p.requires_grad}
    if not len(samples) or not parameters:
        raise ValueError(f"Fisher: needs samples and trainable parameters, got {len(samples)} and {len(parameters)}")
    sums = {name: torch.zeros_like(p, requires_grad=False) for name, p in parameters.items()}
    if any(p.is_meta for p in parameters.values()):
        return sums
    with evaluating(strategy), torch.enable_grad():
        for item in samples.chunks(1):
            batch, = strategy.collate([Batch(strategy.stream_info.prepare(item.x), item.y, item.tasks, task)])
            assert batch.at is not None
            is_target = batch.y[0] != IGNORED
            log_p = strategy.head_of_task(task)(
                strategy(batch.x, task)[0, batch.at[0][is_target]]).float().log_softmax(1)
            if log_p.isnan().any():
                raise DivergedError(f"the model's probabilities are NaN after task {task + 1}; there is no Fisher of "
                                    "them")
            labels = batch.y[0][is_target]
            if kind == "sampled":
                labels = draw_labels(log_p.detach(), torch.rand(len(labels), generator=generator))
            gradients = torch.autograd.grad(log_p.gather(1, labels[:, None]).sum(), list(parameters.values()),
                                            allow_unused=True)
            for name, gradient in zip(parameters, gradients, strict=True):
                if gradient is not None:
                    sums[name] += gradient.square()
    return {name: total / len(samples) for name, total in sums.items()}


def _number_seed(out: Tensor, kind: Kind, y: Tensor, normal: Tensor | None) -> Tensor:
    """Return the gradient [N, C] of log p with respect to the outputs [N, C], one of which is active for each sample.

    With y = f + e, it is 2 e at the active output. For `exact`, e^2 is replaced by 1/2, its mean under the model.
    """
    if kind == "empirical":
        slope = 2 * (y - predicted_numbers(out))
    else:
        slope = math.sqrt(2) * (torch.ones_like(out[:, 0]) if normal is None else normal.to(out))
    return torch.where(out.isfinite(), slope[:, None], 0.0)


def _seeds(log_p: Tensor, kind: Kind, y: Tensor, u: Tensor | None) -> Iterator[Tensor]:
    """Yield gradients [N, C] with respect to log_p: the square root of a label's weight at that label, else 0.

    Each gradient has at most one label per sample. `exact` yields one gradient for each output that is active for any
    sample, with 0 for samples for which the output is not active.
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

    Each draw depends on its row only, and not on the chunks or the device. Labels of probability 0 are never drawn.
    """
    cumulative = log_p.cpu().double().exp().cumsum(1)
    labels = torch.searchsorted(cumulative, (u.double() * cumulative[:, -1])[:, None], right=True)
    return labels[:, 0].to(log_p.device)
