"""A strategy that has learned some tasks, made larger, so that it can learn more of them with more outputs.

Two strategies are built as the trial's was and led through the learned tasks: one for as many tasks and outputs as it
had, one for as many as there will be. Where their tensors differ in shape, the state grows in the same dimensions: what
was learned comes first, behind it stands what the larger one has untrained. What cannot be grown so is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from clbench.persistence.snapshot import GENERATOR, STRATEGY, TrainingHeader, section
from clbench.persistence.strategy_state import SnapshotError, decode, plain_attributes, restore
from clbench.strategy.base import Strategy


def grow(header: TrainingHeader, tensors: Mapping[str, Tensor], like: Strategy, larger: Strategy) -> None:
    """Give `larger` a training snapshot of a strategy of the sizes of `like`, both with the structure for it.

    Raises:
        SnapshotError: it does not fit, or something in it has a size of which it is not known how it grows.
    """
    before, after = like.state_dict(), larger.state_dict()
    changes = like.world.classes != larger.world.classes
    grown = {}
    for name, tensor in section(tensors, STRATEGY).items():
        if name in before and name in after:
            whole = _grown(tensor, before[name], after[name])
        else:
            whole = None if changes and like.world.classes in tensor.shape else tensor
        if whole is None:
            raise SnapshotError(f"it stores {name} {list(tensor.shape)}, of which it is not known how it grows with "
                                "more outputs")
        grown[name] = whole
    header = header.model_copy(update={"attributes": _attributes(header, like, larger)})
    restore(header, grown, larger, tensors.get(GENERATOR))


def _grown(tensor: Tensor, before: Tensor, after: Tensor) -> Tensor | None:
    """Return a tensor in the size that it has with more outputs and tasks; None where that is not known.

    Args:
        tensor: what was learned.
        before: the tensor in an untrained strategy of the old size.
        after: the tensor in an untrained strategy of the new size.
    """
    if before.shape == after.shape:  # a memory, say
        return tensor
    if not before.dim() == after.dim() == tensor.dim():
        return None
    shape = list(tensor.shape)
    for axis, (old, new) in enumerate(zip(before.shape, after.shape, strict=True)):
        if old != new:
            if tensor.shape[axis] != old or new < old:
                return None
            shape[axis] = new
    whole = after.detach().clone() if shape == list(after.shape) else torch.zeros(shape)
    whole = whole.to("cpu", tensor.dtype)
    whole[tuple(slice(size) for size in tensor.shape)] = tensor
    return whole


def _attributes(header: TrainingHeader, like: Strategy, larger: Strategy) -> dict[str, dict[str, Any]]:
    """Return the learned attributes, but numbers of tasks and outputs as they are in the larger strategy.

    Raises:
        SnapshotError: another attribute depends on these numbers: what was learned by the old one cannot be used.
    """
    before, after = plain_attributes(like), plain_attributes(larger)
    sizes = {(like.world.classes, larger.world.classes), (like.world.tasks, larger.world.tasks)}
    attributes = {where: dict(values) for where, values in header.attributes.items()}
    for where, values in before.items():
        for name, old in values.items():
            new = after.get(where, {}).get(name, old)
            if old == new:
                continue
            if (decode(old), decode(new)) not in sizes or attributes.get(where, {}).get(name) != old:
                raise SnapshotError(f"its {f'{where}.{name}'.lstrip('.')} is {decode(old)} for {like.world.tasks} "
                                    f"tasks and {decode(new)} for {larger.world.tasks}")
            attributes[where][name] = new
    return attributes
