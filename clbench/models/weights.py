"""Load weights from a file into a model."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from clbench.core.errors import DataError
from clbench.models.network import Network

WRAPPERS = ("module.", "model.")  # prefixes that DataParallel and training scripts add to every name
SHOWN = 3  # tensors that an error names of each kind
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
    if wrong := misfit(given, own):
        raise MisfitError(f"weights {source} do not fit the model: {wrong}", given)
    fitting = {name: tensor for name, tensor in given.items() if name in own and own[name].shape == tensor.shape}
    model.load_state_dict({**own, **fitting})
    left = any(name.startswith("head.") and name not in fitting for name in {*own, *given})
    return ["weights: no head of this size, it starts untrained"] if left else []


class MisfitError(DataError):
    """Weights that are not those of the model; `given` are its tensors by the model's names."""

    def __init__(self, message: str, given: Mapping[str, Tensor]) -> None:
        """Keep the tensors, to find out whose they are."""
        super().__init__(message)
        self.given = given


def misfit(given: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str:
    """Return why tensors are not those of a model, empty if they are: what is missing, unknown, of another shape.

    The head is left out, and what counts batches: files from before batch norm counted them lack it.
    """
    def body(names: Iterable[str]) -> list[str]:
        return sorted(n for n in names if not n.startswith("head.") and not n.endswith(".num_batches_tracked"))

    shapes = [f"{name} ({list(given[name].shape)}, the model has {list(own[name].shape)})"
              for name in body(set(given) & set(own)) if given[name].shape != own[name].shape]
    parts = (("missing", body(set(own) - set(given))), ("unknown to the model", body(set(given) - set(own))),
             ("of another shape", shapes))
    return "; ".join(f"{len(names)} of {len(body(given if what[0] == 'u' else own))} tensors {what}: "
                     f"{', '.join(names[:SHOWN])}{' and others' if len(names) > SHOWN else ''}"
                     for what, names in parts if names)


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
