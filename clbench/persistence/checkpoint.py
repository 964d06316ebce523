"""Checkpoints: written after a task, so that a trial can continue when its process was killed.

A checkpoint is one safetensors file: the strategy's `state_dict`, the state of its generator, the optimiser's moments
where the recipe keeps them, and in the metadata, as JSON, what is no tensor. Nothing in it is ever run.

A strategy's structure is not stored. It is built anew and led through `before_task` and `before_phase` of the learned
tasks without training, which adds heads, columns and adapters as it did before; then every tensor is loaded by its
name, and plain attributes, modes and `requires_grad` are set to what they were. What does not fit is no checkpoint of
this strategy, and the trial starts over.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from clbench.core import identity
from clbench.core.artifacts import save_tensors
from clbench.core.device import out_of_memory
from clbench.core.entry_points import package_of
from clbench.results.curve import Curve
from clbench.results.records import Costs, ErrorCounts, Probe, Provenance, Timings
from clbench.strategy.base import Strategy, World
from clbench.strategy.granted import Phase

SECONDS = 5.0  # of work that a kill may cost at least: tasks are gone on from only where they take longer
FILE = "state.safetensors"
SCHEMA = 1
LIBRARIES = frozenset(("timm", "torchvision", "transformers"))  # of models, installed as releases
INNER = frozenset(vars(nn.Module())) - {"training"}  # torch's own attributes of a module
STRATEGY, OPTIMIZER, GENERATOR = "strategy/", "optimizer/", "generator"


class Unresumable(Exception):
    """A checkpoint cannot be written or resumed from; the trial starts over."""


class Described(BaseModel):
    """What beside tensors a strategy has become by learning: what `described` says."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    parameters: list[str] = []
    trained: list[str] = []  # parameters that require a gradient
    attributes: dict[str, dict[str, Any]] = {}  # plain ones, by module
    empty: list[str] = []  # buffers that are None
    problem: str = ""  # why there is nothing to go on from


class CheckpointHeader(Described):
    """The part of a checkpoint that is not tensors."""

    schema_version: int = SCHEMA
    key: str
    code: str  # `code_of` strategy, model and clbench
    data: str = ""  # fingerprint of the stream
    versions: dict[str, str]
    device: str
    threads: int
    started: datetime.datetime
    learned: int  # tasks
    R: list[list[float]]
    task_inference: list[list[float]]
    costs: Costs
    timings: Timings
    errors: list[ErrorCounts] = []
    probe: Probe | None = None
    notes: list[str]
    last_losses: list[list[float]] = []
    curve: Curve | None = None


def path_of(folder: Path, key: str) -> Path:
    """Return where a trial's checkpoint is or would be."""
    return folder / key / FILE


def read_header(path: Path) -> CheckpointHeader | None:
    """Return the header of a checkpoint, None if there is no checkpoint.

    Raises:
        Unresumable: the file cannot be read.
    """
    try:
        with safe_open(path, "pt") as file:
            return CheckpointHeader.model_validate_json((file.metadata() or {}).get("clbench", ""))
    except FileNotFoundError:
        return None
    except (OSError, SafetensorError, ValidationError, ValueError, RecursionError) as error:
        raise Unresumable(f"the checkpoint cannot be read ({type(error).__name__})") from None


def write(path: Path, header: CheckpointHeader, strategy: Strategy, moments: Mapping[str, Tensor]) -> None:
    """Write a checkpoint, replacing an older one; if the strategy cannot be resumed, one that says why.

    Raises:
        OSError: it cannot be written.
    """
    try:
        if strategy.not_resumable:
            raise Unresumable(strategy.not_resumable)
        header = header.model_copy(update=described(strategy))
        tensors = {f"{STRATEGY}{name}": tensor for name, tensor in tensors_of(strategy).items()}
        tensors |= {f"{OPTIMIZER}{name}": tensor for name, tensor in moments.items()}
        tensors[GENERATOR] = strategy.world.generator.get_state()
    except Unresumable as error:
        tensors, header = {}, header.model_copy(update={"problem": str(error)})
    save_tensors(path, tensors, {"clbench": header.model_dump_json()})


def tensors_of(strategy: Strategy) -> dict[str, Tensor]:
    """Return the state of a strategy.

    Raises:
        Unresumable: there is something in it that is no tensor.
    """
    state = strategy.state_dict()
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise Unresumable(f"{name} in its state_dict is a {type(value).__name__}, not a tensor")
    return state


def described(strategy: Strategy) -> dict[str, Any]:
    """Return what beside tensors a strategy has become by learning, as fields of `Described`.

    Raises:
        Unresumable: it has an attribute that cannot be written down.
    """
    known = {id(module) for module in strategy.modules()}
    for where, module in own_modules(strategy):
        for name, value in vars(module).items():
            if name not in INNER and not lasting(value, known):
                raise Unresumable(f"its attribute {f'{where}.{name}'.lstrip('.')} is a {type(value).__name__}: keep it "
                                  "in plain attributes, or in parameters and buffers")
    attributes = {}
    for where, module in strategy.named_modules():
        attributes[where] = {name: encode(value) for name, value in vars(module).items()
                             if name not in INNER and plain(value)}
    named = dict(strategy.named_parameters(remove_duplicate=False))
    return {"parameters": sorted(named), "trained": sorted(n for n, p in named.items() if p.requires_grad),
            "attributes": attributes, "empty": [n for n, buffer in buffers_of(strategy).items() if buffer is None]}


