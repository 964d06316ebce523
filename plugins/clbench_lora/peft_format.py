"""Convert one task's adapter to PEFT's form: a configuration, and tensors by PEFT's names."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, model_serializer
from torch import Tensor, nn

from clbench import Network
from clbench.experiment.trial import Resolved
from clbench.models.weights import hash_tensors
from clbench.strategy.per_task import TaskHead
from clbench_lora import AdapterOptions
from clbench_lora.layers import LoRALayer
from clbench_lora.rows import Rows

PREFIX = "base_model.model."  # PEFT's prefix of the names of the model's modules
HEAD = "head"


class Origin(BaseModel):
    """Where an adapter's task comes from, if not from the trial's own benchmark."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    benchmark: Resolved
    task: int  # within that benchmark
    fingerprint: str  # of its stream


class AdapterInfo(BaseModel):
    """Facts about an adapter that PEFT's configuration does not contain."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    format: Literal[1] = 1
    trial: str  # key
    task: int | None  # None for a mixture
    classes: tuple[int, ...]  # outputs of its head, in the order of the head's own units
    base: str  # sha256 of W (`fingerprint`)
    origin: Origin | None = None
    mixture: dict[int, float] = {}  # task -> weight
    names: dict[str, str] = {}  # of adapted modules and the head: in clbench -> in the files, if they differ
    class_names: tuple[str, ...] = ()  # of `classes`, in the same order; empty, and not written, if they have none

    @model_serializer(mode="wrap")
    def _without_absent_names(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Omit an empty list of class names, so that files without names are the same as before there were names."""
        facts: dict[str, Any] = handler(self)
        if not self.class_names:
            facts.pop("class_names", None)
        return facts


class PeftConfig(BaseModel):
    """The part of PEFT's LoraConfig that clbench's adapters use; other keys have PEFT's defaults."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    peft_type: Literal["LORA"] = "LORA"
    task_type: Literal["CAUSAL_LM"] | None = None
    base_model_name_or_path: str | None = None
    revision: str | None = None  # the commit of the base, if it is a repository
    inference_mode: bool = True
    r: int
    lora_alpha: float
    rank_pattern: dict[str, int] = {}
    alpha_pattern: dict[str, float] = {}
    target_modules: list[str]
    exclude_modules: list[str] | None = None  # always by their names in the files (`ambiguous_modules`)
    modules_to_save: list[str] | None = [HEAD]
    lora_dropout: float = 0.0
    use_rslora: bool = False
    use_dora: bool = False
    lora_bias: bool = False
    bias: Literal["none"] = "none"
    init_lora_weights: bool = True
    fan_in_fan_out: Literal[False] = False


@dataclass(frozen=True)
class Adapter:
    """One adapter: its configuration, its tensors by PEFT's names, and further facts about it."""

    config: PeftConfig
    tensors: dict[str, Tensor]
    info: AdapterInfo
    prototype: Tensor | None = None

    @property
    def number(self) -> str:
        """Return the task's number, counted from 1, or `a weighted sum` for a weighted sum of adapters."""
        return "a weighted sum" if self.info.task is None else str(self.info.task + 1)

    @property
    def layers(self) -> list[str]:
        """Return the names of the adapted layers."""
        return self.config.target_modules

    def rank(self, layer: str) -> int:
        """Return the stored rank of a layer's adapter; for a pissa adapter twice that of its options."""
        return self.config.rank_pattern.get(layer, self.config.r)

    def alpha(self, layer: str) -> float:
        """Return the stored alpha of a layer."""
        return self.config.alpha_pattern.get(layer, self.config.lora_alpha)

    def scaling(self, layer: str) -> float:
        """Return the factor s of a layer's BA."""
        rank = self.rank(layer)
        return self.alpha(layer) / (math.sqrt(rank) if self.config.use_rslora else rank)

    def part(self, module: str, name: str) -> Tensor | None:
        """Return a tensor of a module, such as `lora_A.weight`; None if there is none."""
        return self.tensors.get(f"{PREFIX}{module}.{name}")

    def factors(self, layer: str) -> tuple[Tensor, Tensor]:
        """Return a layer's A and B."""
        return self.tensors[f"{PREFIX}{layer}.lora_A.weight"], self.tensors[f"{PREFIX}{layer}.lora_B.weight"]

    @property
    def has_head(self) -> bool:
        """Return whether the adapter has a head. Adapters of language models have none; the model keeps its own."""
        return self.config.modules_to_save is not None

    @property
    def head(self) -> tuple[Tensor, Tensor]:
        """Return the head's weight [C, D] and its bias [C], which is -inf outside the adapter's own classes."""
        return self.tensors[f"{PREFIX}{HEAD}.weight"], self.tensors[f"{PREFIX}{HEAD}.bias"]


