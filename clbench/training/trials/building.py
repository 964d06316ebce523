"""Models and strategies built from their declarations, wherever the current default device is (`meta` too)."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch

from clbench.core import files
from clbench.core.entry_points import resolve
from clbench.core.errors import ClbenchError, DataError, SpecError
from clbench.core.pretrained import WeightsSource
from clbench.core.registry import Registry
from clbench.data.stream import IMAGE_DIMS
from clbench.experiment.trial import Resolved, Weights
from clbench.models.network import Network
from clbench.models.weights import fill, hash_tensors, load_weights
from clbench.strategy.base import Strategy, World


def build_model(model: Resolved, weights: Weights | None, input_shape: tuple[int, ...], classes: int,
                registry: Registry) -> tuple[Network, list[str]]:
    """Return a model with its starting weights, and notes on them.

    Raises:
        SpecError: the model cannot be built for such inputs.
        DataError: the weights do not fit it, or are not those that were planned.
    """
    info = registry.model(model.name)
    build = resolve(info.build, f"model {info.name!r}")
    if info.any_name:
        build = partial(build, info.name)
    try:
        network: Network = build(info.options.model_validate(model.options), input_shape, classes)
    except ClbenchError:
        raise
    except Exception as error:
        raise SpecError(f"model {model} cannot be built for inputs {input_shape}: {error}") from error
    if weights is None:
        return network, []
    if weights.named:
        source: WeightsSource = resolve(info.weights, f"model {info.name!r}")
        tensors = source.load(model.name, weights.path)
        network.weights_hash = hash_tensors(tensors)
        return network, fill(network, tensors, weights.path)
    return network, load_weights(network, _as_planned(weights))


def _as_planned(weights: Weights) -> Path:
    """Return the file of weights after checking that its content is still the one that was planned."""
    try:
        found = files.hash_file(weights.path)
    except OSError as error:
        raise DataError(f"cannot read weights {weights.path}: {error.strerror}") from None
    if found != weights.sha256:
        raise DataError(f"weights {weights.path} are not those that were planned; run again")
    return Path(weights.path)


def build_strategy(method: Resolved, model: Network, world: World, registry: Registry) -> Strategy:
    """Return a method's strategy, untrained, around a model.

    Raises:
        SpecError: its options do not fit the model or the world, or what is declared is no strategy.
    """
    info = registry.strategy(method.name)
    cls = resolve(info.strategy, f"method {info.name!r}")
    strategy = cls(model, world, info.options.model_validate(method.options))
    if not isinstance(strategy, Strategy):
        raise SpecError(f"method {info.name!r}: {cls.__name__} is not a clbench.Strategy")
    return strategy


def channels_last(model: Network) -> Network:
    """Lay the weights of a model's convolutions out as `Prepare` does the images; no value changes."""
    for parameter in model.parameters():
        if parameter.dim() == IMAGE_DIMS:
            # Not `contiguous`, which leaves the weights of a first layer on grey images as they are.
            parameter.data = parameter.data.to(memory_format=torch.channels_last)
    return model
