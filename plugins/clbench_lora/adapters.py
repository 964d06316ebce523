"""Inspect, export, merge, combine and remove the adapters that a run has saved.

    from clbench_lora import adapters

    saved = adapters.find("runs/mine", "lora:rank=4/0")
    adapters.merge(saved, 2, Path("merged.safetensors"))

`clbench_lora.reload` rebuilds strategies from them. `clbench_lora.evaluate` tests them and trains further adapters.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from clbench.core.artifacts import BASE, save_tensors, task_folder
from clbench.core.errors import SpecError, StoreError
from clbench.core.files import explain_unreadable, require_new_folder, write_atomically
from clbench.models.torchvision_models import SelfAttention
from clbench_lora.arithmetic import combined, delta, merged
from clbench_lora.card import CARD, card
from clbench_lora.files import write_adapter, write_base
from clbench_lora.peft_format import PREFIX, Adapter
from clbench_lora.run_adapters import TrialAdapters, find, trials_with_adapters

__all__ = ["LayerSummary", "TrialAdapters", "combine", "export", "find", "layer_summaries", "merge", "refuse_foreign",
           "remove", "trials_with_adapters"]


@dataclass(frozen=True)
class LayerSummary:
    """The rank, the size and the effect of an adapter on one layer."""

    name: str
    rank: int
    alpha: float
    parameters: int
    bytes: int
    change: float  # Frobenius norm of the change of W, divided by the norm of W


def layer_summaries(adapter: Adapter, base: dict[str, Tensor]) -> list[LayerSummary]:
    """Describe each layer of an adapter."""
    summaries = []
    for layer in adapter.layers:
        tensors = [t for name, t in adapter.tensors.items() if name.startswith(f"{PREFIX}{layer}.")]
        weight = base[f"{layer}.weight"]
        change = delta(adapter, layer, weight).norm() / weight.double().norm()
        summaries.append(LayerSummary(layer, adapter.rank(layer), adapter.alpha(layer), sum(t.numel() for t in tensors),
                                      sum(t.nbytes for t in tensors), float(change)))
    return summaries


def export(source: TrialAdapters, task: int, to: Path) -> None:
    """Write a task's adapter in PEFT's format, its base and a model card to a new or empty folder.

    Raises:
        StoreError: the folder is not empty, or cannot be written.
        SpecError: PEFT would compute a layer differently (`refuse_foreign`).
    """
    _hand_on(source, source.adapter(task), to)


def combine(source: TrialAdapters, tasks: Sequence[int], weights: Sequence[float], to: Path) -> Adapter:
    """Export the weighted sum of tasks' adapters (`arithmetic.combined`), and return it.

    Raises:
        SpecError: these adapters cannot be combined, are of several benchmarks, or a task is named twice.
        StoreError: see `export`.
    """
    if len(set(tasks)) != len(tasks):
        raise SpecError(f"tasks {', '.join(str(task + 1) for task in tasks)}: one is named twice; add its weights up")
    if not all(map(math.isfinite, weights)):
        raise SpecError(f"weights {', '.join(map(str, weights))}: each must be a finite number")
    benchmarks = dict.fromkeys(str(source.origin(task).benchmark) for task in tasks)
    if len(benchmarks) > 1:
        raise SpecError(f"the adapters are of several benchmarks ({', '.join(benchmarks)}), in which the same outputs "
                        "are different classes; combine tasks of one")
    mixture = combined({task: source.adapter(task) for task in tasks}, weights)
    _hand_on(source, mixture, to)
    return mixture


def merge(source: TrialAdapters, task: int, to: Path) -> None:
    """Write the weights of a plain model that computes the same function as W with the task's adapter and head.

    Raises:
        SpecError: the adapter cannot be merged (`arithmetic.merged`), or the name does not end in .safetensors.
        StoreError: the file exists, or cannot be written.
    """
    source.refuse_language_model(
        "merge", "peft.PeftModel.from_pretrained(base, adapter).merge_and_unload() merges it" if source.is_shared else
        "clbench export --task N merges it and writes a model for transformers")
    if to.suffix != ".safetensors":
        raise SpecError(f"{to} should end in .safetensors, which is how weights are written")
    with explain_unreadable("choose another place"):
        if to.exists():
            raise StoreError(f"{to} exists; choose another file")
    adapter = source.adapter(task)
    try:
        weights, names = merged(adapter, source.base()), source.names
        save_tensors(to, {names.get(name, name): tensor for name, tensor in weights.items()}, {"format": "pt"})
    except OSError as error:
        raise StoreError(f"cannot write {to}: {error.strerror or error}; choose another place") from None


def remove(source: TrialAdapters, task: int) -> None:
    """Delete a task's adapter. Other adapters do not depend on it, so their outputs stay the same, bit for bit.

    Raises:
        StoreError: the task has no adapter, or it cannot be deleted.
    """
    source.check(task)
    folder = task_folder(source.folder, task)
    removed_folder = folder.with_name(f".{folder.name}.removed")
    try:
        if removed_folder.exists():  # left by a crash; `replace` needs a free name
            shutil.rmtree(removed_folder)
        folder.replace(removed_folder)  # atomic: after a crash, the rest of the folder is not found as an adapter
        shutil.rmtree(removed_folder)
    except OSError as error:
        raise StoreError(f"cannot remove {folder}: {error.strerror or error}") from None


def _hand_on(source: TrialAdapters, adapter: Adapter, to: Path) -> None:
    """Write an adapter, its base and its model card to an empty folder, if PEFT can compute the adapter.

    The base of a language model is not written if its own folder or repository has it.
    """
    refuse_foreign(source, adapter)
    require_new_folder(to, "choose another folder")
    if source.has_base or not adapter.config.base_model_name_or_path:  # else the named folder or repository has W
        write_base(to / BASE, source.base(), source.names)
    write_adapter(to, adapter)
    try:
        write_atomically(to / CARD, card(source, adapter))
    except OSError as error:
        raise StoreError(f"cannot write {to / CARD}: {error.strerror or error}; choose another place") from None


def refuse_foreign(source: TrialAdapters, adapter: Adapter) -> None:
    """Raise a SpecError if PEFT would compute a layer of an adapter differently.

    PEFT's Conv2d adapters support neither dilation nor padding modes other than zeros, and would compute wrong outputs.
    torchvision's own model has no layer for q, k and v, and reads the weight of `out_proj` without calling it.
    """
    model = source.architecture()
    for name in adapter.layers:
        layer = model.get_submodule(name)
        if isinstance(layer, nn.Conv2d) and (layer.padding_mode != "zeros" or {*layer.dilation} != {1}):
            raise SpecError(f"{name} is a convolution with dilation {layer.dilation} and padding "
                            f"{layer.padding_mode!r}, which PEFT's adapters do not have; use merge instead")
        if isinstance(model.get_submodule(name.rpartition(".")[0]), SelfAttention):
            raise SpecError(f"{name} is part of an attention that torchvision computes by nn.MultiheadAttention, in "
                            "which PEFT's adapters have no effect; use merge instead")
