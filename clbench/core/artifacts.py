"""Tensors as files, written whole or not at all, and the layout of the folder a trial exports to."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

BASE = "base.safetensors"  # in a trial's folder: the starting weights, by the model's own names


def task_folder(trial: Path, task: int) -> Path:
    """Return the folder of a task's files within a trial's."""
    return trial / f"task{task}"


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors as safetensors, whole or not at all: to a temporary file, which is flushed and then renamed.

    The folder is made if there is none.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex}.tmp")
    try:
        save_file(_unshared(tensors), temporary, dict(metadata or {}))
        with open(temporary, "rb+") as handle:
            os.fsync(handle.fileno())
        temporary.chmod(path.parent.stat().st_mode & 0o666)  # safetensors makes it readable by its owner alone
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _unshared(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors on the CPU, contiguous and sharing no memory, as safetensors requires."""
    seen: set[int] = set()
    out = {}
    for name, tensor in tensors.items():
        own = tensor.detach().cpu().contiguous()
        # What is shared until it is written to would get memory of its own by being asked for its address.
        if torch._C._is_cow_tensor(own):  # type: ignore[attr-defined]
            own = own.clone()
        out[name] = own.clone() if own.untyped_storage().data_ptr() in seen else own
        seen.add(own.untyped_storage().data_ptr())
    return out
