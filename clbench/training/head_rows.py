"""Rows of the heads that do not compete in the loss, and steps that leave them as they are (`recipe.head_decay`).

The heads of most reference codes grow: a row for a class exists from the class's task on, or older rows are frozen. A
head that has all rows from the start decays those too that no gradient reaches.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from clbench.experiment.recipe import Recipe
from clbench.strategy.base import Batch, Strategy
from clbench.training.optimizers import matches


def guarded_heads(strategy: Strategy, trained: Mapping[str, nn.Parameter], recipe: Recipe) -> dict[str, nn.Parameter]:
    """Return the trained parameters with a row for each output, if the recipe says that idle rows stay as they are."""
    if recipe.head_decay == "all":
        return {}
    rows = {name: len(p) for name, p in strategy.named_parameters() if p.dim()}
    return {name: parameter for name, parameter in trained.items()
            if rows.get(name) == strategy.world.classes and matches(name, strategy.head_parameters)}


@contextmanager
def keep_idle_rows(heads: Mapping[str, nn.Parameter], strategies: Sequence[Strategy], batches: Sequence[Batch]
                   ) -> Iterator[None]:
    """Inside the block an optimizer takes a step; then the rows that compete in no sample's loss are as before.

    Args:
        heads: parameters [C, ...], of a stack [S, C, ...].
        strategies: of the stack, or the only one.
        batches: one for each strategy.
    """
    before = [parameter.detach().clone() for parameter in heads.values()]
    yield
    if not before:
        return
    learning = torch.stack([strategy.active[batch.tasks].any(0)
                            for strategy, batch in zip(strategies, batches, strict=True)])
    learning = learning if len(strategies) > 1 else learning[0]
    with torch.no_grad():
        for parameter, old in zip(heads.values(), before, strict=True):
            moved = learning.view(*learning.shape, *[1] * (parameter.dim() - learning.dim()))
            parameter.copy_(torch.where(moved, parameter, old))
