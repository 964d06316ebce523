"""FLOPs of matrix products, convolutions and attention; a multiplication and its addition count as two.

The formulas are those of `torch.utils.flop_counter`. This module adds attention as the CPU computes it, the fused
`nn.MultiheadAttention` and `nn.TransformerEncoderLayer` at test time, products with vectors, products of groups and of
three factors, and the gradients of grouped convolutions, which torch counts once for every group. All other operations
count as 0: element-wise operations, normalization, gathers, sorting, and decompositions and solvers of `torch.linalg`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ContextDecorator, contextmanager
from math import prod
from typing import Any, ClassVar

import torch
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from clbench.core.torch_private import OpOverload, TorchDispatchMode

aten: Any = torch.ops.aten
Shape = Sequence[int]


def product(a: Shape, b: Shape, *_: Any, **__: Any) -> int:
    """Return the FLOPs of a product: matrices [M, K] x [K, N], also batched, matrix and vector, or two vectors."""
    return 2 * prod(a) * (b[-1] if len(b) > 1 else 1)


def added_product(_: Shape, a: Shape, b: Shape, *__: Any, **___: Any) -> int:
    """Return the FLOPs of a product that is summed or added to another tensor; the additions count as 0."""
    return product(a, b)


def grouped_product(a: Shape, b: Shape, *_: Any, **__: Any) -> int:
    """Return the FLOPs of products of groups, as in mixtures of experts: each row or column belongs to one group.

    The shapes are [M, K] x [G, K, N], [G, M, K] x [K, N], [M, K] x [K, N] with groups of K, or [G, M, K] x [G, K, N].
    """
    return 2 * prod(a if len(a) == len(b) else a[-2:]) * b[-1]


def trilinear(a: Shape, b: Shape, c: Shape, *new_axes: Any, **_: Any) -> int:
    """Return the FLOPs of a sum of products of three factors, as in `nn.Bilinear`.

    They are those of the product with the weight. The product of its sums with the other input is small.
    """
    sizes = []
    for shape, axes in zip((a, b, c), new_axes, strict=False):
        remaining = iter(shape)
        sizes.append([1 if axis in axes else next(remaining) for axis in range(len(shape) + len(axes))])
    return 2 * prod([int(max(axis)) for axis in zip(*sizes, strict=True)])


def attention(query: Shape, key: Shape, value: Shape, *_: Any, **__: Any) -> int:
    """Return the FLOPs of attention [N, heads, L, d]: scores, and their product with the values."""
    return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]


def attention_backward(gradient: Shape, query: Shape, key: Shape, value: Shape, *_: Any, **__: Any) -> int:
    """Return the FLOPs of the gradients of attention: the scores again, and two products for each forward product."""
    return int(sdpa_backward_flop_count(gradient, query, key, value))  # type: ignore[no-untyped-call]


def fused_attention(query: Shape, key: Shape, value: Shape, width: int, heads: int, *_: Any, **__: Any) -> int:
    """Return the FLOPs of attention with its four projections, on query [N, L, D], key and value [N, M, D]."""
    samples, length, key_length = query[0], query[1], key[1]
    projections = 2 * samples * width * width * (2 * length + 2 * key_length)
    return projections + 4 * samples * length * key_length * width


def encoder_layer(x: Shape, width: int, heads: int, *rest: Any, **_: Any) -> int:
    """Return the FLOPs of a fused encoder layer on x [N, L, D]: attention, and the two linear layers after it."""
    weights: int = prod(rest[11]) + prod(rest[13])
    return fused_attention(x, x, x, width, heads) + 2 * x[0] * x[1] * weights


def convolution_backward(gradient: Shape, x: Shape, weight: Shape, _bias: Any, _stride: Any, _padding: Any,
                         _dilation: Any, transposed: bool, _output_padding: Any, groups: int,
                         wanted: Sequence[bool], **_: Any) -> int:
    """Return the FLOPs of a convolution's gradients; those of its input and its weight each cost one convolution."""
    positions = x[2:] if transposed else gradient[2:]
    forward = 2 * x[0] * prod(positions) * prod(weight)  # a weight has only the inputs of its own group
    return forward * sum(wanted[:2])


