"""The diagonal Fisher information of a strategy's trainable parameters, from per-sample gradients.

F_i = E_x E_y~q [(d log p(y|x) / d theta_i)^2], where p is the model's distribution over the active outputs of x and q
is p itself (`exact`: the sum over all labels; `sampled`: one label drawn per sample) or the true label (`empirical`,
which is not the Fisher: Kunstner et al. 2019, arXiv 1905.12558). Gradients are squared sample by sample; the square of
a batch's mean gradient, which some toolkits use (Avalanche 0.6), is a different and usually smaller quantity.

The weight w of a label enters as sqrt(w), the gradient that is fed to log p: it comes back out of the square as w.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from clbench.errors import DivergedError
from clbench.layergrads import Tap, activation_numbers, per_sample_layers, squared_sums, tapped
from clbench.strategy import Samples, Strategy

Kind = Literal["exact", "sampled", "empirical"]
BUDGET = 2**25  # numbers that one chunk of samples may hold at a time, about: 128 MiB in float32
LARGEST_CHUNK = 512


def diagonal_fisher(strategy: Strategy, samples: Samples, task: int, *, generator: torch.Generator,
                    kind: Kind = "exact", limit: int | None = None, layerwise: bool = True) -> dict[str, Tensor]:
    """Return the mean diagonal Fisher over samples, by name of each parameter that requires a gradient.

    The strategy is in eval mode meanwhile and keeps its modes, parameters and gradients. Of weights on the meta device,
    which have no values, the Fisher has none either, only shapes.

    Args:
        strategy: its `forward`, `mask` and `world.prepare` make log p; outputs that are not active have probability 0.
        samples: raw samples, on the strategy's device.
        task: the task that `forward` is told.
        generator: on the CPU; draws the samples (where `limit` bites) and the labels (`sampled`).
        kind: where the labels come from.
        limit: use only so many samples, drawn without replacement; None for all.
        layerwise: compute linear and convolutional layers in closed form (the same numbers, faster) where that is
            possible; False takes every parameter through `torch.func`.

    Raises:
        ValueError: no samples, or nothing to train.
        DivergedError: the model gives NaN.
    """
    parameters: dict[str, Tensor] = {name: p for name, p in strategy.named_parameters() if p.requires_grad}
    if not len(samples) or not parameters:
        raise ValueError(f"the Fisher needs samples and trainable parameters, got {len(samples)} and {len(parameters)}")
    if limit is not None and limit < len(samples):
        samples = samples.take(torch.randperm(len(samples), generator=generator)[:limit].to(samples.index_device))
    draws = torch.rand(len(samples), generator=generator, dtype=torch.float32) if kind == "sampled" else None
    dtype = next(iter(parameters.values())).dtype
    sums = {name: torch.zeros_like(p, requires_grad=False) for name, p in parameters.items()}
    if any(p.is_meta for p in parameters.values()):
        return sums
    with evaluating(strategy), torch.enable_grad():
        probe = strategy.world.prepare(next(samples.chunks(4)).x).to(dtype)
        layers = per_sample_layers(strategy, parameters, probe, task) if layerwise else []
        covered = {name for layer in layers for name in (layer.weight, layer.bias)}
        rest = {name: p.detach() for name, p in parameters.items() if name not in covered}
        numbers = 2 * sum(p.numel() for p in rest.values()) + activation_numbers(strategy, layers, probe, task)
        chunk = max(1, min(LARGEST_CHUNK, BUDGET // max(1, numbers)))
        for number, part in enumerate(samples.chunks(chunk)):
            x = strategy.world.prepare(part.x).to(dtype)
            tasks, y = part.tasks, part.y
            logits, taps = tapped(strategy, layers, x, task)
            log_p = F.log_softmax(strategy.mask(logits, tasks), dim=1)
            if log_p.isnan().any():
                raise DivergedError(f"the model's probabilities are NaN after task {task}; there is no Fisher of them")
            u = None if draws is None else draws[number * chunk:][:chunk]
            _add_chunk(sums, strategy, rest, log_p, taps, list(_seeds(log_p.detach(), kind, y, u)), x, tasks, task)
    return {name: total / len(samples) for name, total in sums.items()}


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module and its children into eval mode inside the block and give each its own mode back after it."""
    modes = [(m, m.training) for m in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for m, training in modes:
            m.training = training


def _seeds(log_p: Tensor, kind: Kind, y: Tensor, u: Tensor | None) -> Iterator[Tensor]:
    """Yield the gradients [N, C] to feed to log_p [N, C]: for each sample at most one label, by the root of its weight.

    `exact` yields one for each output that is active for any of the samples; where it is not active its weight is 0.
    """
    if kind == "exact":
        root = (log_p / 2).exp()
        for label in log_p.isfinite().any(0).nonzero().flatten().tolist():
            seed = torch.zeros_like(log_p)
            seed[:, label] = root[:, label]
            yield seed
    else:
        labels = y if u is None else draw_labels(log_p, u)
        yield F.one_hot(labels, log_p.shape[1]).to(log_p.dtype)


def draw_labels(log_p: Tensor, u: Tensor) -> Tensor:
    """Return one label for each row of log_p [N, C] by inverting its distribution at uniform numbers u [N] in [0, 1).

    Where a draw falls depends on its own row only, so neither on the chunks nor on the device; labels of probability 0
    are never drawn.
    """
    cumulative = log_p.cpu().double().exp().cumsum(1)
    labels = torch.searchsorted(cumulative, (u.double() * cumulative[:, -1])[:, None], right=True)
    return labels[:, 0].to(log_p.device)


def _add_chunk(sums: dict[str, Tensor], strategy: Strategy, rest: dict[str, Tensor], log_p: Tensor,
               taps: list[Tap], seeds: list[Tensor], x: Tensor, tasks: Tensor, task: int) -> None:
    """Add a chunk's squared gradients: layers with a closed form from their taps, the rest through `torch.func`."""
    if taps:
        outputs = [tap.output for tap in taps]
        deltas = (torch.autograd.grad(log_p, outputs, seed, retain_graph=True, allow_unused=True) for seed in seeds)
        for name, total in squared_sums(taps, deltas).items():
            sums[name] += total
    if rest:
        def weighted(values: dict[str, Tensor], x: Tensor, tasks: Tensor, seed: Tensor) -> Tensor:
            logits = functional_call(strategy, values, (x[None], task))
            log_p = F.log_softmax(strategy.mask(logits, tasks[None]), dim=1)[0]
            return (log_p.masked_fill(seed == 0, 0.0) * seed).sum()  # log p of an inactive output is -inf

        per_sample = vmap(grad(weighted), in_dims=(None, 0, 0, 0))
        for seed in seeds:
            for name, g in per_sample(rest, x, tasks, seed).items():
                sums[name] += g.square().sum(0)
