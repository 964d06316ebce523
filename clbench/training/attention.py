"""Attention where torch's own is slow: in stacks, and in bfloat16 on a CPU.

Under `vmap` stacked members are folded into the batch, which attention never mixes.
`scaled_dot_product_attention` has no batching rule on a CPU, where vmap falls back to a loop over members and samples.
`FoldedAttention` puts a function with a rule in its place, without a change to the model. The rule calls the original
on [S * N, heads, L, d] for [S, N, heads, L, d].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from clbench.core.torch_private import inside_vmap

SHORT = 128  # tokens; up to here bfloat16 slows gradients of attention on a CPU (benchmarks/speed/attention.py)
KNOWN = {"attn_mask", "dropout_p", "is_causal", "scale"}  # what else a call may say is left to the original


class FoldedAttention(TorchFunctionMode):
    """A context in which attention on tensors of a `vmap` runs on all members at once; `calls` counts them."""

    def __init__(self) -> None:
        """Start counting calls."""
        super().__init__()
        self.calls = 0

    def __torch_function__(self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (),
                           kwargs: Mapping[str, Any] | None = None) -> Any:
        """Call a function of torch; attention of stacked members is folded into the batch."""
        kwargs = kwargs or {}
        if (func is F.scaled_dot_product_attention and len(args) == 3 and kwargs.keys() <= KNOWN
                and not kwargs.get("dropout_p") and any(map(inside_vmap, args))):
            self.calls += 1
            return _Folded.apply(  # type: ignore[no-untyped-call]
                *args, kwargs.get("attn_mask"), kwargs.get("is_causal", False), kwargs.get("scale"))
        return func(*args, **kwargs)


class _Folded(torch.autograd.Function):
    """Attention with a rule for vmap; gradients are those of the function that the rule calls."""

    @staticmethod
    def forward(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, is_causal: bool, scale: float | None) -> Tensor:
        """Return the attention of tensors that are not stacked (any more)."""
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=is_causal, scale=scale)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep nothing: what the rule calls has gradients of its own."""

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None,
             is_causal: bool, scale: float | None) -> tuple[Tensor, int]:
        """Fold the members into the batch, and unfold what comes out."""
        size = info.batch_size

        def folded(tensor: Tensor, dim: int | None) -> Tensor:
            stacked = tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
            return stacked.flatten(0, 1)

        q, k, v = folded(q, in_dims[0]), folded(k, in_dims[1]), folded(v, in_dims[2])
        if mask is not None:  # [..., L, L] of a member, which may leave out what it is the same for
            mask = mask.expand(size, *mask.shape) if in_dims[3] is None else mask.movedim(in_dims[3], 0)
            mask = mask.reshape(size, *[1] * (q.dim() - mask.dim() + 1), *mask.shape[1:])
            mask = mask.expand(size, len(q) // size, *mask.shape[2:]).flatten(0, 1)
        out: Any = attend(q, k, v, attn_mask=mask, is_causal=is_causal, scale=scale)
        return out.unflatten(0, (size, -1)), 0


def attend(q: Tensor, k: Tensor, v: Tensor, **kwargs: Any) -> Tensor:
    """Return attention of [..., tokens, width]; under autocast on a CPU over few tokens, if it learns, in float32."""
    learns = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    if (not learns or max(q.shape[-2], k.shape[-2]) > SHORT or q.device.type != "cpu"
            or not torch.is_autocast_enabled("cpu")):
        return F.scaled_dot_product_attention(q, k, v, **kwargs)
    mask = kwargs.get("attn_mask")
    if mask is not None and mask.is_floating_point():
        kwargs = {**kwargs, "attn_mask": mask.float()}
    with torch.autocast("cpu", enabled=False):
        return F.scaled_dot_product_attention(q.float(), k.float(), v.float(), **kwargs).bfloat16()
