"""Write and read adapters and their base as files that `peft` can load.

A task's folder contains

    adapter_config.json         PEFT's LoraConfig
    adapter_model.safetensors   A and B (bias, magnitude) of each layer and the head, by PEFT's names
    clbench.json                `AdapterInfo`: facts that PEFT's files have no place for
    prototype.safetensors       the task's class means, with infer = prototype only

The trial's folder above it contains `base.safetensors`: W, by the names of the model without adapters. The W of a
language model is not written if the model's own folder or repository has it. Adapters of language models have no head.
For models of timm, torchvision or transformers, all names are the library's, so that its model can load both files.
Only torchvision's vision transformers have no layers for adapters of attention (`adapters.refuse_foreign`).
`clbench.json` and the metadata of the base map these names to the names in clbench. All files are safetensors or JSON.
Nothing in them is ever executed, and no path in them is followed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from clbench.core.artifacts import save_tensors
from clbench.core.errors import StoreError, WriteError
from clbench.core.files import write_atomically
from clbench.models.hf_files import ADAPTER, ADAPTER_INFO, ADAPTER_WEIGHTS
from clbench_lora.peft_format import HEAD, PREFIX, Adapter, AdapterInfo, PeftConfig, fingerprint

CONFIG, MODEL, INFO, PROTOTYPE = ADAPTER, ADAPTER_WEIGHTS[0], ADAPTER_INFO, "prototype.safetensors"
ADD_AGAIN = "restore it from a copy, or remove it and add its task again"  # advice for classifiers
RUN_AGAIN = "restore it from a copy, or run the experiment again with another --out"


def write_adapter(folder: Path, adapter: Adapter) -> None:
    """Write an adapter's files, replacing older ones.

    Raises:
        WriteError: they cannot be written.
    """
    try:
        names = adapter.info.names
        save_tensors(folder / MODEL, renamed_tensors(adapter.tensors, names), {"format": "pt"})
        if adapter.prototype is not None:
            save_tensors(folder / PROTOTYPE, {"prototype": adapter.prototype})
        config = renamed_config(adapter.config, names)
        # Older releases of PEFT do not know the first two keys.
        absent = {key for key in ("lora_bias", "exclude_modules", "revision") if not getattr(config, key)}
        values = config.model_dump(exclude=absent)
        write_atomically(folder / CONFIG, json.dumps(values, indent=1) + "\n")
        # Last, so that an adapter that has this file is complete.
        write_atomically(folder / INFO, adapter.info.model_dump_json(indent=1) + "\n")
    except (OSError, SafetensorError) as error:
        raise WriteError(f"cannot write adapter {folder}: {error}; free some space or choose another folder") from error


def read_adapter(folder: Path, advice: str = ADD_AGAIN) -> Adapter:
    """Return the adapter of a folder.

    Args:
        folder: the adapter's folder.
        advice: what an error says to do about an adapter that is damaged.

    Raises:
        StoreError: the adapter is missing, incomplete, or not in the format of `write_adapter`.
    """
    prototype = folder / PROTOTYPE
    try:
        info = AdapterInfo.model_validate_json((folder / INFO).read_bytes())
        config = PeftConfig.model_validate_json((folder / CONFIG).read_bytes())
        local_names = {published: name for name, published in info.names.items()}
        adapter = Adapter(renamed_config(config, local_names),
                          renamed_tensors(load_file(folder / MODEL), local_names), info,
                          load_file(prototype)["prototype"] if prototype.exists() else None)
    except FileNotFoundError as error:
        raise StoreError(f"no adapter in {folder}: {Path(error.filename or MODEL).name} is missing") from None
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise StoreError(f"adapter {folder} cannot be read: {' '.join(str(error).split())[:200]}; "
                         f"{advice}") from None
    expected = [f"{PREFIX}{layer}.{part}.weight" for layer, part in product(adapter.layers, ("lora_A", "lora_B"))]
    expected += [f"{PREFIX}{HEAD}.{part}" for part in ("weight", "bias") if adapter.has_head]
    missing = [name for name in expected if name not in adapter.tensors]
    if missing:
        raise StoreError(f"adapter {folder} is not whole: it lacks {missing[0]}; {advice}")
    check_sizes(adapter, folder, advice)
    return adapter


def check_sizes(adapter: Adapter, folder: Path, advice: str, base: Mapping[str, Sequence[int]] | None = None) -> None:
    """Check that the sizes of an adapter's tensors are those of its ranks, and of its base.

    Args:
        adapter: the adapter.
        folder: its folder.
        advice: what an error says to do.
        base: the shapes of the base's tensors by name; None if they are not known.

    Raises:
        StoreError: a size is another one.
    """
    sizes: dict[str, tuple[int | None, int | None]] = {}  # of tensors as matrices; None if any size is right
    for layer in adapter.layers:
        rank, weight = adapter.rank(layer), None if base is None else base.get(f"{layer}.weight")
        if rank < 1 or (base is not None and weight is None):
            reason = f"the rank of {layer} is {rank}" if rank < 1 else f"its base has no layer {layer}"
            raise StoreError(f"adapter {folder} cannot be used: {reason}; {advice}")
        outputs, inputs = (weight[0], math.prod(weight[1:])) if weight else (None, None)
        sizes |= {f"{layer}.lora_A.weight": (rank, inputs), f"{layer}.lora_B.weight": (outputs, rank)}
        if outputs is not None:
            sizes |= {f"{layer}.lora_B.bias": (outputs, 1), f"{layer}.lora_magnitude_vector": (outputs, 1)}
    if adapter.has_head:
        features = base[f"{HEAD}.weight"][1] if base and f"{HEAD}.weight" in base else None
        sizes |= {f"{HEAD}.weight": (adapter.head[1].numel(), features)}
    for name, expected in sizes.items():
        tensor = adapter.tensors.get(PREFIX + name)
        if tensor is None:
            continue  # an adapter without biases or magnitudes
        matrix = tensor.flatten(1) if name.endswith(".weight") and tensor.dim() > 1 else tensor.reshape(-1, 1)
        if any(size not in (None, actual) for actual, size in zip(matrix.shape, expected, strict=True)):
            raise StoreError(f"adapter {folder} cannot be used: {name} has the shape {list(tensor.shape)}, which does "
                             f"not fit {'its rank' if base is None else 'its base'}; {advice}")


def renamed_config(config: PeftConfig, names: Mapping[str, str]) -> PeftConfig:
    """Return a configuration with other names for the modules in `names`."""
    def patterns(values: Mapping[str, Any]) -> dict[str, Any]:
        return {names.get(name, name): value for name, value in values.items()}

    return config.model_copy(update={
        "target_modules": [names.get(name, name) for name in config.target_modules],
        "modules_to_save": config.modules_to_save and [names.get(name, name) for name in config.modules_to_save],
        "rank_pattern": patterns(config.rank_pattern), "alpha_pattern": patterns(config.alpha_pattern)})


def renamed_tensors(tensors: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """Return an adapter's tensors with other names for the modules in `names`."""
    out = {}
    for key, tensor in tensors.items():
        inner = key.removeprefix(PREFIX)
        module = next((name for name in names if inner.startswith(f"{name}.")), None)
        out[key if module is None else f"{PREFIX}{names[module]}{inner.removeprefix(module)}"] = tensor
    return out


