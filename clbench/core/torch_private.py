"""The parts of torch without a public name that clbench uses, in one place.

`nox -s lowest` tests them with the oldest torch that is allowed. The module imports torch, so only modules that import
torch anyway import it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.nn.modules.batchnorm import _NormBase
from torch.utils._python_dispatch import TorchDispatchMode

from clbench.core.errors import message_of

__all__ = [
    "INNER",
    "NormWithStatistics",
    "OpOverload",
    "TorchDispatchMode",
    "attributes_of",
    "copy_on_write",
    "flash_attention_enabled",
    "is_copy_on_write",
    "is_inside_vmap",
    "storage_id",
    "vmap_refusal",
    "without_torch_functions",
    "write_count",
]

NormWithStatistics = _NormBase  # batch and instance normalization
INNER = frozenset(vars(nn.Module())) - {"training"}  # torch's own attributes of a module


def attributes_of(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield the names and values of a module's attributes, without parameters, buffers, modules and torch's own."""
    for name, value in vars(module).items():
        if name not in INNER:
            yield name, value


def copy_on_write(tensor: Tensor) -> Tensor:
    """Return a tensor that shares memory with another one until either is written to."""
    copy: Tensor = torch._lazy_clone(tensor)
    return copy


def is_copy_on_write(tensor: Tensor) -> bool:
    """Return whether a tensor shares its memory until it is written to; reading its address would end that."""
    return bool(torch._C._is_cow_tensor(tensor))  # type: ignore[attr-defined]


def storage_id(tensor: Tensor) -> int:
    """Return an identifier of a tensor's storage, on any device, without ending the sharing of memory."""
    return int(tensor.untyped_storage()._cdata)


def write_count(tensor: Tensor) -> int:
    """Return how often a tensor has been written to, as far as torch counts it."""
    return tensor._version


def is_inside_vmap(value: Any) -> bool:
    """Return whether a value is a tensor of `torch.func.vmap`."""
    return bool(torch._C._functorch.is_batchedtensor(value))


def vmap_refusal(error: RuntimeError) -> str:
    """Return why `torch.func.vmap` refuses to run a function, without its request to file an issue; "" for others.

    vmap has no error type of its own. Its messages begin with its name.
    """
    text = message_of(error)
    return re.sub(r"[.,] please .*", "", text, flags=re.IGNORECASE) if text.startswith("vmap: ") else ""


def flash_attention_enabled() -> bool:
    """Return whether `scaled_dot_product_attention` may use its fused kernel."""
    return bool(torch._C._get_flash_sdp_enabled())


def without_torch_functions() -> AbstractContextManager[object]:
    """Return a context in which no `__torch_function__` is called, neither of modes nor of subclasses."""
    return torch._C.DisableTorchFunction()
