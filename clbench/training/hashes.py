"""A hash of each of many tensors, by which is seen whether they have changed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

PIECE = 2**24  # bytes that are hashed at once


def hashed(tensors: Mapping[str, Tensor]) -> dict[str, bytes]:
    """Return a hash of each tensor's dtype, shape and bytes; those on a device come to the host in one piece."""
    flat = [t.detach().reshape(-1).view(torch.uint8) for t in tensors.values()]
    if flat and flat[0].device.type != "cpu":
        flat = list(torch.split(torch.cat(flat).cpu(), [len(part) for part in flat]))
    found = {}
    for (name, tensor), part in zip(tensors.items(), flat, strict=True):
        state = hashlib.blake2b(f"{tensor.dtype} {tuple(tensor.shape)}".encode(), digest_size=32)
        for piece in torch.split(part, PIECE):
            state.update(piece.clone().numpy().data)  # a copy: NumPy would end the sharing of memory
        found[name] = state.digest()
    return found
