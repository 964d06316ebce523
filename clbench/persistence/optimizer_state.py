"""An engine's optimiser state in a checkpoint: each member's part of it as named tensors, and an engine that has it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from clbench.experiment.spec import Recipe
from clbench.strategy.base import Strategy
from clbench.training.steps import Engine, make_engine


def optimizer_state(engine: Engine, member: int, members: int) -> dict[str, Tensor]:
    """Return one member's part of an engine's optimiser state, as `<parameter>/<field>`."""
    return {f"{name}/{field}": value[member] if members > 1 and value.dim() and len(value) == members else value
            for name, parameter in engine.trained.items()
            for field, value in engine.optimizer.state.get(parameter, {}).items() if isinstance(value, Tensor)}


def restore_optimizer_state(strategies: Sequence[Strategy], recipe: Recipe,
                            found: Sequence[Mapping[str, Tensor]]) -> Engine | None:
    """Return an engine whose optimiser has that state, one mapping per member; None where there is none."""
    if not found[0]:
        return None
    names = {key.rpartition("/")[0] for key in found[0]}
    needed = [[(p, p.requires_grad) for p in strategy.parameters()] for strategy in strategies]
    for strategy in strategies:  # what was trained last may be frozen by now
        for name, parameter in strategy.named_parameters():
            parameter.requires_grad_(name in names)
    engine = make_engine(strategies, recipe, None)
    state = engine.optimizer.state_dict()
    for index, name in enumerate(engine.trained):
        fields = [key.rpartition("/")[2] for key in found[0] if key.rpartition("/")[0] == name]
        parts = {field: [one[f"{name}/{field}"] for one in found] for field in fields}
        state["state"][index] = {field: torch.stack(values) if len(values) > 1 and values[0].dim() else values[0]
                                 for field, values in parts.items()}
    engine.optimizer.load_state_dict(state)
    engine.close()
    for member in needed:
        for parameter, flag in member:
            parameter.requires_grad_(flag)
    return engine
