"""What a strategy has learned, as tensors and JSON, and how a new strategy gets it.

A strategy's structure is not saved. It is built anew and goes through `before_task` and `before_phase` of the learned
tasks without training, which adds heads, columns and adapters as before. Then every tensor is loaded by its name, and
plain attributes and `requires_grad` are set. A state that does not fit is refused. Nothing in it is ever run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from clbench.core.device import out_of_memory
from clbench.experiment.spec import Recipe
from clbench.strategy.base import Strategy, World
from clbench.strategy.granted import Phase
from clbench.training.replica import Replica

INNER = frozenset(vars(nn.Module())) - {"training"}  # torch's own attributes of a module
UNCHANGING = (BaseModel, World, type, FunctionType, BuiltinFunctionType, ModuleType, torch.dtype, torch.device, Path)
CONTAINERS = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}


class SnapshotError(Exception):
    """A state cannot be saved, read or restored, for the reason given."""


class StrategyState(BaseModel):
    """What a strategy has learned apart from its tensors."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    parameters: list[str] = []
    trained: list[str] = []  # parameters that require a gradient
    attributes: dict[str, dict[str, Any]] = {}  # plain ones, by module
    empty: list[str] = []  # buffers that are None


def capture(strategy: Strategy) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the fields of a strategy's `StrategyState`, and its tensors.

    Raises:
        SnapshotError: it has something that cannot be saved.
    """
    if strategy.not_resumable:
        raise SnapshotError(strategy.not_resumable)
    tensors = strategy.state_dict()
    for name, value in tensors.items():
        if not isinstance(value, Tensor):
            raise SnapshotError(f"{name} in its state_dict is a {type(value).__name__}, not a tensor")
    parameters = dict(strategy.named_parameters(remove_duplicate=False))
    fields = {"parameters": sorted(parameters),
              "trained": sorted(name for name, parameter in parameters.items() if parameter.requires_grad),
              "attributes": plain_attributes(strategy),
              "empty": [name for name, buffer in saved_buffers(strategy).items() if buffer is None]}
    return fields, tensors


def plain_attributes(strategy: Strategy) -> dict[str, dict[str, Any]]:
    """Return the encoded plain attributes of a strategy's modules, by the modules' names.

    The method's own modules may have no others but those that are the same when the strategy is built anew. Torch's
    modules, the model's and copies of them learn by their tensors alone.

    Raises:
        SnapshotError: a module of the method has another attribute.
    """
    modules = {id(module) for module in strategy.modules()}
    model_classes = {type(module) for module in strategy.model.modules()}

    def is_rebuilt(value: Any) -> bool:
        return id(value) in modules or isinstance(value, UNCHANGING)

    attributes = {}
    for where, module in strategy.named_modules():
        values = {name: value for name, value in vars(module).items() if name not in INNER}
        of_torch = type(module).__module__.partition(".")[0] == "torch"
        for name, value in values.items():
            if module is not strategy and (of_torch or type(module) in model_classes):
                break
            if not is_plain(value, is_rebuilt):
                raise SnapshotError(f"its attribute {f'{where}.{name}'.lstrip('.')} is a {type(value).__name__}: keep "
                                    "it in plain attributes, or in parameters and buffers")
        attributes[where] = {name: encode(value) for name, value in values.items() if is_plain(value)}
    return attributes


def saved_buffers(strategy: Strategy) -> dict[str, Tensor | None]:
    """Return the buffers that a `state_dict` has, and those that are None."""
    buffers = {}
    for where, module in strategy.named_modules():
        for name, buffer in module._buffers.items():
            if name not in module._non_persistent_buffers_set:
                buffers[f"{where}.{name}".lstrip(".")] = buffer
    return buffers


def is_plain(value: Any, also: Callable[[Any], bool] = lambda value: False) -> bool:
    """Tell whether a value is a number, a string, None, something else that is allowed, or a container of such."""
    if type(value) is dict:
        return all(is_plain(key) and is_plain(inner, also) for key, inner in value.items())
    if type(value) in CONTAINERS.values():
        return all(is_plain(inner, also) for inner in value)
    return value is None or type(value) in (bool, int, float, str, Phase) or also(value)


def encode(value: Any) -> Any:
    """Return a plain value in a form that JSON can store; containers carry the name of their type."""
    if type(value) is dict:
        return {"dict": [[encode(key), encode(inner)] for key, inner in value.items()]}
    if type(value) in CONTAINERS.values():
        return {type(value).__name__: [encode(inner) for inner in value]}
    if type(value) is float:
        return {"float": value.hex()}  # JSON has no infinity
    return value


def decode(value: Any) -> Any:
    """Return the value that was encoded; ValueError, TypeError or KeyError if none was."""
    if not isinstance(value, dict):
        return value
    (kind, inner), = value.items()
    if kind == "float":
        return float.fromhex(inner)
    if kind == "dict":
        return {decode(key): decode(item) for key, item in inner}
    return CONTAINERS[kind](map(decode, inner))


def retrace(replica: Replica, learned: int, recipe: Recipe) -> None:
    """Give a new strategy the structure that it has after some tasks of a recipe.

    Raises:
        SnapshotError: it cannot do without training; the strategy is then unusable.
    """
    try:
        replica.retrace(learned, recipe)
    except Exception as error:  # of a plugin, which may expect to be trained
        if out_of_memory(error):
            raise
        raise SnapshotError(f"{type(error).__name__} in a pass through its tasks without training: {error}") from error


def restore(state: StrategyState, tensors: Mapping[str, Tensor], strategy: Strategy,
            generator: Tensor | None = None) -> None:
    """Load what was learned, and the state of the generator if there is one, into a strategy with the same structure.

    Raises:
        SnapshotError: it does not fit; the strategy is then unusable.
    """
    try:
        _load_tensors(state, tensors, strategy)
        _set_attributes(state, strategy)
        if generator is not None:
            strategy.world.generator.set_state(generator)
    except (RuntimeError, KeyError, ValueError, TypeError, AttributeError) as error:
        if out_of_memory(error):  # which is no fault of the state
            raise
        raise SnapshotError(f"the saved state does not fit: {' '.join(str(error).split())[:200]}") from error


def _load_tensors(state: StrategyState, tensors: Mapping[str, Tensor], strategy: Strategy) -> None:
    """Load parameters and buffers, and remove buffers that were removed by learning."""
    for name in saved_buffers(strategy).keys() - tensors.keys():
        module, last = _owner(strategy, name)
        delattr(module, last)
    for name in state.empty:
        module, last = _owner(strategy, name)
        module.register_buffer(last, None)
    strategy.load_state_dict(tensors)
    parameters = dict(strategy.named_parameters(remove_duplicate=False))
    if sorted(parameters) != state.parameters:
        raise SnapshotError("it has other parameters than the saved state")
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in state.trained)


def _owner(strategy: Strategy, name: str) -> tuple[nn.Module, str]:
    """Return the module that a buffer belongs to, and the buffer's name in it."""
    where, _, last = name.rpartition(".")
    return strategy.get_submodule(where), last


def _set_attributes(state: StrategyState, strategy: Strategy) -> None:
    """Set plain attributes; one that has its value already stays the same object."""
    modules = dict(strategy.named_modules())
    for where, values in state.attributes.items():
        present = modules[where].__dict__
        for name, encoded in values.items():
            if name in INNER:
                raise SnapshotError(f"the saved state sets {name}")
            value = decode(encoded)
            if name not in present or present[name] != value:
                present[name] = value
