"""Find the adapters and models in folders, for `clbench forget`. This module does not import torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from clbench.core.errors import DataError, SpecError
from clbench.core.files import distinct_names, explain_unreadable
from clbench.models.hf_files import (
    ADAPTER,
    ADAPTER_INFO,
    ADAPTER_WEIGHTS,
    MODEL,
    Kind,
    folder_of,
    read_config,
    read_object,
)

BASE = "base"  # the label of the base, which no candidate has
SERIES = re.compile(r"checkpoint-(\d+)|task(\d+)")  # folders of a trainer's checkpoints, and of a trial's adapters
READABLE = "name a folder that this user can read"


@dataclass(frozen=True)
class Candidate:
    """An adapter or a model that is compared with its base."""

    label: str
    folder: Path
    kind: Kind


@explain_unreadable(READABLE, DataError)
def base_folder(name: str) -> Path:
    """Return the folder of a base: a folder, or a repository on Hugging Face's hub.

    Raises:
        DataError: there is none, it cannot be read, or it is an adapter.
    """
    if (Path(name) / ADAPTER).is_file():
        raise DataError(f"{name} is an adapter; name its base first, then the adapter: clbench forget BASE {name}")
    return folder_of(name, weights=True)


@explain_unreadable(READABLE, DataError)
def find_candidates(paths: Sequence[Path]) -> list[Candidate]:
    """Return the adapters and models in folders. A folder with `checkpoint-N` or `taskN` is a series in the order of N.

    If a folder with a series also has an adapter or a model itself, this comes after the series.

    Raises:
        DataError: a folder is missing, cannot be read, or has neither an adapter nor a model.
        SpecError: an adapter or a model is named twice, which would count as two in the correction of p-values.
    """
    labeled: list[tuple[Path, str]] = []
    for path in paths:
        if not path.is_dir():
            raise DataError(f"{path}: there is no such folder")
        series = _series(path)
        is_candidate = any((path / name).is_file() for name in (ADAPTER, MODEL))
        if not series and not is_candidate:
            raise DataError(f"{path}: it has neither {ADAPTER} nor {MODEL} nor folders checkpoint-N or taskN; expected "
                            "a PEFT adapter, a model, a series of checkpoints, or the folder artifacts/KEY of a trial "
                            "that saved adapters")
        name = path.resolve().name
        labeled += [(child, f"{name}/{child.name}" if len(paths) > 1 else child.name) for child in series]
        labeled += [(path, name)] if is_candidate else []
    folders = [path.resolve() for path, _ in labeled]
    if duplicate := next((path for path, _ in labeled if folders.count(path.resolve()) > 1), None):
        raise SpecError(f"{duplicate} is named twice; name each adapter, model or series once")
    labels = [BASE, *(label for _, label in labeled)]
    ends = distinct_names([Path("/", BASE), *folders])[1:]
    return [Candidate((label if labels.count(label) == 1 else end) + _task_note(path), path, _kind(path))
            for (path, label), end in zip(labeled, ends, strict=True)]


def _series(folder: Path) -> list[Path]:
    """Return the checkpoints, or the adapters of a trial's tasks, in a folder in the order of their numbers."""
    numbered = []
    for child in folder.iterdir():
        match = SERIES.fullmatch(child.name)
        # A trial of another method saves no adapters in the folders of its tasks.
        if match and (child.is_dir() if match[1] else (child / ADAPTER).is_file()):
            numbered.append((int(match[1] or match[2]), child))
    return [child for _, child in sorted(numbered)]


def token_count(adapter: Candidate) -> int | None:
    """Return the number of tokens of the embeddings that an adapter replaces; None if it does not replace any."""
    path = adapter.folder / ADAPTER_WEIGHTS[0]
    if not path.is_file():
        return None
    with safe_open(path, framework="numpy") as file:
        return next((int(file.get_slice(name).get_shape()[0]) for name in file.keys()  # noqa: SIM118
                     if name.endswith(("embed_tokens.weight", "lm_head.weight"))), None)


def _task_note(folder: Path) -> str:
    """Return ` (task N)` for an adapter of one task that clbench wrote. N counts from 1, and `task0` is task 1."""
    path = folder / ADAPTER_INFO
    task = read_object(path).get("task") if path.is_file() else None
    return f" (task {task + 1})" if isinstance(task, int) else ""  # a weighted sum of adapters has no task


def _kind(folder: Path) -> Kind:
    """Return whether a folder has an adapter or a model, and check that its files can be read.

    Raises:
        DataError: a file is missing or cannot be read.
    """
    kind: Kind = "adapter" if (folder / ADAPTER).is_file() else "model"
    read_config(folder, kind)
    if kind == "adapter" and not any((folder / name).is_file() for name in ADAPTER_WEIGHTS):
        raise DataError(f"{folder}: the adapter's weights are missing: no {' or '.join(ADAPTER_WEIGHTS)}")
    if kind == "model" and not any(folder.glob("*.safetensors")):
        raise DataError(f"{folder}: the model's weights are missing: no *.safetensors; save them by transformers' "
                        "save_pretrained")
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="numpy") as file:
                file.keys()
        except (OSError, SafetensorError) as error:
            raise DataError(f"{path}: it cannot be read, so it is torn or of another format: {error}") from None
    return kind
