"""What strategies export from a trial: tensors as safetensors, each file written whole or not at all."""

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
    """Write tensors as safetensors, on the CPU and without shared memory, making the folder where there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex}.tmp")
    try:
        own = {n: t.detach().cpu().clone(memory_format=torch.contiguous_format) for n, t in tensors.items()}
        save_file(own, temporary, dict(metadata or {}))
        temporary.chmod(path.parent.stat().st_mode & 0o666)  # safetensors gives it to its owner alone
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)