def own_modules(strategy: Strategy) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules, by name, whose classes the method brings: they may keep anything.

    Torch's are known, and the model's are built anew: they do not learn but by their tensors. Nor do copies of them.
    """
    known = {type(module) for module in strategy.model.modules()}
    for where, module in strategy.named_modules():
        cls = type(module)
        if module is strategy or not (cls in known or cls.__module__.partition(".")[0] == "torch"):
            yield where, module


def buffers_of(strategy: Strategy) -> dict[str, Tensor | None]:
    """Return the buffers that a `state_dict` has, and those that are None."""
    return {f"{where}.{name}".lstrip("."): buffer for where, module in strategy.named_modules()
            for name, buffer in module._buffers.items() if name not in module._non_persistent_buffers_set}


def plain(value: Any) -> bool:
    """Tell whether a value is a number, a string, None, or a container of such."""
    if type(value) is dict:
        return all(plain(k) and plain(v) for k, v in value.items())
    if type(value) in (list, tuple, set, frozenset):
        return all(map(plain, value))
    return value is None or type(value) in (bool, int, float, str, Phase)


def lasting(value: Any, modules: set[int]) -> bool:
    """Tell whether a strategy's attribute is plain, or is as it was when the strategy is built and led anew."""
    if type(value) is dict:
        return all(plain(k) and lasting(v, modules) for k, v in value.items())
    if type(value) in (list, tuple):
        return all(lasting(v, modules) for v in value)
    if isinstance(value, nn.Module):
        return id(value) in modules
    fixed = (BaseModel, World, type, FunctionType, BuiltinFunctionType, ModuleType, torch.dtype, torch.device, Path)
    return plain(value) or isinstance(value, fixed)


def encode(value: Any) -> Any:
    """Return a plain value in a form that JSON can hold; containers carry the name of their type."""
    if type(value) is dict:
        return {"dict": [[encode(k), encode(v)] for k, v in value.items()]}
    if type(value) in (list, tuple, set, frozenset):
        return {type(value).__name__: [encode(v) for v in value]}
    if type(value) is float:
        return {"float": value.hex()}  # JSON has no infinity
    return value


def decode(value: Any) -> Any:
    """Return what `encode` was given.

    Raises:
        ValueError, TypeError: it was given nothing.
    """
    if not isinstance(value, dict):
        return value
    (kind, inner), = value.items()
    if kind == "float":
        return float.fromhex(inner)
    if kind == "dict":
        return {decode(k): decode(v) for k, v in inner}
    return {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}[kind](map(decode, inner))


def load(path: Path, header: CheckpointHeader, strategy: Strategy) -> dict[str, Tensor]:
    """Load a checkpoint into a strategy that has been led through the learned tasks; return the optimiser's moments.

    Raises:
        Unresumable: it does not fit; the strategy is then spoilt.
    """
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - a file is no mapping
        put_back(header, strategy, _below(STRATEGY, tensors))
        strategy.world.generator.set_state(tensors[GENERATOR])
    except (OSError, SafetensorError, RuntimeError, KeyError, ValueError, TypeError, AttributeError) as error:
        if out_of_memory(error):  # which says nothing of the checkpoint
            raise
        raise Unresumable(f"the checkpoint does not fit: {' '.join(str(error).split())[:200]}") from None
    return _below(OPTIMIZER, tensors)


def put_back(said: Described, strategy: Strategy, state: Mapping[str, Tensor]) -> None:
    """Give a strategy that has been led through the learned tasks its tensors, and what was `described` beside them.

    What does not fit is an error of any kind, as in `load`.
    """
    for name in buffers_of(strategy).keys() - state.keys():  # `after_task` removed them
        where, _, last = name.rpartition(".")
        delattr(strategy.get_submodule(where), last)
    for name in said.empty:
        where, _, last = name.rpartition(".")
        strategy.get_submodule(where).register_buffer(last, None)
    strategy.load_state_dict(state)
    modules, parameters = dict(strategy.named_modules()), dict(strategy.named_parameters(remove_duplicate=False))
    if sorted(parameters) != said.parameters:
        raise Unresumable("it has other parameters than the checkpoint")
    for where, values in said.attributes.items():
        own = modules[where].__dict__
        for name, value in values.items():
            if name in INNER:
                raise Unresumable(f"the checkpoint sets {name}")
            known = decode(value)
            if name not in own or own[name] != known:  # what is the same stays the same object
                own[name] = known
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in said.trained)


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def check(header: CheckpointHeader, key: str, code: str, data: str, origin: Provenance) -> None:
    """Raise `Unresumable` where a checkpoint is of another trial, or was made with other code or in another way."""
    if header.schema_version != SCHEMA or header.key != key:
        raise Unresumable("the checkpoint is another trial's, or another clbench's")
    if (header.code, header.versions) != (code, origin.versions):
        raise Unresumable("the code has changed since")
    if header.data != data:
        raise Unresumable("the data have changed since")
    if (header.device, header.threads) != (origin.device, origin.threads):
        raise Unresumable(f"it had {header.threads} threads on {header.device}, now {origin.threads} on "
                          f"{origin.device}")


def packages_of(strategy: Strategy) -> set[str]:
    """Return the packages of all that a strategy is made of: its own, its model's, and clbench.

    clbench counts here, though no record is stale for it alone: a trial is not to be half an old clbench's.
    """
    classes = {cls for module in strategy.modules() for cls in type(module).__mro__}
    return {"clbench", *map(package_of, classes)} - {"torch", "builtins"}


def code_of(strategy: Strategy) -> str:
    """Return the identity of the code of all that a strategy is made of, as this process noted it.

    Libraries of models count by their version: reading all of transformers takes 13 s.
    """
    packages = packages_of(strategy)
    releases = [f"{name} {version(name)}" for name in sorted(packages & LIBRARIES)]
    return " ".join([identity.running(*packages - LIBRARIES), *releases])
