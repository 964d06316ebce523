"""Means over samples of a measure of each sample's own gradients: their squares, say, which a batch's gradient hides.

Linear and convolutional layers take the closed form of clbench.layergrads, the rest goes through `torch.func`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from clbench.layergrads import Tap, activation_numbers, measured_sums, per_sample_layers, tapped
from clbench.strategy import Samples, Strategy

BUDGET = 2**25  # numbers that one chunk of samples may hold at a time, about: 128 MiB in float32
LARGEST_CHUNK = 512

Read = Callable[[Tensor, Tensor], Tensor]
Seeds = Callable[[Tensor, slice], Sequence[Tensor]]
Measure = Callable[[Tensor], Tensor]


def mean_gradients(strategy: Strategy, samples: Samples, task: int, *, read: Read, seeds: Seeds, measure: Measure,
                   layerwise: bool = True) -> dict[str, Tensor]:
    """Return the mean over samples of the measured gradients of read(logits), by name of each trainable parameter.

    The strategy is in eval mode meanwhile and keeps its modes, parameters and gradients. Of weights on the meta device,
    which have no values, there are no values either, only shapes.

    Args:
        strategy: its `forward` and `world.prepare` give the logits.
        samples: raw samples, on the strategy's device.
        task: the task that `forward` is told.
        read: makes of logits [N, C] and tasks [N] outputs [N, C] in which no sample depends on another.
        seeds: given outputs [N, C], detached, and the samples they are of, returns gradients [N, C] to feed to them;
            what each of them gives is measured apart, then added up.
        measure: torch.square or torch.abs, of each sample's gradient of each parameter.
        layerwise: use closed forms where that is possible (the same numbers, faster).

    Raises:
        ValueError: no samples, or nothing to train.
    """
    parameters: dict[str, Tensor] = {name: p for name, p in strategy.named_parameters() if p.requires_grad}
    if not len(samples) or not parameters:
        raise ValueError(f"per-sample gradients: needs samples and trainable parameters, got {len(samples)} and "
                         f"{len(parameters)}")
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

        def one(values: dict[str, Tensor], x: Tensor, tasks: Tensor, seed: Tensor) -> Tensor:
            out = read(functional_call(strategy, values, (x[None], task)), tasks[None])[0]
            return (out.masked_fill(seed == 0, 0.0) * seed).sum()  # log p of an inactive output is -inf

        per_sample = vmap(grad(one), in_dims=(None, 0, 0, 0))
        for number, some in enumerate(samples.chunks(chunk)):
            part = slice(number * chunk, (number + 1) * chunk)
            x, tasks = strategy.world.prepare(some.x).to(dtype), some.tasks
            logits, taps = tapped(strategy, layers, x, task)
            out = read(logits, tasks)
            fed = seeds(out.detach(), part)
            _add_layers(sums, out, taps, fed, measure)
            for seed in fed if rest else ():
                for name, g in per_sample(rest, x, tasks, seed).items():
                    sums[name] += measure(g).sum(0)
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


def _add_layers(sums: dict[str, Tensor], out: Tensor, taps: list[Tap], seeds: Sequence[Tensor],
                measure: Measure) -> None:
    """Add a chunk's measured gradients of the layers that have a closed form."""
    if not taps:
        return
    outputs = [tap.output for tap in taps]
    deltas = (torch.autograd.grad(out, outputs, seed, retain_graph=True, allow_unused=True) for seed in seeds)
    for name, total in measured_sums(taps, deltas, measure).items():
        sums[name] += total
