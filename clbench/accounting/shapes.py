"""Streams without values, and contexts in which torch computes on meta tensors as on any other tensors."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from itertools import chain
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from clbench.accounting.flops import ORDINARY
from clbench.core import tokens
from clbench.core.errors import SpecError
from clbench.core.scenario import Scenario, scenario_rules
from clbench.core.torch_private import (
    OpOverload,
    TorchDispatchMode,
    flash_attention_enabled,
    without_torch_functions,
)
from clbench.data.prepare import Prepare
from clbench.data.samples import Samples, StochasticSamples
from clbench.data.stream import Stream, StreamTask, stored_inputs
from clbench.training.precision import KNOWN, with_all_heads

aten: Any = torch.ops.aten
# The shape of a result can depend on the values of the index, such as a mask.
BY_INDEX = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}
PLAIN = (Tensor, nn.Parameter)


class Form(NamedTuple):
    """The properties of a tensor except its values."""

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    meta: bool


def stream_of_shapes(tasks: int, classes: int, input_shape: tuple[int, ...], scenario: Scenario,
                     samples: int, text: bool = False) -> Stream:
    """Return a stream with uint8 inputs without values, like stored images, and labels that cycle through the classes.

    `classes` is the number for all tasks together, `samples` that of each task. If `text`, inputs are tokens.

    Raises:
        SpecError: the classes cannot be divided equally among the tasks.
    """
    if classes % tasks:
        raise SpecError(f"{classes} classes cannot be shared out equally among {tasks} tasks; choose a multiple of "
                        f"{tasks} (--classes)")
    per_task = classes // tasks
    orders = [range(task * per_task, (task + 1) * per_task) for task in range(tasks)]
    parts = []
    for index, table in enumerate(scenario_rules(scenario).outputs(orders, "params")):
        labels = torch.tensor(list(table.values())).repeat(-(-samples // per_task))[:samples]
        x = torch.empty(samples, *input_shape, dtype=tokens.DTYPE if text else torch.uint8, device="meta")
        task_samples = Samples(x, labels, torch.full_like(labels, index))
        parts.append(StreamTask(tuple(table.values()), task_samples, task_samples))
    outputs = set(chain.from_iterable(part.classes for part in parts))
    return Stream(tuple(parts), len(outputs), input_shape, Prepare(), "", ())


def stream_without_values(stream: Stream) -> Stream:
    """Return a copy of a CPU stream with the shapes and dtypes of its inputs only; labels and tasks keep values."""
    empty_inputs: dict[int, Tensor] = {}  # tasks may share their inputs

    def samples(part: Samples) -> Samples:
        x = stored_inputs(part)
        empty = empty_inputs.setdefault(id(x), torch.empty(x.shape, dtype=x.dtype, device="meta"))
        if isinstance(part, StochasticSamples):
            return StochasticSamples(empty, part.y, part.tasks, lambda _: empty[0])
        return Samples(empty, part.y, part.tasks)

    return replace(stream, tasks=tuple(replace(t, train=samples(t.train), test=samples(t.test)) for t in stream.tasks))


class OnShapes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Context in which operations accept CPU tensors (labels, masks) together with meta tensors.

    The shapes of results are stored, because torch computes them in Python, which takes most of the time.
    """

    remembered: ClassVar[dict[Hashable, list[Form]]] = {}  # forms of results, by operation and forms of arguments

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation; if an argument is a meta tensor, first make the others meta tensors."""
        kwargs = kwargs or {}
        if not isinstance(func, OpOverload) or any(kind.__torch_dispatch__ is not ORDINARY for kind in types):
            return NotImplemented
        tensors = [value for value in flat([args, list(kwargs.values())]) if isinstance(value, Tensor)]
        by_index = func.overloadpacket in BY_INDEX
        if not by_index and len({value.is_meta for value in tensors}) > 1:
            if func._schema.is_mutable and isinstance(args[0], Tensor) and not args[0].is_meta:
                raise RuntimeError(f"{func} would write a result without values into a tensor that has some")
            args, kwargs = tuple(map(shaped, args)), {name: shaped(value) for name, value in kwargs.items()}
        key: Hashable = None
        if not by_index and is_pure(func) and any(value.is_meta for value in tensors):
            key = func, form_of(args), form_of(sorted(kwargs.items()))
            if key in self.remembered:
                results = tuple([torch.empty_strided(form.shape, form.stride, dtype=form.dtype, device="meta")
                                 for form in self.remembered[key]])
                return results[0] if len(results) == 1 else results
        with without_torch_functions():  # torch's Python code for shapes need not be intercepted
            out = func(*args, **kwargs)
        results = out if isinstance(out, tuple) else (out,)
        if key is not None and all(isinstance(value, Tensor) and value.is_meta for value in results):
            self.remembered[key] = list(map(form_of, results))
        return out


@cache
def is_pure(func: OpOverload) -> bool:
    """Return whether an operation only makes new tensors, and neither returns views of arguments nor changes them."""
    return all(part.alias_info is None for part in (*func._schema.arguments, *func._schema.returns))


def flat(values: Any) -> Iterator[Any]:
    """Yield all arguments, including those inside lists and tuples."""
    for value in values:
        if isinstance(value, list | tuple):
            yield from flat(value)
        else:
            yield value


def form_of(value: Any) -> Any:
    """Return the form of a tensor, or any other argument with its type, because 1, 1.0 and True are equal."""
    if isinstance(value, Tensor):
        return Form(value.shape, value.stride(), value.dtype, value.is_meta)
    if isinstance(value, list | tuple):
        return tuple(map(form_of, value))
    return type(value), value


def shaped(value: Any) -> Any:
    """Return an argument with its tensors on the meta device, except tensors of dimension 0."""
    if isinstance(value, list | tuple):
        return type(value)(map(shaped, value))
    return value.to("meta") if isinstance(value, Tensor) and value.dim() else value


class FusedAttention(TorchFunctionMode):
    """Context in which attention on meta tensors is the fused one of real runs, whose gradients cost more."""

    def __torch_function__(self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (),
                           kwargs: Mapping[str, Any] | None = None) -> Any:
        """Call a torch function."""
        kwargs = kwargs or {}
        if (func is F.scaled_dot_product_attention and len(args) == 3 and kwargs.keys() <= KNOWN
                and not kwargs.get("dropout_p") and flash_attention_enabled()
                and all(type(arg) in PLAIN and arg.is_meta and arg.dim() == 4 for arg in args)
                and args[0].shape[3] == args[2].shape[3]):
            return aten._scaled_dot_product_flash_attention_for_cpu(
                *with_all_heads(args, kwargs), 0.0, kwargs.get("is_causal", False), attn_mask=kwargs.get("attn_mask"),
                scale=kwargs.get("scale"))[0]
        return func(*args, **kwargs)


@contextmanager
def on_shapes() -> Iterator[None]:
    """Let strategies train and predict on meta tensors, inside the block, as they do on other tensors."""
    with OnShapes(), FusedAttention():  # type: ignore[no-untyped-call]
        yield
