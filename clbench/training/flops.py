"""FLOPs of matrix products, convolutions and attention; a multiplication and its addition count as two.

The formulas are those of `torch.utils.flop_counter`, with those that it lacks: attention as the CPU computes it, the
fused attention of `nn.MultiheadAttention` at test time, products with vectors, and the gradients of grouped
convolutions, which torch counts once for every group. Everything else counts as 0: what goes element by element,
normalisation, gathers, sorting, decompositions and solvers of `torch.linalg`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any, ClassVar

import torch
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

aten: Any = torch.ops.aten
Shape = Sequence[int]


def attention(query: Shape, key: Shape, value: Shape, *_: Any, **__: Any) -> int:
    """Return the FLOPs of attention [N, heads, L, d]: scores, and their product with the values."""
    return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]


def attention_backward(gradient: Shape, query: Shape, key: Shape, value: Shape, *_: Any, **__: Any) -> int:
    """Return the FLOPs of its gradients: the scores once more, and two products for each of the two of before."""
    return int(sdpa_backward_flop_count(gradient, query, key, value))  # type: ignore[no-untyped-call]


def fused_attention(query: Shape, key: Shape, value: Shape, width: int, heads: int, *_: Any, **__: Any) -> int:
    """Return the FLOPs of attention with its four projections, on query [N, L, D], key and value [N, M, D]."""
    samples, length, others = query[0], query[1], key[1]
    projections = 2 * samples * width * width * (2 * length + 2 * others)
    return projections + 4 * samples * length * others * width


def vector_product(matrix: Shape, *_: Any, **__: Any) -> int:
    """Return the FLOPs of a matrix [M, K] times a vector, or of two vectors [K]."""
    return 2 * prod(matrix)


def added_vector_product(_: Shape, matrix: Shape, *__: Any, **___: Any) -> int:
    """Return the FLOPs of a matrix [M, K] times a vector, added to another."""
    return 2 * prod(matrix)


def added_batch_product(_: Shape, a: Shape, b: Shape, *__: Any, **___: Any) -> int:
    """Return the FLOPs of products [B, M, K] x [B, K, N], added up."""
    return 2 * prod(a) * b[-1]


def convolution_backward(gradient: Shape, x: Shape, weight: Shape, _bias: Any, _stride: Any, _padding: Any,
                         _dilation: Any, transposed: bool, _output_padding: Any, groups: int,
                         wanted: Sequence[bool], **_: Any) -> int:
    """Return the FLOPs of a convolution's gradients of its input and weight: each costs what the convolution does."""
    positions = x[2:] if transposed else gradient[2:]
    forward = 2 * x[0] * prod(positions) * prod(weight)  # a weight has only the inputs of its own group
    return forward * sum(wanted[:2])


OWN: dict[Any, Callable[..., int]] = {
    aten._scaled_dot_product_flash_attention_for_cpu: attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: attention_backward,
    aten._native_multi_head_attention: fused_attention,
    aten.mv: vector_product,
    aten.dot: vector_product,
    aten.addmv: added_vector_product,
    aten.addbmm: added_batch_product,
    aten.convolution_backward: convolution_backward,
}
ORDINARY: Any = torch.Tensor.__torch_dispatch__
FORMULAS: dict[Any, Callable[..., Any]] = FlopCounterMode(display=False, custom_mapping=OWN).flop_registry


class FlopCount(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A context that counts the FLOPs of what runs inside, and changes nothing about it.

    It counts what torch's `FlopCounterMode` counts with the same formulas, without a tree of modules and in a third of
    its time. Contexts may lie inside each other; each counts all.
    """

    supports_higher_order_operators = True
    _composite: ClassVar[dict[OpOverload, bool]] = {}  # whether an operation is made of others

    def __init__(self) -> None:
        """Begin at 0."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def start(self) -> FlopCount:
        """Begin to count, until `stop`, where a block cannot be: what is entered in between must be left before."""
        self.__enter__()  # type: ignore[no-untyped-call]
        return self

    def stop(self) -> None:
        """Count no more."""
        self.__exit__(None, None, None)  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count it."""
        kwargs = kwargs or {}
        if not isinstance(func, OpOverload) or any(kind.__torch_dispatch__ is not ORDINARY for kind in types):
            return NotImplemented  # a tensor that stands for others: what it does with them comes here again
        formula = FORMULAS.get(func.overloadpacket)
        if formula is None and self._composite.get(func, True):  # only in torch.inference_mode do these come here
            with self:
                out = func.decompose(*args, **kwargs)
            self._composite[func] = out is not NotImplemented
            if out is not NotImplemented:
                return out
        out = func(*args, **kwargs)
        if formula is not None:
            self.total += int(formula(*args, **kwargs, out_val=out))
        return out
