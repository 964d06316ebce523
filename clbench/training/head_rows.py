"""Rows of the heads that no gradient reaches, and steps that leave them as they are (`recipe.head_decay`).

The heads of most reference codes grow: a row for a class exists from the class's task on, or older rows are frozen. A
head that has all rows from the start decays those too that no gradient reaches.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from clbench.experiment.recipe import Recipe
from clbench.strategy.base import Strategy
from clbench.training.optimizers import matches


def guarded_heads(strategy: Strategy, trained: Mapping[str, nn.Parameter], recipe: Recipe) -> list[nn.Parameter]:
    """Return the trained parameters with a row for each output, if the recipe says that idle rows stay as they are."""
    if recipe.head_decay == "all":
        return []
    rows = {name: len(p) for name, p in strategy.named_parameters() if p.dim()}
    return [parameter for name, parameter in trained.items()
            if rows.get(name) == strategy.world.classes and matches(name, strategy.head_parameters)]


@contextmanager
def keep_idle_rows(heads: Sequence[nn.Parameter], row_dim: int) -> Iterator[None]:
    """Inside the block an optimizer takes a step; then the rows whose gradient is 0 are as before.

    Args:
        heads: parameters with gradients, [C, ...], or of a stack [S, C, ...].
        row_dim: dimension of the rows, 0 or of a stack 1.
    """
    before = [(parameter, learning_rows(parameter, row_dim), parameter.detach().clone()) for parameter in heads]
    yield
    with torch.no_grad():
        for parameter, learning, old in before:
            parameter.copy_(torch.where(learning, parameter, old))


def learning_rows(parameter: nn.Parameter, row_dim: int) -> Tensor:
    """Return which rows a gradient reaches, as a mask that broadcasts over the parameter."""
    if parameter.grad is None:
        return torch.zeros_like(parameter, dtype=torch.bool)
    reached = parameter.grad != 0
    columns = tuple(range(row_dim + 1, parameter.dim()))
    return reached.any(columns, keepdim=True) if columns else reached
