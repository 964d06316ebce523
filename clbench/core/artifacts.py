"""Write tensors to files atomically, and define the layout of the folder that a trial exports to."""

from __future__ import annotations

import json
import os
import re
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from clbench.core.torch_private import is_copy_on_write

BASE = "base.safetensors"  # in a trial's folder: the starting weights, by the model's own names


def task_folder(trial: Path, task: int) -> Path:
    """Return the folder of a task's files inside the folder of its trial."""
    return trial / f"task{task}"


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors as safetensors atomically: to a temporary file, which is flushed and then renamed.

    A missing folder is created. The same tensors and metadata give the same bytes.

    Raises:
        OSError: the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex}.tmp")
    try:
        try:
            save_file(_copy_unshared(tensors), temporary, dict(metadata or {}))
        except SafetensorError as error:  # it has the number of the system's error only in its text
            number = re.search(r"os error (\d+)", str(error))
            if number is None:
                raise
            raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
        with open(temporary, "rb+") as handle:
            _sort_metadata(handle)
            os.fsync(handle.fileno())
        temporary.chmod(path.parent.stat().st_mode & 0o666)  # safetensors creates files that only their owner can read
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _sort_metadata(file: BinaryIO) -> None:
    """Sort the metadata of a safetensors file by key, because safetensors writes them in random order."""
    length = int.from_bytes(file.read(8), "little")
    header = json.loads(file.read(length))
    if len(header.get("__metadata__", ())) < 2:
        return
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(length)
    assert len(text) == length  # the same entries in another order
    file.seek(8)
    file.write(text)


def _copy_unshared(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors on the CPU, contiguous and sharing no memory, as safetensors requires."""
    seen: set[int] = set()
    out = {}
    for name, tensor in tensors.items():
        copy = tensor.detach().cpu().contiguous()
        # Reading the address of a copy-on-write tensor would end the sharing of its memory.
        if is_copy_on_write(copy):
            copy = copy.clone()
        out[name] = copy.clone() if copy.untyped_storage().data_ptr() in seen else copy
        seen.add(copy.untyped_storage().data_ptr())
    return out