FORMULAS: dict[Any, Callable[..., int]] = {
    aten._scaled_dot_product_flash_attention_for_cpu: attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: attention_backward,
    aten._native_multi_head_attention: fused_attention,
    aten._transformer_encoder_layer_fwd: encoder_layer,
    aten.mv: product,
    aten.dot: product,
    aten.addmv: added_product,
    aten.mm: product,  # torch's formula takes longer than a product of small matrices
    aten.bmm: product,
    aten.addmm: added_product,
    aten.baddbmm: added_product,
    aten.addbmm: added_product,
    aten.convolution_backward: convolution_backward,
    aten._trilinear: trilinear,
}
if hasattr(aten, "_grouped_mm"):  # not in the oldest allowed torch
    FORMULAS[aten._grouped_mm] = grouped_product
ORDINARY: Any = torch.Tensor.__torch_dispatch__
Formula = Callable[[Sequence[Any], Mapping[str, Any], Any], int]  # of arguments, keywords and result


def shape_of(value: Any) -> Any:
    """Return the shape of a tensor, of a nested tensor that of its padded form; return any other value unchanged."""
    if isinstance(value, torch.Tensor) and value.is_nested:
        return torch.nested.to_padded_tensor(value, 0.0).shape
    return value.shape if isinstance(value, torch.Tensor) else value


def formula_of(operation: OpOverload) -> Formula | None:
    """Return the formula of an operation, from `FORMULAS` or else from torch; None if it counts as 0."""
    packet = operation.overloadpacket
    if formula := FORMULAS.get(packet):
        return lambda args, kwargs, out: formula(*map(shape_of, args))
    torch_formula: Any = flop_registry.get(packet)
    return torch_formula and (lambda args, kwargs, out: int(torch_formula(*args, **kwargs, out_val=out)))


class FlopCount(ContextDecorator, TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Context that counts the FLOPs of the operations inside it, without changing them.

    It counts like torch's `FlopCounterMode` but without a tree of modules. It takes 4 microseconds per operation, a
    fraction of the time of `FlopCounterMode`. Contexts can be nested, and each counts all operations inside it. As a
    decorator, it counts the calls of a function.
    """

    supports_higher_order_operators = True
    _known: ClassVar[dict[Any, Formula | None]] = {}  # formulas of operations seen so far, None for 0

    def __init__(self) -> None:
        """Start at 0."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count it."""
        for kind in types:
            if kind.__torch_dispatch__ is not ORDINARY:
                return NotImplemented  # a wrapper; the operations on its inner tensors are dispatched here again
        kwargs = kwargs or {}
        try:
            formula = self._known[func]
        except KeyError:
            if not isinstance(func, OpOverload):
                return NotImplemented
            formula = formula_of(func)
            if formula is None:
                with self:  # torch.inference_mode dispatches composite operations, too
                    out = func.decompose(*args, **kwargs)
                if out is not NotImplemented:
                    return out
            self._known[func] = formula
        out = func(*args, **kwargs)
        if formula is not None:
            self.total += formula(args, kwargs, out)
        return out


@contextmanager
def counted_modules() -> Iterator[FlopCount]:
    """Count only the FLOPs of module calls inside the block."""
    count = FlopCount()
    calls = 0  # depth of nested calls

    def before(*_: object) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            count.__enter__()  # type: ignore[no-untyped-call]

    def after(*_: object) -> None:
        nonlocal calls
        calls -= 1
        if calls == 0:
            count.__exit__(None, None, None)  # type: ignore[no-untyped-call]

    hooks = register_module_forward_pre_hook(before), register_module_forward_hook(after, always_call=True)
    try:
        yield count
    finally:
        for hook in hooks:
            hook.remove()
