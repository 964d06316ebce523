"""The state of a strategy as tensors and JSON, and how it is loaded into a new strategy, which may be larger.

The structure of a strategy is not saved. A new strategy goes through `before_task` and `before_phase` of the learned
tasks without training, which adds heads, columns and adapters as before. Then every tensor is loaded by its name, and
plain attributes and `requires_grad` are set. A state that does not fit is refused. A state is never executed as code.

To grow a state for a strategy with more tasks and outputs, clbench compares untrained strategies of the old and the new
size. If a tensor has different shapes in them, the saved tensor grows in the same dimensions: learned values come
first, followed by the untrained values of the larger strategy. A state that cannot grow in this way is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from clbench.core.torch_private import INNER, attributes_of
from clbench.models.network import Ports
from clbench.strategy.base import Strategy, StreamInfo
from clbench.strategy.granted import PhaseSpec

UNCHANGING = (BaseModel, StreamInfo, Ports, type, FunctionType, BuiltinFunctionType, ModuleType, torch.dtype,
              torch.device, Path)
NOT_STORABLE = (torch.complex32, torch.complex128)  # dtypes that safetensors does not have
CONTAINERS = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}


class SnapshotError(Exception):
    """Raised if a state cannot be saved, read or restored; the message has the reason."""


class StrategyState(BaseModel):
    """The state of a strategy except its tensors."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    parameters: list[str] = []
    trained: list[str] = []  # parameters that require a gradient
    attributes: dict[str, dict[str, Any]] = {}  # encoded plain attributes, by module
    shared: dict[str, str] = {}  # attributes that are the same list, dict or set as an earlier one, and the earlier one
    empty: list[str] = []  # buffers that are None


def capture(strategy: Strategy) -> tuple[StrategyState, dict[str, Tensor]]:
    """Return the state of a strategy, and its tensors by name.

    Raises:
        SnapshotError: a part of the state cannot be saved.
    """
    if strategy.not_resumable:
        raise SnapshotError(strategy.not_resumable)
    tensors = strategy.state_dict()
    for name, value in tensors.items():
        if not isinstance(value, Tensor):
            raise SnapshotError(f"{name} in its state_dict is a {type(value).__name__}, not a tensor")
        if value.layout is not torch.strided or value.dtype in NOT_STORABLE:
            raise SnapshotError(f"{name} is a tensor of {value.layout} and {value.dtype}, which safetensors cannot "
                                "store. Store it as a dense tensor of another dtype")
    parameters = dict(strategy.named_parameters(remove_duplicate=False))
    empty = []
    for module_name, module in strategy.named_modules():
        for name, buffer in module._buffers.items():
            if buffer is None and name not in module._non_persistent_buffers_set:
                empty.append(full_name(module_name, name))
    trained = sorted(name for name, parameter in parameters.items() if parameter.requires_grad)
    return StrategyState(parameters=sorted(parameters), trained=trained, attributes=plain_attributes(strategy),
                         shared=shared_attributes(strategy), empty=empty), tensors


def plain_attributes(strategy: Strategy) -> dict[str, dict[str, Any]]:
    """Return the encoded plain attributes of a strategy's modules, by the modules' names.

    The method's own modules may have other attributes only if these are the same when the strategy is built again.
    Modules of torch, and of the classes in the model that the method received, store what they learn in tensors only.

    Raises:
        SnapshotError: a module of the method has an attribute that is not allowed.
    """
    modules = {id(module) for module in strategy.modules()}
    attributes: dict[str, dict[str, Any]] = {}
    for module_name, module in strategy.named_modules():
        attributes[module_name] = {}
        of_torch = type(module).__module__.partition(".")[0] == "torch"
        of_method = module is strategy or not (of_torch or type(module) in strategy.model_classes)
        for name, value in attributes_of(module):
            if is_plain(value):
                attributes[module_name][name] = encode(value)
            elif of_method and not is_plain(value, modules):
                raise SnapshotError(f"the attribute {full_name(module_name, name)} is a "
                                    f"{type_in_words(value, modules)}, which cannot be saved. Store tensors in "
                                    "parameters or buffers, and other state in numbers, strings or lists of them")
    return attributes


def shared_attributes(strategy: Strategy) -> dict[str, str]:
    """Return the plain attributes that are the same list, dict or set as an earlier one, with the earlier one."""
    earlier_names: dict[int, str] = {}
    shared = {}
    for module_name, module in strategy.named_modules():
        for name, value in attributes_of(module):
            if type(value) in (list, dict, set) and is_plain(value):
                attribute = full_name(module_name, name)
                earlier = earlier_names.setdefault(id(value), attribute)
                if earlier != attribute:
                    shared[attribute] = earlier
    return shared


def full_name(module_name: str, name: str) -> str:
    """Return the name of a part of a module, as seen from the strategy."""
    return f"{module_name}.{name}".lstrip(".")


def type_in_words(value: Any, modules: Set[int]) -> str:
    """Return the type of a value that is not plain; for a container, also that of its first item that is not plain."""
    items = [*value, *value.values()] if type(value) is dict else value
    if type(value) is dict or type(value) in CONTAINERS.values():
        inner = next(item for item in items if not is_plain(item, modules))
        return f"{type(value).__name__} with a {type_in_words(inner, modules)}"
    return type(value).__name__


