"""Adapters that the first task trains in a pretrained network (`adapt = lora`)."""

from __future__ import annotations

from clbench_lora import AdapterOptions, Target
from clbench_lora.layers import LoRALayer
from clbench_lora.selection import adapt, has_parts, remarks

from clbench import Network
from clbench.core.errors import SpecError
from clbench_prototypes import AdaptOptions

PARTS: tuple[Target, ...] = ("q", "v")  # what LoRA's paper adapts in a transformer


def install(method: str, model: Network, options: AdaptOptions, notes: list[str]) -> dict[str, LoRALayer]:
    """Put layers for adapters into a model, where options ask for them, and return these by name.

    They are on q and v of a transformer, and on all layers of another network.

    Args:
        method: whose options they are, for errors.
        model: is changed.
        options: with `base` settled.
        notes: gets what a record should say.

    Raises:
        SpecError: the base is not a pretrained one, or the model has no layer for adapters of that rank.
    """
    if options.adapt == "none":
        return {}
    if options.base != "pretrained":
        raise SpecError(f"{method}: adapt = lora adapts a pretrained network, and with base = {options.base} there is "
                        "none; pass --weights FILE with base = auto or pretrained, or leave adapt out")
    wanted = AdapterOptions(rank=options.rank, targets=list(PARTS) if has_parts(model, PARTS) else [])
    notes += remarks(model, wanted, method)
    return adapt(model, wanted, method)


def feature_width(model: Network, options: AdaptOptions) -> int:
    """Return the number of features D that a rule is given."""
    return model.head.in_features * (2 if options.both else 1)
