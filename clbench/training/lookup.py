"""What frozen modules make of a task's samples, worked out once and looked up from then on; no strategy knows of it.

A batch is a `DeferredRows` then: a tensor that knows of which samples it consists. What is done to rows with weights of
frozen modules alone gives rows again and is not carried out. Where they meet anything else they become the ordinary
tensor that they stand for, taken from a table of all samples. So the old columns of a progressive network, or the base
layer under a first adapter, cost a look-up a step.

The operations are noted on the first batch of a phase, which is computed as it would be anyway. A table is made where
rows are first needed, and kept if it gives that batch what was computed on it; so what depends on the other samples of
the batch, or is random, is left alone, and so is all that did not occur on the first batch. A weight is known by where
it lies and by torch's count of the changes to it, so one that is changed after all is not looked up.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from clbench.data.samples import Samples, pick

CHUNK = 1024
ASKED = {getattr(Tensor, name).__get__ for name in ("shape", "dtype", "device", "ndim", "requires_grad")} | {
    Tensor.dim, Tensor.size, Tensor.numel, Tensor.is_floating_point, Tensor.__len__}  # answered without any values


@dataclass(eq=False)
class Node:
    """One operation on the way from the inputs (which have none) to what is looked up."""

    function: Callable[..., Any] | None
    args: Any  # with nodes in the place of rows
    kwargs: Any
    tail: tuple[int, ...]  # shape of one sample's result
    dtype: torch.dtype
    weighty: bool = False  # whether weights took part: anything else is as quickly done as looked up
    table: Tensor | None = None  # the result for all samples
    tried: bool = False  # whether a table was to be made


class DeferredRows(Tensor):
    """The rows of a batch at some node; their values are computed, or looked up, when they are needed."""

    memo: OutputCache
    node: Node
    picked: Tensor  # int64 [M]: which samples
    call: tuple[Callable[..., Any], Any, Any] | None
    value: Tensor | None

    @staticmethod
    def __new__(cls: type[DeferredRows], memo: OutputCache, node: Node, index: Tensor, value: Tensor | None = None,
                call: tuple[Callable[..., Any], Any, Any] | None = None) -> DeferredRows:
        """Stand for the node's result on the samples at `index`: `value` if it is there, or what `call` would give."""
        rows: DeferredRows = Tensor._make_wrapper_subclass(
            cls, (len(index), *node.tail), dtype=node.dtype, device=index.device)
        rows.memo, rows.node, rows.picked, rows.value, rows.call = memo, node, index, value, call
        return rows

    @classmethod
    def __torch_function__(cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Put the operation off, or carry it out on ordinary tensors."""
        if func in ASKED:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))
        first = args[0] if args and type(args[0]) is DeferredRows else leaves((args, kwargs), DeferredRows)[0]
        return first.memo.apply(func, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
            cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Carry an operation out on ordinary tensors where torch asks from below its Python functions."""
        return func(*over(plain, args), **over(plain, kwargs or {}))


class OutputCache:
    """What has been worked out about the inputs of one task, for one phase.

    Args:
        x: inputs [N, ...] of all samples.
        weights: parameters and buffers of frozen modules.
        budget: bytes that tables may take.
    """

    def __init__(self, x: Tensor, weights: Iterable[Tensor], budget: int) -> None:
        """Know nothing but the inputs."""
        self.root = Node(None, (), {}, tuple(x.shape[1:]), x.dtype, table=x)
        self.size = len(x)
        self.weights = {w.untyped_storage().data_ptr() for w in weights if not w.requires_grad and w.numel()}
        self.left = budget
        self.nodes: dict[Hashable, Node | None] = {}
        self.batches = 0
        self.index: Tensor | None = None  # of the present batch
        self.useful = True

    def rows(self, index: Tensor) -> Tensor:
        """Return the batch of the samples at `index`, as plain inputs where there is nothing to look up."""
        self.batches += 1
        self.index = index
        if self.batches == 2 and all(node is None or node.table is None for node in self.nodes.values()):
            self.useful = False
        assert self.root.table is not None
        return DeferredRows(self, self.root, index) if self.useful else pick(self.root.table, index)

    def apply(self, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Return rows for an operation that is known, or can be; else what it gives on ordinary tensors."""
        signature: Hashable = None
        try:
            signature = (func, self.sign(args), self.sign(kwargs))
            node = self.nodes.get(signature)
        except TypeError:  # it meets something that learns, or that cannot be known again
            node = None
        if node is not None and self.index is not None:
            return DeferredRows(self, node, self.index, call=(func, args, kwargs))
        if changes(func, kwargs):
            self.useful = False
        elif signature is not None and signature not in self.nodes and self.batches == 1:
            return self.note(signature, func, args, kwargs)
        return func(*over(plain, args), **over(plain, kwargs))

    def note(self, signature: Hashable, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Carry an operation of the first batch out and, if it gives a row for each row, note it."""
        value = func(*over(computed, args), **over(computed, kwargs))
        assert self.index is not None
        if type(value) is not Tensor or value.requires_grad or value.shape[:1] != self.index.shape:
            self.nodes[signature] = None
            return value
        given = leaves((args, kwargs), Tensor)
        weighty = any(v.node.weighty if isinstance(v, DeferredRows) else True for v in given)
        node = Node(func, over(node_of, args), over(node_of, kwargs), tuple(value.shape[1:]), value.dtype, weighty)
        self.nodes[signature] = node
        return DeferredRows(self, node, self.index, value)

    def sign(self, value: Any) -> Hashable:
        """Return what an argument is known by the next time; TypeError where it cannot be."""
        kind = type(value)
        if kind is DeferredRows:
            if value.memo is not self or value.picked is not self.index or not self.useful:
                raise TypeError
            return value.node  # type: ignore[no-any-return]
        if isinstance(value, Tensor):
            if value.requires_grad or value.untyped_storage().data_ptr() not in self.weights:
                raise TypeError
            return value.data_ptr(), value.shape, value.stride(), value.dtype, value._version
        if kind is tuple or kind is list:
            return tuple([self.sign(of) for of in value])
        if kind is dict:
            return tuple([(key, self.sign(of)) for key, of in value.items()])
        hash(value)
        return kind, value

    def tabulate(self, rows: DeferredRows, value: Tensor) -> None:
        """Make the table that these rows of the first batch are to be looked up in, if it holds for them."""
        node = rows.node
        node.tried = True
        if value.nbytes // len(rows.picked) * self.size > self.left:
            return
        # From the last to the first, so that what depends on a sample's neighbours shows.
        order = torch.arange(self.size, device=rows.picked.device).flip(0)
        try:
            with torch.no_grad(), torch.random.fork_rng():
                table = torch.cat([self.evaluate(node, part, {}) for part in torch.split(order, CHUNK)]).flip(0)
        except (RuntimeError, ValueError, IndexError, TypeError):
            return  # it needs the batch it was noted on
        if table.shape == (self.size, *node.tail) and alike(pick(table, rows.picked), value):
            node.table, self.left = table, self.left - table.nbytes

    def evaluate(self, node: Node, part: Tensor, done: dict[Node, Tensor]) -> Tensor:
        """Return the node's result for the samples at `part`; `done` holds what has been computed for them."""
        if node.table is not None:
            return pick(node.table, part)
        if node not in done:
            assert node.function is not None

            def there(value: Any) -> Any:
                return self.evaluate(value, part, done) if isinstance(value, Node) else value

            done[node] = node.function(*over(there, node.args), **over(there, node.kwargs))
        return done[node]


class CachedSamples(Samples):
    """Samples whose batches are rows."""

    memo: OutputCache

    def __init__(self, samples: Samples, memo: OutputCache) -> None:
        """Keep the samples, whose x the memo knows."""
        super().__init__(samples.x, samples.y, samples.tasks)
        object.__setattr__(self, "memo", memo)

    def take(self, index: Tensor) -> Samples:
        """Return the samples at `index` (int64 [M])."""
        return Samples(self.memo.rows(index), pick(self.y, index), pick(self.tasks, index))


def cache_frozen_outputs(samples: Samples, modules: Iterable[nn.Module], budget: int) -> Samples:
    """Return samples (inputs of the model) of which what the frozen modules make is computed once."""
    weights = [w for module in modules for w in (*module.parameters(), *module.buffers())]
    return CachedSamples(samples, OutputCache(samples.x, weights, budget)) if weights else samples


def plain(value: Any) -> Any:
    """Return rows as the ordinary tensor that they stand for; anything else as it is."""
    if not isinstance(value, DeferredRows):
        return value
    memo, node = value.memo, value.node
    result = computed(value)
    if memo.useful and memo.batches == 1 and node.weighty and not node.tried:
        memo.tabulate(value, result)
    return result


def computed(value: Any) -> Any:
    """Return what `plain` does, and make no table: these values are not needed for themselves."""
    if not isinstance(value, DeferredRows):
        return value
    if value.value is None:
        if value.node.table is not None:
            value.value = pick(value.node.table, value.picked)
        else:
            assert value.call is not None
            function, args, kwargs = value.call
            value.value = function(*over(computed, args), **over(computed, kwargs))
    return value.value


def node_of(value: Any) -> Any:
    """Return the node of rows; anything else as it is."""
    return value.node if isinstance(value, DeferredRows) else value


def over(function: Callable[[Any], Any], value: Any) -> Any:
    """Return arguments with a function applied to each, also inside lists, tuples and dictionaries."""
    if isinstance(value, dict):
        return {key: over(function, of) for key, of in value.items()}
    if type(value) in (tuple, list):
        return type(value)(over(function, of) for of in value)
    return function(value)


def leaves(value: Any, kind: type) -> list[Any]:
    """Return the arguments of a kind."""
    found: list[Any] = []
    over(lambda of: found.append(of) if isinstance(of, kind) else None, value)
    return found


def alike(a: Tensor, b: Tensor) -> bool:
    """Return whether two results are equal but for the order in which sums were taken."""
    a, b = a.cpu().double(), b.cpu().double()  # in this order, since MPS has no float64
    finite = b[b.isfinite()].abs()
    scale = float(finite.max()) if len(finite) else 0.0
    return torch.allclose(a, b, rtol=1e-5, atol=1e-5 * scale)


def changes(function: Callable[..., Any], kwargs: dict[str, Any]) -> bool:
    """Return whether an operation changes what it is given."""
    name = getattr(function, "__name__", "")
    return bool(kwargs.get("inplace")) or "out" in kwargs or (
        name.startswith("__i") or name == "__setitem__" if name.endswith("__") else name.endswith("_"))
