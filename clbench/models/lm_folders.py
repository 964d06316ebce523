"""Folders of causal language models and of PEFT's adapters: find them and read their small files (no torch)."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError, safe_open

from clbench.core.errors import DataError
from clbench.core.files import hash_file
from clbench.models.hf_files import LANGUAGE_MODEL, folder_of

Kind = Literal["adapter", "model"]
ADAPTER, MODEL = "adapter_config.json", "config.json"
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
CHECKPOINT = re.compile(r"checkpoint-(\d+)")
HASHED = ("*.safetensors", "*.bin", "config.json", "adapter_config.json", "tokenizer*", "*.jinja", "*.model",
          "special_tokens_map.json", "vocab*", "merges.txt", "added_tokens.json")


@dataclass(frozen=True)
class Candidate:
    """An adapter or a model that is compared with its base."""

    label: str
    folder: Path
    kind: Kind


def base_folder(name: str) -> Path:
    """Return the folder of a base: a folder, or a repository on Hugging Face's hub.

    Raises:
        DataError: there is none, or it is an adapter.
    """
    if (Path(name) / ADAPTER).is_file():
        raise DataError(f"{name} is an adapter; name its base first, then the adapter: clbench forget BASE {name}")
    return folder_of(name, LANGUAGE_MODEL)


def find_candidates(paths: Sequence[Path]) -> list[Candidate]:
    """Return the adapters and models of folders. A folder with `checkpoint-N` is a series in the order of N.

    If such a folder is a model itself, that one comes after its checkpoints.

    Raises:
        DataError: a folder is missing, or has neither.
    """
    labeled: list[tuple[Path, str]] = []
    for path in paths:
        if not path.is_dir():
            raise DataError(f"{path}: there is no such folder")
        numbered = [(int(match[1]), child) for child in path.iterdir()
                    if (match := CHECKPOINT.fullmatch(child.name)) and child.is_dir()]
        series = [child for _, child in sorted(numbered)]
        itself = any((path / name).is_file() for name in (ADAPTER, MODEL))
        if not series and not itself:
            raise DataError(f"{path}: it has neither {ADAPTER} nor {MODEL} nor folders checkpoint-N; expected a PEFT "
                            "adapter, a model, or a series of checkpoints")
        name = path.resolve().name
        labeled += [(child, f"{name}/{child.name}" if len(paths) > 1 else child.name) for child in series]
        labeled += [(path, name)] if itself else []
    labels = [label for _, label in labeled]
    return [Candidate(label if labels.count(label) == 1 else str(path), path, _kind(path)) for path, label in labeled]


def _kind(folder: Path) -> Kind:
    """Return what a folder has, after a look at whether its files are there.

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


def read_config(folder: Path, kind: Kind) -> dict[str, Any]:
    """Return the configuration of an adapter or a model.

    Raises:
        DataError: it cannot be read.
    """
    path = folder / (ADAPTER if kind == "adapter" else MODEL)
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: it cannot be read as JSON: {' '.join(str(error).split())}") from None
    if not isinstance(config, dict):
        raise DataError(f"{path}: expected a JSON object")
    return config


def fingerprint(folder: Path) -> str:
    """Return a hash of the files that make a model: configuration, weights, tokenizer."""
    files = sorted({path for pattern in HASHED for path in folder.glob(pattern)})
    return sha256("\n".join(f"{path.name} {hash_file(path)}" for path in files).encode()).hexdigest()
