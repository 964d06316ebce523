"""Load weights from a file into a model."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from clbench.core.errors import DataError
from clbench.models.network import Network

WRAPPERS = ("module.", "model.")  # prefixes that DataParallel and training scripts add to every name
INSIDE = ("state_dict", "model")  # keys under which training scripts store the weights among other things


def load_weights(model: Network, path: Path) -> list[str]:
    """Copy the weights of a file into the model; a head of another size is not loaded.

    The file is safetensors, or a state dict that `torch.load` reads with `weights_only` (no code in it is ever run).
    Its names are the model's own (`model.state_dict()`) or published ones (`model.aliases`), with or without
    DataParallel's `module.` before them.

    Returns notes on what was left out.

    Raises:
        DataError: the file cannot be read, or a tensor other than the head's is missing, unknown or of another shape.
    """
    return fill(model, read_weights(path), str(path))


def fill(model: Network, weights: Mapping[str, Tensor], source: str) -> list[str]:
    """Copy weights with own or published names into the model, as `load_weights` does; `source` is for errors."""
    own = model.state_dict()
    if model.conform is not None and not set(weights) <= set(own):
        weights = model.conform(weights)
    given = renamed(weights, own, model.aliases)
    wrong = sorted(set(given) ^ set(own)) + [n for n in own if n in given and own[n].shape != given[n].shape]
    # Files from before batch norm counted its batches lack the counters.
    body = [name for name in wrong if not name.startswith("head.") and not name.endswith(".num_batches_tracked")]
    if body:
        raise DataError(f"weights {source} do not fit the model: {', '.join(body[:3])}"
                        + (f" and {len(body) - 3} more" if len(body) > 3 else "")
                        + " missing, unknown or of another shape")
    model.load_state_dict({**own, **{n: t for n, t in given.items() if n not in wrong}})
    left = any(name.startswith("head.") for name in wrong)
    return ["weights: no head of this size, it starts untrained"] if left else []


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file by name, without the prefixes and keys that training scripts add.

    Numbers of any precision become float32.

    Raises:
        DataError: it cannot be read, or holds something else.
    """
    try:
        found: Any = (load_file(path) if path.suffix == ".safetensors"
                      else torch.load(path, map_location="cpu", weights_only=True))
    except (OSError, SafetensorError, pickle.UnpicklingError, RuntimeError, ValueError, EOFError) as error:
        raise DataError(f"weights {path} cannot be read: {' '.join(str(error).split())[:200]}") from None
    for name in INSIDE:
        if isinstance(found, Mapping) and isinstance(found.get(name), Mapping):
            found = found[name]
    if not isinstance(found, Mapping) or not all(isinstance(t, Tensor) for t in found.values()):
        raise DataError(f"weights {path}: expected tensors by name, found {type(found).__name__}")
    for prefix in WRAPPERS:
        if found and all(name.startswith(prefix) for name in found):
            found = {name.removeprefix(prefix): tensor for name, tensor in found.items()}
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in found.items()}


def renamed(given: Mapping[str, Tensor], own: Mapping[str, Tensor], aliases: Mapping[str, str]) -> dict[str, Tensor]:
    """Return tensors under the model's own names: the longest alias that a published name begins with is replaced."""
    if set(given) <= set(own):
        return dict(given)
    out = {}
    for name, tensor in given.items():
        fitting = [a for a in aliases if name == a or name.startswith(a + ".")]
        longest = max(fitting, key=len, default=None)
        out[name if longest is None else aliases[longest] + name.removeprefix(longest)] = tensor
    return out


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of tensors in hexadecimal: of names, types, shapes and bytes, in the order of names."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        total.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()
