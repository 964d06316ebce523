"""Adapters that the first task trains in a pretrained network (`adapt`)."""

from __future__ import annotations

from typing import Any, TypeVar

from clbench_ease import SCALES, WIDTHS
from clbench_ease.bottleneck import AdaptedBlock, transformer_blocks
from clbench_ease.bottleneck import adapt as add_bottlenecks
from clbench_lora import AdapterOptions, Target
from clbench_lora.layers import LoRALayer
from clbench_lora.selection import adapt, has_parts, remarks

from clbench import Network, StreamInfo
from clbench.core.errors import SpecError
from clbench_prototypes import AdaptOptions

PARTS: tuple[Target, ...] = ("q", "v")  # what LoRA's paper adapts in a transformer
Chosen = TypeVar("Chosen", bound=AdaptOptions)
DROPOUT = 0.1  # in bottlenecks, as in AdaptFormer's and APER's code


def takes_bottlenecks(model: Any) -> bool:
    """Return whether a model is a network with transformer blocks that can have bottlenecks; False for None."""
    return isinstance(model, Network) and bool(transformer_blocks(model))


def install(method: str, model: Network, options: AdaptOptions, notes: list[str]
            ) -> dict[str, LoRALayer] | dict[str, AdaptedBlock]:
    """Put adapter layers into a model if the options ask for them, and return these layers by name.

    Low-rank adapters are on q and v of a transformer, and on all layers of other networks. Bottlenecks are parallel to
    the MLPs of a vision transformer, with the width and scale of `ease`.

    Args:
        method: the method's name, for errors.
        model: changed in place.
        options: with `base` settled.
        notes: a list to which notes for the record are added.

    Raises:
        SpecError: the base is not pretrained, or the model has no layer for adapters of that rank.
    """
    if options.adapt == "none":
        return {}
    if options.base != "pretrained":
        raise SpecError(f"{method}: adapt = {options.adapt} adapts a pretrained network, and with base = "
                        f"{options.base} there is none; pass --weights FILE with base = auto or pretrained, or leave "
                        "adapt out")
    if options.adapt == "bottleneck":
        if not transformer_blocks(model):
            raise SpecError(f"{method}: adapt = bottleneck is put parallel to the MLPs of a vision transformer, and "
                            "this model has none; choose adapt = lora or none, or --model vit-b16 or timm:vit_...")
        return add_bottlenecks(model, WIDTHS["bottleneck"], SCALES["bottleneck"], DROPOUT)
    adapter_options = AdapterOptions(rank=options.rank, targets=list(PARTS) if has_parts(model, PARTS) else [])
    notes += remarks(model, adapter_options, method)
    return adapt(model, adapter_options, method)


def settle(options: Chosen, model: Network, stream_info: StreamInfo) -> Chosen:
    """Return options with concrete values instead of `auto`. The options in a plan already have them."""
    complete = options.settled(stream_info.pretrained, (lambda: model) if stream_info.pretrained else None)
    assert isinstance(complete, type(options))
    return complete


def feature_width(model: Network, options: AdaptOptions) -> int:
    """Return the number of features D that a rule gets; `options` must be settled."""
    return model.head.in_features * (2 if options.both else 1)
