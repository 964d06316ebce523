"""Adapters and their base as files that `peft` can load.

A task's folder holds

    adapter_config.json         PEFT's LoraConfig
    adapter_model.safetensors   A and B (bias, magnitude) of each layer and the head, by PEFT's names
    clbench.json                `AdapterInfo`: what PEFT's files have no place for
    prototype.safetensors       the task's class means, with infer = prototype only

and the trial's folder above it `base.safetensors`: W, by the names of the model without adapters. All are safetensors
or JSON; nothing in them is ever executed, and no path in them is followed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from clbench.core.artifacts import save_tensors
from clbench.core.errors import StoreError
from clbench.core.files import write_atomically
from clbench_lora.peft_format import HEAD, PREFIX, Adapter, AdapterInfo, PeftConfig, fingerprint

CONFIG, MODEL, INFO, PROTOTYPE = ("adapter_config.json", "adapter_model.safetensors", "clbench.json",
                                  "prototype.safetensors")
AGAIN = "restore it from a copy, or remove it and add its task again"


def write_adapter(folder: Path, adapter: Adapter) -> None:
    """Write an adapter's files, replacing older ones.

    Raises:
        StoreError: they cannot be written.
    """
    try:
        save_tensors(folder / MODEL, adapter.tensors, {"format": "pt"})
        if adapter.prototype is not None:
            save_tensors(folder / PROTOTYPE, {"prototype": adapter.prototype})
        # Older releases of PEFT do not know this key.
        values = adapter.config.model_dump(exclude=set() if adapter.config.lora_bias else {"lora_bias"})
        write_atomically(folder / CONFIG, json.dumps(values, indent=1) + "\n")
        # Last, so that an adapter that has this file is complete.
        write_atomically(folder / INFO, adapter.info.model_dump_json(indent=1) + "\n")
    except (OSError, SafetensorError) as error:
        raise StoreError(f"cannot write adapter {folder}: {error}; free some space or choose another folder") from error


def read_adapter(folder: Path) -> Adapter:
    """Return the adapter of a folder.

    Raises:
        StoreError: it is missing, incomplete, or not what `write_adapter` writes.
    """
    prototype = folder / PROTOTYPE
    try:
        info = AdapterInfo.model_validate_json((folder / INFO).read_bytes())
        config = PeftConfig.model_validate_json((folder / CONFIG).read_bytes())
        adapter = Adapter(config, load_file(folder / MODEL), info,
                          load_file(prototype)["prototype"] if prototype.exists() else None)
    except FileNotFoundError as error:
        raise StoreError(f"no adapter in {folder}: {Path(error.filename or MODEL).name} is missing") from None
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise StoreError(f"adapter {folder} cannot be read: {' '.join(str(error).split())[:200]}; "
                         f"{AGAIN}") from None
    wanted = [f"{PREFIX}{layer}.{part}.weight" for layer in adapter.layers for part in ("lora_A", "lora_B")]
    missing = [n for n in (*wanted, f"{PREFIX}{HEAD}.weight", f"{PREFIX}{HEAD}.bias") if n not in adapter.tensors]
    if missing:
        raise StoreError(f"adapter {folder} is not whole: it lacks {missing[0]}; {AGAIN}")
    return adapter


def write_base(path: Path, base: Mapping[str, Tensor]) -> str:
    """Write a base and return its fingerprint, which is also stored in the file's metadata.

    Raises:
        StoreError: it cannot be written.
    """
    digest = fingerprint(base)
    try:
        save_tensors(path, base, {"sha256": digest})
    except (OSError, SafetensorError) as error:
        raise StoreError(f"cannot write {path}: {error}; free some space or choose another folder") from error
    return digest


def noted_fingerprint(path: Path) -> str:
    """Return the fingerprint in the metadata of a base's file, without reading the tensors.

    Raises:
        StoreError: the file is missing or has none.
    """
    try:
        with safe_open(path, "pt") as file:
            return str((file.metadata() or {})["sha256"])
    except (OSError, KeyError, SafetensorError) as error:
        raise StoreError(f"base {path} cannot be read: {error}; restore it from a copy") from None


def read_base(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a base by name.

    Raises:
        StoreError: the file is missing or not in safetensors format.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise StoreError(f"base {path} cannot be read: {error}; restore it from a copy") from None


def check_base(adapter: Adapter, digest: str, where: Path) -> None:
    """Raise a StoreError if an adapter was trained on a base with another fingerprint."""
    if adapter.info.base != digest:
        raise StoreError(f"adapter {where} was trained on another base (sha256 {adapter.info.base[:12]}..., this one "
                         f"is {digest[:12]}...); use the base.safetensors it came with")
