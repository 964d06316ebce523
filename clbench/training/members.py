"""What the members of a stack have in common, and what differs between them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import is_dataclass
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from clbench.core import seeds
from clbench.core.errors import PluginError
from clbench.core.torch_private import attributes_of, copy_on_write, is_copy_on_write
from clbench.data.samples import Samples
from clbench.strategy.base import Strategy, StreamInfo, Task
from clbench.training.budget import shares_of


class Unstackable(ValueError):
    """Raised if trials cannot train as a stack; the message has the reason, and each trial then trains alone."""


def require_stackable(samples: list[Samples]) -> list[Samples]:
    """Return the samples of each replica, after checking that the replicas can train as a stack.

    Raises:
        Unstackable: the replicas have different numbers of samples, or their samples change randomly.
    """
    if len(sizes := {len(part) for part in samples}) > 1:  # batches would differ, and so would budgets in epochs
        raise Unstackable(f"tasks of {min(sizes):,} to {max(sizes):,} training samples do not go in one stack")
    if len(samples) > 1 and samples[0].is_stochastic:
        raise Unstackable("its samples change randomly with every batch, and vectorized trials would share one random "
                          "generator")
    return samples


def separate_draws(trial_seeds: Sequence[int], task: int, device: torch.device) -> list[AbstractContextManager[None]]:
    """Return a context for each member of a stack, in which it draws as if it trained alone on a task."""
    if len(trial_seeds) == 1:
        return [nullcontext()]
    return [seeds.ContinuedDraws(seed, "training", task, device=device) for seed in trial_seeds]


def require_same_structure(strategies: Sequence[Strategy]) -> None:
    """Check that strategies have parameters and buffers of the same names and train the same parameters.

    Raises:
        Unstackable: they differ, as those of a method can that adds or freezes parameters depending on the data.
    """
    first, *others = [{name: tensor.requires_grad for name, tensor in (*strategy.named_parameters(),
                                                                       *strategy.named_buffers())}
                      for strategy in strategies]
    for other in others:
        if different := sorted(name for name in first.keys() | other.keys() if first.get(name) != other.get(name)):
            raise Unstackable(f"only some of the trials have or train {different[0]}")


def require_same_phases(strategies: Sequence[Strategy], tasks: Sequence[Task]) -> list[float]:
    """Return the relative lengths of the phases of a task, after checking that all replicas have the same.

    Raises:
        Unstackable: they differ.
    """
    phases = list(map(shares_of, strategies, tasks))
    if any(shares != phases[0] for shares in phases):
        raise Unstackable("its phases differ between the trials")
    return phases[0]


def stack_buffer(name: str, buffers: Sequence[Tensor]) -> Tensor:
    """Return the buffers of all members under one name as a tensor [S, ...].

    Raises:
        Unstackable: their shapes differ, as those of a memory can that stores samples by class.
    """
    shapes = {"x".join(map(str, buffer.shape)) for buffer in buffers}
    if len(shapes) > 1:
        raise Unstackable(f"its buffer {name} has different sizes in the trials ({', '.join(sorted(shapes))})")
    return torch.stack([buffer.detach() for buffer in buffers])


def share_equal(strategies: Sequence[Strategy], frozen: bool = False) -> set[str]:
    """Store parameters that are equal in all strategies once in memory, and return their names.

    Each strategy still has its own tensor, which is copied when it is first written to. So a write never changes
    another strategy.

    Args:
        strategies: strategies with the same structure.
        frozen: whether to share only parameters that do not require a gradient.
    """
    first, *others = [dict(strategy.named_parameters()) for strategy in strategies]
    names = [name for name, parameter in first.items() if not (frozen and parameter.requires_grad)
             and all(name in other and (other[name].shape, other[name].dtype) == (parameter.shape, parameter.dtype)
                     and not (frozen and other[name].requires_grad) for other in others)]
    if not names or not others:
        return set()
    comparisons = [torch.stack([(first[name] == other[name]).all() for other in others]).all() for name in names]
    equal = {name for name, is_same in zip(names, torch.stack(comparisons).tolist(), strict=True) if is_same}
    for name in equal:
        for other in others:
            other[name].data = copy_on_write(first[name].data)
    return equal


def require_counted_writes(shared: Mapping[str, Sequence[nn.Parameter]]) -> None:
    """Check that the parameters that members share are still equal.

    A write that torch counts ends the sharing. A write through `.data` is not counted, and the stack would go on with
    the values of its first member.

    Raises:
        PluginError: they are not.
    """
    for name, (first, *others) in shared.items():
        if all(map(is_copy_on_write, (first, *others))):
            continue
        if not all(torch.equal(first, other) for other in others):
            raise PluginError(f"parameter {name} was written through `.data`, which torch does not notice; write in "
                              "place under torch.no_grad(), as in parameter.mul_(0.9)")


def differing_attributes(strategies: Sequence[Strategy]) -> dict[str, set[str]]:
    """Return the names of attributes whose values differ between strategies, by the name of their module.

    Parameters and buffers are left out, and so are the strategies' options.
    """
    differing: dict[str, set[str]] = {}
    registered = {id(module) for strategy in strategies for module in strategy.modules()}
    for named_modules in zip(*(strategy.named_modules() for strategy in strategies), strict=True):
        name, first = named_modules[0]
        if type(first).__module__.partition(".")[0] == "torch":
            continue
        values = [dict(attributes_of(module)) for _, module in named_modules]
        names = set().union(*values) - (set() if name else {"options"})
        differing[name] = {attribute for attribute in names if not all(
            are_equal(values[0].get(attribute), other.get(attribute), registered) for other in values[1:])}
    return {name: attributes for name, attributes in differing.items() if attributes}


def are_equal(first: Any, other: Any, registered: Set[int]) -> bool:
    """Return whether two values of an attribute are equal, as far as a loss can use them.

    Random generators and functions count as equal, and so do modules with an ID in `registered`, which are compared
    on their own.
    """
    if first is other or id(first) in registered:
        return True
    if type(first) is not type(other):
        return False
    if isinstance(first, nn.Module):
        return are_equal(first.state_dict(), other.state_dict(), registered)
    if isinstance(first, (StreamInfo, torch.Generator, FunctionType, MethodType, BuiltinFunctionType, type)):
        return True
    if isinstance(first, (Tensor, np.ndarray)):
        return first.shape == other.shape and bool((first == other).all())
    if isinstance(first, Mapping):
        return first.keys() == other.keys() and all(are_equal(first[key], other[key], registered) for key in first)
    if isinstance(first, (list, tuple, deque)):
        return len(first) == len(other) and all(are_equal(a, b, registered) for a, b in zip(first, other, strict=True))
    if is_dataclass(first) or type(first).__eq__ is object.__eq__:  # type: ignore[comparison-overlap]
        return hasattr(first, "__dict__") and are_equal(vars(first), vars(other), registered)
    return bool(first == other)


@contextmanager
def record_reads(strategy: Strategy, attributes: Mapping[str, Set[str]]) -> Iterator[list[str]]:
    """Yield a list that gets the name of each attribute that is read inside the block.

    Args:
        strategy: the strategy.
        attributes: the attributes to watch, by the name of their module.
    """
    reads: list[str] = []
    modules = {name: strategy.get_submodule(name) for name in attributes}
    classes = {name: type(module) for name, module in modules.items()}
    for name, module in modules.items():
        module.__class__ = type(classes[name].__name__, (classes[name],), {
            "__getattribute__": _make_recorder(classes[name], name, attributes[name], reads)})
    try:
        yield reads
    finally:
        for name, module in modules.items():
            module.__class__ = classes[name]


def _make_recorder(cls: type, module_name: str, names: Set[str], reads: list[str]) -> Callable[[Any, str], Any]:
    """Return a `__getattribute__` for a subclass of `cls` that records each read of one of these attributes."""
    def record_read(self: Any, name: str) -> Any:
        if name in names:
            reads.append(f"{module_name}.{name}".lstrip("."))
        return cls.__getattribute__(self, name)  # type: ignore[call-arg]

    return record_read
