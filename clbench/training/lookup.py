"""Caching the outputs of frozen modules: computed once per phase, then looked up; no strategy knows of it.

The picture, for a progressive network that trains its second column beside the frozen first one:

    samples ----> frozen column 1 ----> h [N, 400]          computed once, for all N samples of the task
                                          |
    batch = samples[index]                | h[index]        one look-up in each step
      |                                   v
      +-------> column 2, which learns: relu(W x + U h) ----> loss

Frozen modules lie beside what learns, not only before it (old columns, the base layer under a LoRA adapter), so there
is no prefix of the network to run beforehand. Instead a batch is a `DeferredRows`: a tensor that knows which samples it
holds and which operations were applied to it. An operation on it that involves nothing else but weights of frozen
modules returns another `DeferredRows` and computes nothing. When one meets anything else, it becomes the ordinary
tensor it stands for, taken from a table with a row for each sample.

How it works. Operations are recorded on the first batch of a phase, which is computed as usual. Where a recorded result
is needed, it is computed for all samples, as a table; the table is kept only if it gives the first batch what was
computed there. So whatever depends on other samples of the batch, or is random, is never looked up, and neither is what
did not occur on the first batch. A frozen weight is recognised by its address and by torch's count of changes to it
(`_version`), so a weight that does change is not looked up.

What it gains. Training on split-mnist-5k (the MLP, ten epochs, one CPU thread; processor time, the least of five runs):
`pnn` 4.80 -> 4.26 s, `lora` 0.89 -> 0.71 s, `lwf` 1.74 -> 1.45 s.

How to switch it off. `CLBENCH_CACHE_FROZEN=0` in the environment turns it off, and with it the frozen first blocks that
`clbench.training.precompute` runs once. Results then differ by rounding at most, as sums are taken in another order. It
is off by itself in stacks and with `--compile`, since `torch.func.vmap` and `torch.compile` cannot see through a
`DeferredRows`, and wherever `precompute` leaves the samples raw.

How to debug through it. In `loss`, `type(x)` says whether a tensor is a `DeferredRows`; printed, it shows the values it
stands for. `print(x.cache)` lists the recorded operations in order, each with the shape of one sample's result and
whether it has a table. An operation is carried out on ordinary tensors instead, where

- it did not occur on the first batch, or an argument is neither deferred rows, a frozen weight nor hashable;
- its result requires a gradient, or does not have a row for each row of the batch;
- its table would exceed the budget (`--cache-mb`), cannot be computed in pieces, or does not give the first batch
  what was computed there.

All later batches of the phase are ordinary tensors where an operation changed its argument in place, or where the first
batch left no table.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from clbench.data.samples import Samples, pick
from clbench.training.flops import FlopCount

SWITCH = "CLBENCH_CACHE_FROZEN"  # environment variable; 0 turns the caching off
CHUNK = 1024  # samples for which a table is computed at once
METADATA = {getattr(Tensor, name).__get__ for name in ("shape", "dtype", "device", "ndim", "requires_grad")} | {
    Tensor.dim, Tensor.size, Tensor.numel, Tensor.is_floating_point, Tensor.__len__}  # answered without any values


@dataclass(eq=False)
class Node:
    """One recorded operation; the root stands for the inputs themselves and has no function."""

    function: Callable[..., Any] | None
    args: Any  # with nodes in place of rows
    kwargs: Any
    row_shape: tuple[int, ...]  # shape of one sample's result
    dtype: torch.dtype
    uses_weights: bool = False  # whether weights took part; a table of anything else would save nothing
    table: Tensor | None = None  # the result for all samples [N, *row_shape]
    table_tried: bool = False  # whether a table was asked for, kept or not


class DeferredRows(Tensor):
    """The rows of a batch as they are after some operation; values are looked up or computed when they are needed."""

    cache: OutputCache
    node: Node
    sample_index: Tensor  # int64 [M]: which samples
    call: tuple[Callable[..., Any], Any, Any] | None  # what gives the value without a table
    value: Tensor | None  # once it is known

    @staticmethod
    def __new__(cls: type[DeferredRows], cache: OutputCache, node: Node, index: Tensor, value: Tensor | None = None,
                call: tuple[Callable[..., Any], Any, Any] | None = None) -> DeferredRows:
        """Stand for the node's result on the samples at `index`: `value` if given, else what `call` would give."""
        rows: DeferredRows = Tensor._make_wrapper_subclass(
            cls, (len(index), *node.row_shape), dtype=node.dtype, device=index.device)
        rows.cache, rows.node, rows.sample_index, rows.value, rows.call = cache, node, index, value, call
        return rows

    @classmethod
    def __torch_function__(cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Defer an operation, or carry it out on ordinary tensors."""
        if func in METADATA:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))
        first = args[0] if args and type(args[0]) is DeferredRows else collect((args, kwargs), DeferredRows)[0]
        return first.cache.apply(func, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
            cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Carry an operation out on ordinary tensors where torch calls it from below its Python functions."""
        return func(*map_nested(plain, args), **map_nested(plain, kwargs or {}))


class OutputCache:
    """The operations recorded on the inputs of one task, and their tables; it lasts for one phase.

    Args:
        x: inputs [N, ...] of all samples.
        weights: parameters and buffers of frozen modules.
        budget: bytes that tables may take.
    """

    def __init__(self, x: Tensor, weights: Iterable[Tensor], budget: int) -> None:
        """Begin with the inputs and no operation."""
        self.root = Node(None, (), {}, tuple(x.shape[1:]), x.dtype, table=x)
        self.size = len(x)
        self.weights = {place(w) for w in weights if not w.requires_grad and w.numel()}
        self.bytes_left = budget
        self.nodes: dict[Hashable, Node | None] = {}
        self.batches = 0
        self.index: Tensor | None = None  # of the current batch
        self.useful = True  # whether batches are still deferred
        self.wasted_flops = 0  # on tables that could not be kept

    def __str__(self) -> str:
        """List the recorded operations, a line each: what is applied, the shape of a row, whether there is a table."""
        lines = [f"{getattr(node.function, '__name__', node.function)} -> {list(node.row_shape)}"
                 f"{'' if node.table is None else ', table'}" for node in self.nodes.values() if node is not None]
        return "\n".join([f"{self.size} samples, {len(lines)} operations, {'in use' if self.useful else 'given up'}",
                          *lines])

    def rows(self, index: Tensor) -> Tensor:
        """Return the batch of the samples at `index`; as plain inputs where there is nothing to look up."""
        self.batches += 1
        self.index = index
        if self.batches == 2 and all(node is None or node.table is None for node in self.nodes.values()):
            self.useful = False
        assert self.root.table is not None
        return DeferredRows(self, self.root, index) if self.useful else pick(self.root.table, index)

    def apply(self, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Return deferred rows where the operation is recorded or can be, else its result on ordinary tensors."""
        signature: Hashable = None
        try:
            signature = (func, self.signature_of(args), self.signature_of(kwargs))
            node = self.nodes.get(signature)
        except TypeError:  # an argument learns, or cannot be recognised the next time
            node = None
        if node is not None and self.index is not None:
            return DeferredRows(self, node, self.index, call=(func, args, kwargs))
        if mutates(func, kwargs):
            self.useful = False
        elif signature is not None and signature not in self.nodes and self.batches == 1:
            return self.record(signature, func, args, kwargs)
        return func(*map_nested(plain, args), **map_nested(plain, kwargs))

    def record(self, signature: Hashable, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Carry out an operation of the first batch and, if its result has a row for each row, record it."""
        value = func(*map_nested(computed, args), **map_nested(computed, kwargs))
        assert self.index is not None
        if type(value) is not Tensor or value.requires_grad or value.shape[:1] != self.index.shape:
            self.nodes[signature] = None
            return value
        given = collect((args, kwargs), Tensor)
        uses_weights = any(v.node.uses_weights if isinstance(v, DeferredRows) else True for v in given)
        node = Node(func, map_nested(node_of, args), map_nested(node_of, kwargs), tuple(value.shape[1:]), value.dtype,
                    uses_weights)
        self.nodes[signature] = node
        return DeferredRows(self, node, self.index, value)

    def signature_of(self, value: Any) -> Hashable:
        """Return what an argument is recognised by; TypeError where it cannot be recognised."""
        kind = type(value)
        if kind is DeferredRows:
            if value.cache is not self or value.sample_index is not self.index or not self.useful:
                raise TypeError
            return value.node  # type: ignore[no-any-return]
        if isinstance(value, Tensor):
            if value.requires_grad or (own := place(value)) not in self.weights:
                raise TypeError
            return own, value.storage_offset(), value.shape, value.stride(), value.dtype, value._version
        if kind is tuple or kind is list:
            return tuple([self.signature_of(of) for of in value])
        if kind is dict:
            return tuple([(key, self.signature_of(of)) for key, of in value.items()])
        hash(value)
        return kind, value

    def tabulate(self, rows: DeferredRows, value: Tensor) -> None:
        """Compute the table of a node and keep it, if it fits the budget and gives the first batch's rows `value`."""
        node = rows.node
        node.table_tried = True
        if value.nbytes // len(rows.sample_index) * self.size > self.bytes_left:
            return
        # From the last sample to the first: a result that depends on a sample's neighbours then differs.
        order = torch.arange(self.size, device=rows.sample_index.device).flip(0)
        table = None
        with FlopCount() as count:
            try:
                with torch.no_grad(), torch.random.fork_rng():
                    table = torch.cat([self.evaluate(node, part, {}) for part in torch.split(order, CHUNK)]).flip(0)
            except (RuntimeError, ValueError, IndexError, TypeError):
                pass  # the operation works on the batch it was recorded on only
        if (table is not None and table.shape == (self.size, *node.row_shape)
                and nearly_equal(pick(table, rows.sample_index), value)):
            node.table, self.bytes_left = table, self.bytes_left - table.nbytes
        else:
            self.wasted_flops += count.total

    def evaluate(self, node: Node, part: Tensor, done: dict[Node, Tensor]) -> Tensor:
        """Return the node's result for the samples at `part`; `done` collects what is computed for them, by node."""
        if node.table is not None:
            return pick(node.table, part)
        if node not in done:
            assert node.function is not None

            def there(value: Any) -> Any:
                return self.evaluate(value, part, done) if isinstance(value, Node) else value

            done[node] = node.function(*map_nested(there, node.args), **map_nested(there, node.kwargs))
        return done[node]


class CachedSamples(Samples):
    """Samples whose batches are deferred rows."""

    cache: OutputCache

    def __init__(self, samples: Samples, cache: OutputCache) -> None:
        """Keep the samples; the cache has their x."""
        super().__init__(samples.x, samples.y, samples.tasks)
        object.__setattr__(self, "cache", cache)

    def take(self, index: Tensor) -> Samples:
        """Return the samples at `index` (int64 [M])."""
        return Samples(self.cache.rows(index), pick(self.y, index), pick(self.tasks, index))


def enabled() -> bool:
    """Tell whether outputs of frozen modules may be cached: unless the environment variable `SWITCH` is 0."""
    return os.environ.get(SWITCH) != "0"


def cache_frozen_outputs(samples: Samples, modules: Iterable[nn.Module], budget: int) -> Samples:
    """Return samples for whose inputs the outputs of frozen modules are computed once.

    Args:
        samples: inputs of the model, not raw.
        modules: those that are frozen; where they have no weights, the samples are returned as they are.
        budget: bytes that tables may take.
    """
    weights = [w for module in modules for w in (*module.parameters(), *module.buffers())]
    return CachedSamples(samples, OutputCache(samples.x, weights, budget)) if weights else samples


def plain(value: Any) -> Any:
    """Return deferred rows as the ordinary tensor that they stand for; anything else as it is."""
    if not isinstance(value, DeferredRows):
        return value
    cache, node = value.cache, value.node
    result = computed(value)
    if cache.useful and cache.batches == 1 and node.uses_weights and not node.table_tried:
        cache.tabulate(value, result)
    return result


def computed(value: Any) -> Any:
    """Return what `plain` does, but make no table: these values are needed on the way to others only."""
    if not isinstance(value, DeferredRows):
        return value
    if value.value is None:
        if value.node.table is not None:
            value.value = pick(value.node.table, value.sample_index)
        else:
            assert value.call is not None
            function, args, kwargs = value.call
            value.value = function(*map_nested(computed, args), **map_nested(computed, kwargs))
    return value.value


def node_of(value: Any) -> Any:
    """Return the node of deferred rows; anything else as it is."""
    return value.node if isinstance(value, DeferredRows) else value


def map_nested(function: Callable[[Any], Any], value: Any) -> Any:
    """Return arguments with a function applied to each, inside lists, tuples and dictionaries too."""
    if isinstance(value, dict):
        return {key: map_nested(function, of) for key, of in value.items()}
    if type(value) in (tuple, list):
        return type(value)(map_nested(function, of) for of in value)
    return function(value)


def collect(value: Any, kind: type) -> list[Any]:
    """Return the arguments of a type, inside lists, tuples and dictionaries too."""
    found: list[Any] = []
    map_nested(lambda of: found.append(of) if isinstance(of, kind) else None, value)
    return found


def place(tensor: Tensor) -> int:
    """Return where a tensor's storage is; of one without values, where torch keeps what it knows about it."""
    storage = tensor.untyped_storage()
    return storage._cdata if tensor.is_meta else storage.data_ptr()  # a storage of shapes is at 0


def nearly_equal(a: Tensor, b: Tensor) -> bool:
    """Tell whether two results are equal up to rounding; those without values are taken to be."""
    if a.is_meta:
        return True
    a, b = a.cpu().double(), b.cpu().double()  # in this order, since MPS has no float64
    finite = b[b.isfinite()].abs()
    scale = float(finite.max()) if len(finite) else 0.0
    return torch.allclose(a, b, rtol=1e-5, atol=1e-5 * scale)


def mutates(function: Callable[..., Any], kwargs: dict[str, Any]) -> bool:
    """Tell whether an operation changes one of its arguments in place."""
    name = getattr(function, "__name__", "")
    return bool(kwargs.get("inplace")) or "out" in kwargs or (
        name.startswith("__i") or name == "__setitem__" if name.endswith("__") else name.endswith("_"))
