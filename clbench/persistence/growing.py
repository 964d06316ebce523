"""A strategy that has learned some tasks, made larger, so that it can learn more of them with more outputs.

Two strategies are built as the trial's was and led through the learned tasks: one for as many tasks and outputs as it
had, one for as many as there will be. Where their tensors differ in shape, the state grows in the same dimensions: what
was learned comes first, behind it stands what the larger one has untrained. What cannot be grown so is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from clbench.core.errors import SpecError, StoreError
from clbench.persistence import checkpoint
from clbench.persistence.checkpoint import GENERATOR, STRATEGY, CheckpointHeader, decode, described, put_back
from clbench.strategy.base import Strategy


def read_state(path: Path) -> tuple[CheckpointHeader, dict[str, Tensor], Tensor]:
    """Return the header, the strategy's tensors and its generator's state of what `--keep state` has kept.

    Raises:
        StoreError: it is not there, not whole, or says why there is none.
    """
    again = "run the experiment again with --keep state"
    try:
        header = checkpoint.read_header(path)
        if header is None:
            raise StoreError(f"the state to continue from was not saved ({path} does not exist): {again}")
        if header.problem:
            raise StoreError(f"no state was saved from which training could continue: {header.problem}")
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - a file is no mapping
        state = {n.removeprefix(STRATEGY): t for n, t in tensors.items() if n.startswith(STRATEGY)}
        return header, state, tensors[GENERATOR]
    except (checkpoint.Unresumable, OSError, SafetensorError, KeyError) as error:
        raise StoreError(f"{path} cannot be read ({error}); {again}") from None


def grow(header: CheckpointHeader, state: Mapping[str, Tensor], like: Strategy, larger: Strategy, label: str) -> None:
    """Give `larger` a learned state of the sizes of `like`; both have been led through the learned tasks.

    Raises:
        SpecError: something in the state has a size of which nobody can say how it grows.
    """
    before, after = like.state_dict(), larger.state_dict()
    grown = {name: _grown(name, tensor, before.get(name), after.get(name), like, larger, label)
             for name, tensor in state.items()}
    try:
        put_back(header.model_copy(update={"attributes": _attributes(header, like, larger, label)}), larger, grown)
    except (checkpoint.Unresumable, RuntimeError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise SpecError(f"{label} cannot continue training: its state does not fit "
                        f"({' '.join(str(error).split())[:160]})"
                        ) from error


def _grown(name: str, tensor: Tensor, before: Tensor | None, after: Tensor | None, like: Strategy, larger: Strategy,
           label: str) -> Tensor:
    """Return a tensor of the state in the size that it has with more outputs and tasks."""
    problem = SpecError(f"{label} cannot continue training with more outputs: it stores {name} {list(tensor.shape)}, "
                        "of which it is not known how it grows")
    if before is None or after is None:
        if like.world.classes != larger.world.classes and like.world.classes in tensor.shape:
            raise problem
        return tensor
    if before.dim() != after.dim() or tensor.dim() != before.dim():
        if before.shape == after.shape:  # a memory that was empty, say
            return tensor
        raise problem
    shape = list(tensor.shape)
    for axis, (old, new) in enumerate(zip(before.shape, after.shape, strict=True)):
        if old != new:
            if tensor.shape[axis] != old or new < old:
                raise problem
            shape[axis] = new
    if shape == list(tensor.shape):
        return tensor
    whole = after.detach().clone() if shape == list(after.shape) else torch.zeros(shape, dtype=tensor.dtype)
    whole = whole.to("cpu", tensor.dtype)
    whole[tuple(slice(size) for size in tensor.shape)] = tensor
    return whole


def _attributes(header: CheckpointHeader, like: Strategy, larger: Strategy, label: str) -> dict[str, dict[str, Any]]:
    """Return the learned attributes, but numbers of tasks and outputs as they are in the larger strategy.

    Raises:
        SpecError: another attribute depends on these numbers: what was learned by the old one cannot be used.
    """
    before, after = (described(strategy)["attributes"] for strategy in (like, larger))
    sizes = {(like.world.classes, larger.world.classes), (like.world.tasks, larger.world.tasks)}
    out = {where: dict(values) for where, values in header.attributes.items()}
    for where, values in before.items():
        for name, old in values.items():
            new = after.get(where, {}).get(name, old)
            if old == new:
                continue
            if (decode(old), decode(new)) not in sizes or out.get(where, {}).get(name) != old:
                raise SpecError(f"{label} cannot continue training: its {f'{where}.{name}'.lstrip('.')} is "
                                f"{decode(old)} for {like.world.tasks} tasks and {decode(new)} for "
                                f"{larger.world.tasks}")
            out[where][name] = new
    return out