def is_plain(value: Any, modules: Set[int] | None = None) -> bool:
    """Return whether a value is a number, a string, None, or a container of such values.

    Given the IDs of the strategy's modules, these modules and objects that never change are allowed too.
    """
    if type(value) is dict:
        return all(is_plain(key) and is_plain(inner, modules) for key, inner in value.items())
    if type(value) in CONTAINERS.values():
        return all(is_plain(inner, modules) for inner in value)
    is_rebuilt = modules is not None and (id(value) in modules or isinstance(value, UNCHANGING))
    return is_rebuilt or value is None or type(value) in (bool, int, float, str, PhaseSpec)


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
    """Return the value that was encoded; raise ValueError, TypeError or KeyError if the encoding is invalid."""
    if not isinstance(value, dict):
        return value
    (kind, inner), = value.items()
    if kind == "float":
        return float.fromhex(inner)
    if kind == "dict":
        return {decode(key): decode(item) for key, item in inner}
    return CONTAINERS[kind](map(decode, inner))


def load(state: StrategyState, tensors: Mapping[str, Tensor], strategy: Strategy) -> None:
    """Load a state into a strategy with the same structure.

    A state that does not fit can also raise errors of torch and Python. After any error, the strategy is unusable.

    Raises:
        SnapshotError: the strategy has other parameters, or the state sets an internal attribute of torch.
    """
    absent = strategy.state_dict().keys() - tensors.keys()  # buffers that training has removed
    for name in absent.union(state.empty):
        module_name, _, buffer_name = name.rpartition(".")
        module = strategy.get_submodule(module_name)
        module._buffers.pop(buffer_name, None)
        if name in state.empty:
            module.register_buffer(buffer_name, None)
    try:
        strategy.load_state_dict(tensors)
    except RuntimeError:
        require_parameters(strategy, state)  # it gives the reason if modules are missing
        raise
    parameters = require_parameters(strategy, state)
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in state.trained)
    loaded: dict[str, Any] = {}
    for module_name, values in state.attributes.items():
        present = vars(strategy.get_submodule(module_name))
        for name, encoded in values.items():
            if name in INNER:
                raise SnapshotError(f"the saved state sets {name}")
            attribute, value = full_name(module_name, name), decode(encoded)
            if attribute in state.shared:
                present[name] = loaded[state.shared[attribute]]
            elif name not in present or present[name] != value:  # an equal value stays the same object
                present[name] = value
            loaded[attribute] = present[name]


def require_parameters(strategy: Strategy, state: StrategyState) -> dict[str, nn.Parameter]:
    """Return the parameters of a strategy by name.

    Raises:
        SnapshotError: the saved strategy had other parameters.
    """
    parameters = dict(strategy.named_parameters(remove_duplicate=False))
    if different := sorted(parameters.keys() ^ set(state.parameters)):
        raise SnapshotError(f"it has other parameters than the saved state, such as {different[0]}. A strategy adds "
                            "parameters and modules in __init__, before_task or before_phase only")
    return parameters


def grow(state: StrategyState, tensors: Mapping[str, Tensor], original: Strategy, larger: Strategy,
         ) -> tuple[StrategyState, dict[str, Tensor]]:
    """Return a state and tensors, grown from the size of `original` to that of `larger`; both are untrained.

    Attributes are those that were learned, with the numbers of tasks and outputs of `larger`.

    Raises:
        SnapshotError: it is not known how a tensor or an attribute grows.
    """
    old_info, new_info = original.stream_info, larger.stream_info
    before, after = original.state_dict(), larger.state_dict()
    grown = {}
    for name, tensor in tensors.items():
        if name in before and name in after:
            grown_tensor = _grow(tensor, before[name], after[name])
        else:
            grown_tensor = None if old_info.classes != new_info.classes and old_info.classes in tensor.shape else tensor
        if grown_tensor is None:
            raise SnapshotError(f"it stores {name} {list(tensor.shape)}, of which it is not known how it grows with "
                                f"more {'outputs' if old_info.classes != new_info.classes else 'tasks'}")
        grown[name] = grown_tensor
    old_attributes, new_attributes = plain_attributes(original), plain_attributes(larger)
    sizes = {(old_info.classes, new_info.classes), (old_info.tasks, new_info.tasks)}
    attributes = {module_name: dict(values) for module_name, values in state.attributes.items()}
    for module_name, values in attributes.items():
        for name, learned in values.items():
            old, new = (untrained.get(module_name, {}).get(name) for untrained in (old_attributes, new_attributes))
            if old == new:
                continue
            if learned != old or not any((decode(old), decode(new)) == size for size in sizes):  # may be lists
                raise SnapshotError(f"its {full_name(module_name, name)} is {decode(old)} for {old_info.tasks} tasks "
                                    f"and {decode(new)} for {new_info.tasks}")
            values[name] = new
    return state.model_copy(update={"attributes": attributes}), grown


def _grow(tensor: Tensor, before: Tensor, after: Tensor) -> Tensor | None:
    """Return a learned tensor, grown to more outputs and tasks; None if it is not known how it grows.

    `before` and `after` are this tensor in untrained strategies of the old and the new size.
    """
    if before.shape == after.shape:  # such as a replay buffer
        return tensor
    if not before.dim() == after.dim() == tensor.dim():
        return None
    sizes = list(zip(tensor.shape, before.shape, after.shape, strict=True))
    if any(old != new and (learned != old or old > new) for learned, old, new in sizes):
        return None
    shape = [learned if old == new else new for learned, old, new in sizes]
    grown = after.detach().clone() if shape == list(after.shape) else torch.zeros(shape)
    grown = grown.to("cpu", tensor.dtype)
    grown[tuple(map(slice, tensor.shape))] = tensor
    return grown