def configure(ranks: Mapping[str, int], alphas: Mapping[str, float], *, rslora: bool = False, dora: bool = False,
              bias: bool = False, dropout: float = 0.0) -> PeftConfig:
    """Return PEFT's configuration for layers with these ranks and alphas; values other than the first get patterns.

    The keys of patterns are plain names: releases of PEFT differ in how they read regular expressions there, but all
    take a plain name for itself.
    """
    first = next(iter(ranks))
    return PeftConfig(
        r=ranks[first], lora_alpha=alphas[first], target_modules=list(ranks), lora_dropout=dropout, use_rslora=rslora,
        use_dora=dora, lora_bias=bias, rank_pattern={n: r for n, r in ranks.items() if r != ranks[first]},
        alpha_pattern={n: a for n, a in alphas.items() if a != alphas[first]})


def ambiguous_modules(names: Iterable[str], targets: Collection[str]) -> list[str] | None:
    """Return modules that PEFT would adapt by mistake; None if there are none.

    A target is also the end of other names for PEFT: with the target conv1, it adapts layer1.0.conv1.

    Args:
        names: the names of all modules.
        targets: the names of the adapted modules.
    """
    return [name for name in names if name not in targets and any(name.endswith(f".{t}") for t in targets)] or None


def of_language_model(config: PeftConfig, base: str | None, commit: str | None) -> PeftConfig:
    """Return a configuration for a language model, which keeps its own head.

    `base` is its folder or repository, and `commit` that of a repository.
    """
    return config.model_copy(update={"task_type": "CAUSAL_LM", "modules_to_save": None,
                                     "base_model_name_or_path": base or None, "revision": commit})


@torch.no_grad()
def adapter_of(layers: Mapping[str, LoRALayer], position: int, head: TaskHead | None, outputs: int,
               options: AdapterOptions, info: AdapterInfo, prototype: Tensor | None = None, base: str = "",
               commit: str | None = None) -> Adapter:
    """Return one adapter of a strategy's layers in PEFT's form.

    A pissa adapter is a difference from its start, h = Wx + s (BA - B0 A0) x. It becomes an exactly equal ordinary
    adapter of rank 2r: A is stacked over A0, and B is put next to -B0. The adapters of n parts of one layer
    (`FusedLoRA`) become one exactly equal adapter of rank n r: the A's are stacked, and the B's are blocks of a matrix
    that is 0 elsewhere (`joined`).

    Args:
        layers: the adapted layers, or adapted parts of layers, by name.
        position: the index of the adapter in them.
        head: the task's head, for the outputs `info.classes`; None for a language model.
        outputs: number of all outputs, C.
        options: the options of the layers.
        info: facts to store with the adapter.
        prototype: class means [K, D] to store with the adapter.
        base: the folder or repository of W, if it is published.
        commit: the commit of that repository.
    """
    tensors, ranks, alphas = {}, {}, {}
    rslora = options.scaling == "rslora"
    for name, members in by_module(layers).items():
        parts = stored(members, position)
        tensors.update({f"{PREFIX}{name}.{part}": tensor for part, tensor in parts.items()})
        rank = ranks[name] = len(parts["lora_A.weight"])
        alphas[name] = float(f"{members[0].scaling * (math.sqrt(rank) if rslora else rank):.12g}")
    config = configure(ranks, alphas, rslora=rslora, dora=options.dora, bias=options.bias, dropout=options.dropout)
    if head is None:
        config = of_language_model(config, base, commit)
    else:
        weight = torch.zeros(outputs, head.in_features, dtype=head.weight.dtype, device=head.weight.device)
        bias = torch.full_like(weight[:, 0], -math.inf)
        weight[list(info.classes)] = head.weight
        bias[list(info.classes)] = head.bias
        tensors |= {f"{PREFIX}{HEAD}.weight": weight, f"{PREFIX}{HEAD}.bias": bias}
    return Adapter(config, {n: t.detach() for n, t in tensors.items()}, info, prototype)