def write_base(path: Path, base: Mapping[str, Tensor], names: Mapping[str, str] | None = None) -> str:
    """Write a base and return its fingerprint, which is also stored in the file's metadata.

    Args:
        path: the file.
        base: the tensors by their names in clbench.
        names: the names in the file by those in clbench, if they differ.

    Raises:
        WriteError: it cannot be written.
    """
    digest = fingerprint(base)
    try:
        metadata = {"sha256": digest} | ({"names": json.dumps(dict(names))} if names else {})
        save_tensors(path, {(names or {}).get(name, name): tensor for name, tensor in base.items()}, metadata)
    except (OSError, SafetensorError) as error:
        raise WriteError(f"cannot write {path}: {error}; free some space or choose another folder") from error
    return digest


def noted_fingerprint(path: Path) -> str:
    """Return the fingerprint in the metadata of a base's file, without reading the tensors.

    Raises:
        StoreError: the file is missing or has no fingerprint.
    """
    try:
        with safe_open(path, "pt") as file:
            return str((file.metadata() or {})["sha256"])
    except (OSError, KeyError, SafetensorError) as error:
        raise StoreError(f"base {path} cannot be read: {error}; restore it from a copy") from None


def read_base(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a base by their names in clbench.

    Raises:
        StoreError: the file is missing or not in safetensors format.
    """
    local_names = {published: name for name, published in published_names(path).items()}
    try:
        return {local_names.get(name, name): tensor for name, tensor in load_file(path).items()}
    except (OSError, SafetensorError) as error:
        raise StoreError(f"base {path} cannot be read: {error}; restore it from a copy") from None


def published_names(path: Path) -> dict[str, str]:
    """Return the names of a base's tensors in its file, by their names in clbench; empty if they are the same.

    Raises:
        StoreError: the file is missing or not in safetensors format.
    """
    try:
        with safe_open(path, "pt") as file:
            return dict(json.loads((file.metadata() or {}).get("names", "{}")))
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        raise StoreError(f"base {path} cannot be read: {error}; restore it from a copy") from None


def check_base(adapter: Adapter, digest: str, where: Path) -> None:
    """Raise a StoreError if an adapter was trained on a base with another fingerprint."""
    if adapter.info.base != digest:
        raise StoreError(f"adapter {where} was trained on another base (sha256 {adapter.info.base[:12]}..., this one "
                         f"is {digest[:12]}...); use the base.safetensors it came with")
