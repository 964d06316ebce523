"""Means over samples of a measure of per-sample gradients, such as their squares.

They cannot be computed from the gradient of a batch. Linear layers, convolutions and embeddings use the closed forms
below; all other layers use `torch.func`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from clbench.data.samples import Samples
from clbench.strategy.base import Strategy

MOST_VALUES = 2**25  # approximate number of values in memory for a chunk of samples: 128 MiB in float32
LARGEST_CHUNK = 512

Read = Callable[[Tensor, Tensor], Tensor]
Seeds = Callable[[Tensor, slice], Sequence[Tensor]]
Measure = Callable[[Tensor], Tensor]


def mean_gradients(strategy: Strategy, samples: Samples, task: int, *, read: Read, seeds: Seeds, measure: Measure,
                   layerwise: bool = True) -> dict[str, Tensor]:
    """Return the mean over samples of `measure` of the gradients of read(logits), by name of the trainable parameter.

    During the computation, the strategy is in eval mode. Afterwards its modes, parameters and gradients are unchanged.
    For weights on the meta device, the result has shapes but no values.

    Args:
        strategy: its `forward` and `stream_info.prepare` give the logits.
        samples: raw samples, on the strategy's device.
        task: the task index passed to `forward`.
        read: turns logits [N, C] and tasks [N] into outputs [N, C]; no sample may depend on another.
        seeds: given detached outputs [N, C] and the slice of their samples, returns gradients [N, C] with respect to
            the outputs. Each is backpropagated and measured separately, and the results are added.
        measure: torch.square or torch.abs, applied to each sample's gradient of each parameter.
        layerwise: use closed forms for the layers that have one (same result, faster).

    Raises:
        ValueError: there are no samples or no trainable parameters.
    """
    parameters: dict[str, Tensor] = {name: p for name, p in strategy.named_parameters() if p.requires_grad}
    if not len(samples) or not parameters:
        raise ValueError(f"per-sample gradients: needs samples and trainable parameters, got {len(samples)} and "
                         f"{len(parameters)}")
    dtype = next(iter(parameters.values())).dtype
    sums = {name: torch.zeros_like(p, requires_grad=False) for name, p in parameters.items()}
    if any(p.is_meta for p in parameters.values()):
        return sums
    # Compute attention by matrix products, because the fused CPU kernel does not support per-sample gradients.
    with evaluating(strategy), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        probe = _inputs(strategy, next(samples.chunks(4)), dtype)
        layers = per_sample_layers(strategy, parameters, probe, task) if layerwise else []
        covered = set(chain.from_iterable(layer.names for layer in layers))
        uncovered = {name: p.detach() for name, p in parameters.items() if name not in covered}
        numbers = 2 * sum(p.numel() for p in uncovered.values()) + activation_numbers(strategy, layers, probe, task)
        chunk_size = max(1, min(LARGEST_CHUNK, MOST_VALUES // max(1, numbers)))

        def one(values: dict[str, Tensor], x: Tensor, tasks: Tensor, seed: Tensor) -> Tensor:
            out = read(functional_call(strategy, values, (x[None], task)), tasks[None])[0]
            return (out.masked_fill(seed == 0, 0.0) * seed).sum()  # inactive outputs are -inf, and -inf * 0 is NaN

        per_sample = vmap(grad(one), in_dims=(None, 0, 0, 0))
        for number, chunk in enumerate(samples.chunks(chunk_size)):
            part = slice(number * chunk_size, (number + 1) * chunk_size)
            x, tasks = _inputs(strategy, chunk, dtype), chunk.tasks
            logits, taps = tap_layers(strategy, layers, x, task)
            out = read(logits, tasks)
            output_seeds = seeds(out.detach(), part)
            _add_layers(sums, out, taps, output_seeds, measure)
            with torch.no_grad():  # otherwise the graph for second derivatives stays in memory until the end
                for seed in output_seeds if uncovered else ():
                    for name, g in per_sample(uncovered, x, tasks, seed).items():
                        sums[name] += measure(g).sum(0)
    return {name: total / len(samples) for name, total in sums.items()}


def _inputs(strategy: Strategy, samples: Samples, dtype: torch.dtype) -> Tensor:
    """Return samples as inputs of the model, converted to `dtype` unless they are tokens."""
    x = strategy.stream_info.prepare(samples.x)
    return x.to(dtype) if x.is_floating_point() else x


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Set a module and its children to eval mode inside the block, and restore the mode of each afterwards."""
    modes = [(m, m.training) for m in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for m, training in modes:
            m.training = training


def _add_layers(sums: dict[str, Tensor], out: Tensor, taps: list[Tap], seeds: Sequence[Tensor],
                measure: Measure) -> None:
    """Add the measured gradients of a chunk to `sums`, for the layers that have a closed form."""
    if not taps:
        return
    outputs = [tap.output for tap in taps]
    deltas = (torch.autograd.grad(out, outputs, seed, retain_graph=True, allow_unused=True) for seed in seeds)
    for name, total in measured_sums(taps, deltas, measure).items():
        sums[name] += total


@dataclass(frozen=True)
class Layer:
    """A layer whose gradients have a closed form, and the names of its trainable parameters."""

    module: nn.Linear | nn.Conv2d | nn.Embedding
    weight: str | None
    bias: str | None

    @property
    def names(self) -> list[str]:
        """Return the names of the trainable parameters, the weight first."""
        return [name for name in (self.weight, self.bias) if name]


@dataclass(frozen=True)
class Tap:
    """Input and output of a layer in a forward pass over N samples."""

    layer: Layer
    input: Tensor
    output: Tensor


def tap_layers(network: nn.Module, layers: Sequence[Layer], x: Tensor, task: int) -> tuple[Tensor, list[Tap]]:
    """Return the network's logits [N, C] on x and a tap for each call of one of the layers, in order of the calls."""
    taps: list[Tap] = []

    def tap(layer: Layer) -> torch.utils.hooks.RemovableHandle:
        def hook(_: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor:
            taps.append(Tap(layer, arguments[0].detach(), output))
            return output.clone()  # later operations may work in place; the tapped output must not change

        return layer.module.register_forward_hook(hook)

    handles = [tap(layer) for layer in layers]
    try:
        logits: Tensor = network(x, task)
    finally:
        for handle in handles:
            handle.remove()
    return logits, taps


def per_sample_layers(network: nn.Module, parameters: dict[str, Tensor], x: Tensor, task: int) -> list[Layer]:
    """Return the layers whose closed form is valid.

    Such a layer is called once, with one row per sample, and its weights are used nowhere else. The last two conditions
    are tested on x [N, ...]: the gradient of the first sample's logits must be 0 for other rows, and the closed form
    must be equal to autograd's gradient of the weights.
    """
    names = {id(p): name for name, p in parameters.items()}
    candidates = []
    for module in network.modules():
        if _has_closed_form(module):
            parameter_names = {k: names.get(id(p)) for k, p in module._parameters.items()}
            if any(parameter_names.values()):
                assert isinstance(module, nn.Linear | nn.Conv2d | nn.Embedding)
                candidates.append(Layer(module, parameter_names.get("weight"), parameter_names.get("bias")))
    logits, taps = tap_layers(network, candidates, x, task)
    calls = [id(tap.layer.module) for tap in taps]
    taps = [t for t in taps if calls.count(id(t.layer.module)) == 1 and _row_per_sample(t, len(x))]
    if not taps:
        return []
    # An arbitrary direction: with a loss, gradients could vanish by symmetry or saturation.
    direction = torch.arange(logits.numel(), device=logits.device).cos().reshape(logits.shape).to(logits.dtype)
    first_direction = direction.clone()
    first_direction[1:] = 0
    weights = {name: parameters[name] for name in chain.from_iterable(t.layer.names for t in taps)}
    outputs = [t.output for t in taps]
    first_deltas = torch.autograd.grad(logits, outputs, first_direction, retain_graph=True, allow_unused=True)
    gradients = torch.autograd.grad(logits, [*outputs, *weights.values()], direction, allow_unused=True)
    deltas, true_gradients = gradients[:len(outputs)], dict(zip(weights, gradients[len(outputs):], strict=True))
    return [t.layer for t, delta, first_delta in zip(taps, deltas, first_deltas, strict=True)
            if (first_delta is None or not first_delta[1:].any()) and _agrees(t, delta, true_gradients)]


def _row_per_sample(tap: Tap, samples: int) -> bool:
    """Return whether a tap has the shape that the closed form needs."""
    dims = tap.input.dim()
    return (tap.output.requires_grad and len(tap.input) == samples
            and (dims == 4 if isinstance(tap.layer.module, nn.Conv2d) else dims >= 2))


def _has_closed_form(module: nn.Module) -> bool:
    """Return whether a module is a plain linear layer, an embedding, or an ungrouped, zero-padded 2-D convolution."""
    if type(module) is nn.Embedding:
        return module.max_norm is None and not module.scale_grad_by_freq
    if type(module) is nn.Conv2d:
        return module.groups == 1 and module.padding_mode == "zeros" and not isinstance(module.padding, str)
    return isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward


def _agrees(tap: Tap, delta: Tensor | None, true: Mapping[str, Tensor | None]) -> bool:
    """Return whether a layer's closed-form gradients, summed over samples, agree with autograd's."""
    for name, total in (measured_sums([tap], [[delta]], lambda g: g) if delta is not None else {}).items():
        expected = true[name]
        if expected is None or (total - expected).abs().max() > 1e-3 * expected.abs().max():
            return False
    return delta is not None or all(true[n] is None for n in (tap.layer.weight, tap.layer.bias) if n)


def per_sample(tap: Tap, delta: Tensor) -> dict[str, Tensor]:
    """Return the gradients [N, *shape] of a layer's trainable parameters, given the gradient of its output [N, ...]."""
    module, a = tap.layer.module, tap.input
    if isinstance(module, nn.Conv2d):
        assert not isinstance(module.padding, str)
        columns = F.unfold(a, module.kernel_size, module.dilation, module.padding, module.stride)  # [N, I k k, L]
        rows, inputs = delta.flatten(2), columns.transpose(1, 2)
    else:
        rows, inputs = delta.reshape(len(a), -1, delta.shape[-1]).transpose(1, 2), a.reshape(len(a), -1, a.shape[-1])
    out = {}  # rows [N, O, L], inputs [N, L, I]
    if tap.layer.weight:
        out[tap.layer.weight] = (rows @ inputs).reshape(len(a), *module.weight.shape)
    if tap.layer.bias:
        out[tap.layer.bias] = rows.sum(2)
    return out


def embedding_gradients(tap: Tap, delta: Tensor) -> tuple[Tensor, Tensor]:
    """Return row numbers of an embedding, int64 [P], and their gradients [P, D], for each pair of sample and row.

    If a sample looks up a row several times, the gradient is the sum. It is 0 for the embedding's padding row.
    """
    module = tap.layer.module
    assert isinstance(module, nn.Embedding)
    numbers = tap.input.reshape(len(tap.input), -1).long()
    pairs = numbers + len(module.weight) * torch.arange(len(numbers), device=numbers.device).unsqueeze(1)
    distinct, place = torch.unique(pairs, return_inverse=True)
    sums = delta.new_zeros(len(distinct), delta.shape[-1])
    sums.index_add_(0, place.flatten(), delta.reshape(-1, delta.shape[-1]))
    rows = distinct % len(module.weight)
    return rows, sums if module.padding_idx is None else sums * (rows != module.padding_idx).unsqueeze(1)


def measured_sums(taps: Sequence[Tap], deltas: Iterable[Sequence[Tensor | None]],
                  measure: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """Return `measure` of the per-sample gradients by parameter, summed over samples and over several backward passes.

    Args:
        taps: the taps of one forward pass.
        deltas: for each backward pass, the gradient at each tap's output; None if the output has no influence.
        measure: torch.square or torch.abs; the measure of a product must be the product of the measures.
    """
    sums: dict[str, Tensor] = {}
    flat: dict[int, Tensor] = {}  # index of a tap with one vector per sample -> the summed measure of its deltas
    for pass_deltas in deltas:
        for i, (tap, delta) in enumerate(zip(taps, pass_deltas, strict=True)):
            if delta is None:
                continue
            if isinstance(tap.layer.module, nn.Embedding):
                rows, gradients = embedding_gradients(tap, delta)
                name = str(tap.layer.weight)
                total = sums.setdefault(name, torch.zeros_like(tap.layer.module.weight, requires_grad=False))
                total.index_add_(0, rows, measure(gradients))
                continue
            if tap.input.dim() == 2:
                flat[i] = flat[i] + measure(delta) if i in flat else measure(delta)
                continue
            for name, g in per_sample(tap, delta).items():
                total = measure(g).sum(0)
                sums[name] = sums[name] + total if name in sums else total
    for i, measured in flat.items():
        layer = taps[i].layer
        if layer.weight:
            sums[layer.weight] = measured.T @ measure(taps[i].input)
        if layer.bias:
            sums[layer.bias] = measured.sum(0)
    return sums


def activation_numbers(network: nn.Module, layers: Sequence[Layer], x: Tensor, task: int) -> int:
    """Return an estimate of the number of values per sample in memory during a pass over these layers."""
    with torch.no_grad():
        _, taps = tap_layers(network, layers, x, task)
    activations = sum(2 * (t.input.numel() + t.output.numel()) // len(x) for t in taps)
    return activations + max((_temporary(t) for t in taps if t.input.dim() > 2), default=0)


def _temporary(tap: Tap) -> int:
    """Return the number of temporary values per sample that `per_sample` needs."""
    module = tap.layer.module
    positions = tap.output[0].numel() // len(module.weight)
    return 2 * module.weight.numel() + positions * module.weight[0].numel()