def by_module(layers: Mapping[str, LoRALayer]) -> dict[str, list[LoRALayer]]:
    """Return adapted layers by their names in the model without adapters; parts of one layer are in one list."""
    modules: dict[str, list[LoRALayer]] = {}
    for name, layer in layers.items():
        module = name.rpartition(".")[0] if isinstance(layer.base_layer, Rows) else name
        modules.setdefault(module, []).append(layer)
    return modules


def stored(members: Sequence[LoRALayer], position: int) -> dict[str, Tensor]:
    """Return the tensors of one adapter of a layer as PEFT stores them.

    Args:
        members: the layer, or its adapted parts.
        position: the index of the adapter in them.
    """
    tensors = []
    for layer in members:
        parts: dict[str, Tensor] = dict(layer.parameters_of(position))
        if layer.init == "pissa":
            parts["lora_A.weight"] = torch.cat([parts["lora_A.weight"], layer.pissa_A])
            parts["lora_B.weight"] = torch.cat([parts["lora_B.weight"], -layer.pissa_B], 1)
        if layer.lora_magnitude_vector is not None and isinstance(layer.base_layer, nn.Conv2d):
            parts["lora_magnitude_vector"] = parts["lora_magnitude_vector"].view(1, -1, 1, 1)
        tensors.append(parts)
    rows = [layer.base_layer for layer in members if isinstance(layer.base_layer, Rows)]
    return joined(rows, tensors) if rows else tensors[0]


def joined(rows: Sequence[Rows], parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the tensors of one adapter on a whole layer that equals separate adapters on some of its rows.

    For all other rows, B and its bias are 0, and dora's length is the length of W's own row.

    Args:
        rows: the adapted parts of the layer.
        parts: the tensors of each part's adapter, all of the same rank and scale.
    """
    weight = rows[0].layer.weight
    a = torch.cat([part["lora_A.weight"] for part in parts])
    joined_tensors = {"lora_A.weight": a, "lora_B.weight": weight.new_zeros(len(weight), len(a))}
    if "lora_B.bias" in parts[0]:
        joined_tensors["lora_B.bias"] = weight.new_zeros(len(weight))
    if "lora_magnitude_vector" in parts[0]:
        joined_tensors["lora_magnitude_vector"] = weight.norm(dim=1)
    blocks = joined_tensors["lora_B.weight"].chunk(len(rows), 1)
    for part, tensors, block in zip(rows, parts, blocks, strict=True):
        block[part.rows] = tensors["lora_B.weight"]
        for name in tensors.keys() - {"lora_A.weight", "lora_B.weight"}:
            joined_tensors[name][part.rows] = tensors[name]
    return joined_tensors


def separated(rows: Sequence[Rows], whole: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """Return the tensors of each part's adapter from the tensors `whole`; the inverse of `joined`."""
    return [{"lora_A.weight": a, "lora_B.weight": block[part.rows],
             **{name: whole[name][part.rows] for name in whole.keys() - {"lora_A.weight", "lora_B.weight"}}}
            for part, a, block in zip(rows, whole["lora_A.weight"].chunk(len(rows)),
                                      whole["lora_B.weight"].chunk(len(rows), 1), strict=True)]


def base_tensors(model: Network, layers: Mapping[str, LoRALayer]) -> dict[str, Tensor]:
    """Return the tensors of W and of the original head, by their names in the model without adapters."""
    tensors, modules = {}, by_module(layers)
    for key, tensor in model.state_dict().items():
        owner = next((name for name in modules if key.startswith(f"{name}.")), None)
        if owner is None:
            tensors[key] = tensor
        elif key.startswith(f"{owner}.base_layer."):
            tensors[f"{owner}.{key.removeprefix(f'{owner}.base_layer.')}"] = tensor
    return tensors


def fingerprint(base: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of a base in hexadecimal: of names, dtypes, shapes and bytes of its tensors, without the head.

    Adapters have their own head, so the head of the base does not matter.
    """
    return hash_tensors({name: tensor for name, tensor in base.items() if not name.startswith(f"{HEAD}.")})
