"""Exact arithmetic on adapters: W + s BA as one weight, and weighted sums of adapters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain

import torch
from torch import Tensor

from clbench.core.errors import SpecError
from clbench_lora.peft_format import HEAD, PREFIX, Adapter, AdapterInfo, configure, of_language_model


def delta(adapter: Adapter, layer: str, weight: Tensor) -> Tensor:
    """Return the change of a layer's W that an adapter makes, in float64 and the shape of W.

    It is s BA, or with dora (m / |W + s BA|) (W + s BA) - W, row by row.

    Args:
        adapter: the adapter.
        layer: the layer's name.
        weight: W.
    """
    weight = weight.double()
    a, b = (factor.double().flatten(1) for factor in adapter.factors(layer))
    product = (adapter.scaling(layer) * (b @ a)).view_as(weight)
    magnitude = adapter.part(layer, "lora_magnitude_vector")
    if magnitude is None:
        return product
    changed_weight = weight + product
    scale: Tensor = magnitude.double().flatten() / changed_weight.flatten(1).norm(dim=1)
    return changed_weight * scale.view(-1, *[1] * (weight.dim() - 1)) - weight


def merged(adapter: Adapter, base: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of a plain model that computes the same function as the base with the adapter.

    Sums are computed in float64 and rounded once. If the adapter has a head, the model gets it: its bias is -inf
    outside the adapter's own classes.

    Raises:
        SpecError: the adapter has a bias on a layer without one, so the plain model has no place for it.
    """
    out = dict(base)
    for layer in adapter.layers:
        name = f"{layer}.weight"
        out[name] = (base[name].double() + delta(adapter, layer, base[name])).to(base[name].dtype)
        bias_change = adapter.part(layer, "lora_B.bias")
        if bias_change is None:
            continue
        bias = base.get(f"{layer}.bias")
        if bias is None:
            raise SpecError(f"cannot merge: the adapter has a bias on {layer}, which has none in the model; train with "
                            "lora.bias = false")
        out[f"{layer}.bias"] = (bias.double() + adapter.scaling(layer) * bias_change.double()).to(bias.dtype)
    if adapter.has_head:
        out[f"{HEAD}.weight"], out[f"{HEAD}.bias"] = adapter.head
    return out


def combined(adapters: Mapping[int, Adapter], weights: Sequence[float]) -> Adapter:
    """Return the adapter whose change of W is the weighted sum of the adapters' changes, exactly.

    The ranks add up: the A's are stacked by rows and the w s B's by columns, and the result has s = 1. (The product of
    a mean of the A's and a mean of the B's would be another matrix.) In the head, each class has its own task's row; if
    several tasks have a class, its row is their weighted mean.

    Args:
        adapters: the adapters by task; at least one, and all of the same trial.
        weights: the weight of each adapter, in the same order.

    Raises:
        SpecError: the number of weights is wrong; dora (it scales W's own rows, so its change has no low rank);
            different layers; or weights that cancel out for a class.
    """
    if not adapters or len(adapters) != len(weights):
        raise SpecError(f"{len(adapters)} adapters need as many weights, got {len(weights)}")
    parts = list(zip(adapters.values(), weights, strict=True))
    first = parts[0][0]
    if any(a.config.use_dora for a, _ in parts):
        raise SpecError("dora adapters cannot be combined: they scale the rows of W itself, so the sum of their "
                        "changes has no low rank; merge one instead")
    if any(a.layers != first.layers for a, _ in parts):
        raise SpecError("the adapters are on different layers; combine adapters of one trial")
    tensors, ranks = {}, {}
    for layer in first.layers:
        factors = [(*a.factors(layer), w * a.scaling(layer)) for a, w in parts]
        tensors[f"{PREFIX}{layer}.lora_A.weight"] = torch.cat([a for a, _, _ in factors])
        tensors[f"{PREFIX}{layer}.lora_B.weight"] = torch.cat(
            [(factor * b.double()).to(b.dtype) for _, b, factor in factors], 1)
        if first.config.lora_bias:
            total = sum(w * a.scaling(layer) * a.tensors[f"{PREFIX}{layer}.lora_B.bias"].double() for a, w in parts)
            assert isinstance(total, Tensor)
            tensors[f"{PREFIX}{layer}.lora_B.bias"] = total.to(factors[0][1].dtype)
        ranks[layer] = len(tensors[f"{PREFIX}{layer}.lora_A.weight"])
    classes = tuple(dict.fromkeys(chain.from_iterable(a.info.classes for a, _ in parts)))
    if first.has_head:
        tensors |= _combined_head(parts, classes)
    info = AdapterInfo(trial=first.info.trial, task=None, classes=classes, base=first.info.base,
                       mixture=dict(zip(adapters, weights, strict=True)), names=first.info.names,
                       class_names=_class_names(list(adapters.values()), classes))
    config = configure(ranks, {layer: float(rank) for layer, rank in ranks.items()}, bias=first.config.lora_bias)
    config = config.model_copy(update={"exclude_modules": first.config.exclude_modules})
    if not first.has_head:
        config = of_language_model(config, first.config.base_model_name_or_path, first.config.revision)
    return Adapter(config, tensors, info)


def _combined_head(parts: Sequence[tuple[Adapter, float]], classes: Sequence[int]) -> dict[str, Tensor]:
    """Return the head of weighted adapters, by PEFT's names: each class has its task's row, or the mean of several."""
    weight, bias = (t.clone() for t in parts[0][0].head)
    for c in classes:
        shares = [(a, w) for a, w in parts if c in a.info.classes]
        if len(shares) == 1:
            shares = [(shares[0][0], 1.0)]
        total_weight = sum(w for _, w in shares)
        if not total_weight:
            raise SpecError(f"the weights of the tasks that have class {c} add up to 0; choose others")
        for tensor, place in ((weight, 0), (bias, 1)):
            mean = sum(w / total_weight * a.head[place][c].double() for a, w in shares)
            assert isinstance(mean, Tensor)
            tensor[c] = mean.to(tensor.dtype)
    return {f"{PREFIX}{HEAD}.weight": weight, f"{PREFIX}{HEAD}.bias": bias}


def _class_names(adapters: Sequence[Adapter], classes: Sequence[int]) -> tuple[str, ...]:
    """Return the names of a mixture's classes. An output that is a different class in each task gets all their names.

    The result is empty if any class has no name.
    """
    names: dict[int, dict[str, None]] = {}
    for adapter in adapters:
        for output, name in zip(adapter.info.classes, adapter.info.class_names, strict=False):  # it may have no names
            names.setdefault(output, {})[name] = None
    return tuple(" / ".join(names[output]) for output in classes) if len(names) == len(classes) else ()
