"""The step of a phase: losses, gradients and the optimizer, for one strategy or for a stack of several.

`SingleStep` is the step of one strategy. `clbench.training.stacked_step` has that of a stack.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from clbench.experiment.recipe import Recipe
from clbench.strategy.base import Batch, Strategy, overrides
from clbench.training import precision
from clbench.training.optimizers import (
    OptimizerStates,
    guarded_heads,
    keep_idle_rows,
    make_optimizer,
    rates_of,
    set_gradient,
)
from clbench.training.phase_cache import start_at
from clbench.training.precision import Compiler
from clbench.training.replica import require_losses
from clbench.training.sampling import divide_batches
from clbench.training.stacked_step import StackedStep, edited_gradients

STACKED_BF16 = "with bf16, trials that train together cannot be compiled; --stack 1 trains them one by one. "


class TrainStep(Protocol):
    """The loss, gradients and optimizer of training steps; a new one is created for every phase of every task."""

    optimizer: torch.optim.Optimizer
    trained: dict[str, nn.Parameter]  # parameters that the optimizer updates, by name
    heads: list[nn.Parameter]  # trained heads whose rows without a gradient must stay unchanged
    members: list[Strategy]
    states: OptimizerStates  # of this phase and, if the recipe keeps them, of earlier phases
    loss: Callable[..., Tensor]  # the function that a step differentiates; a compiled one may replace it
    autocast: AbstractContextManager[object]  # context in which the loss runs

    def losses(self, batches: Sequence[Batch]) -> Tensor:
        """Return the losses [S], given a prepared batch for each member."""

    def edit_gradients(self) -> None:
        """Let each member edit its own gradients (`Strategy.edit_gradients`)."""

    def close(self) -> None:
        """Make the members independent strategies again."""


def make_train_step(strategies: Sequence[Strategy], recipe: Recipe, previous: TrainStep | None,
                    compiler: Compiler | None = None) -> TrainStep:
    """Return the training step of one strategy or of a stack of strategies.

    If the recipe keeps optimizer state, it is taken over from `previous`. If there is a compiler, it compiles the loss.

    Raises:
        ValueError: no parameter requires a gradient.
    """
    is_single = len(strategies) == 1
    autocast = precision.autocast_context(recipe, strategies[0].class_mask.device,
                                          strategies[0] if compiler is None else None, stacked=not is_single)
    train_step = SingleStep(strategies[0], recipe, autocast) if is_single else StackedStep(strategies, recipe, autocast)
    if compiler is not None:
        obstacle = STACKED_BF16 if recipe.precision == "bf16" and not is_single else ""
        train_step.loss = compiler(train_step.loss, obstacle)
    if previous is not None and recipe.optimizer_state == "keep":
        parameters = dict(strategies[0].named_parameters())
        for name, (sources, state) in previous.states.items():
            if parameters.get(name) is not sources[0]:
                continue  # the strategy has replaced it
            train_step.states[name] = sources, state
            if name in train_step.trained:
                train_step.optimizer.state[train_step.trained[name]] = state
    return train_step


def keep_members(train_step: TrainStep, chosen: Sequence[int]) -> None:
    """Keep the optimizer states of these members of a stack only; for a single one, remove the stack dimension."""
    index: Any = list(chosen) if len(chosen) > 1 else chosen[0]
    size = len(train_step.members)

    def select_columns(state: dict[str, Any]) -> dict[str, Any]:
        return {key: value[index] if isinstance(value, Tensor) and value.dim() and len(value) == size else value
                for key, value in state.items()}

    train_step.states = {name: ([sources[position] for position in chosen], select_columns(state))
                         for name, (sources, state) in train_step.states.items()}
    train_step.members = [train_step.members[position] for position in chosen]


class SingleStep:
    """The training step of one strategy."""

    def __init__(self, strategy: Strategy, recipe: Recipe, autocast: AbstractContextManager[object]) -> None:
        """Create the optimizer of the parameters that require a gradient; losses run in the context `autocast`."""
        self.autocast = autocast
        self.strategy, self.members = strategy, [strategy]
        self.loss: Callable[..., Tensor] = strategy.loss
        learning = {n: p for n, p in strategy.named_parameters() if p.requires_grad}
        rates = rates_of(strategy, learning, recipe)
        self.trained = {n: learning[n] for n in rates}
        self.optimizer = make_optimizer(recipe, self.trained.values(), rates=list(rates.values()))
        self.states: OptimizerStates = {n: ([p], self.optimizer.state[p]) for n, p in self.trained.items()}
        self.heads = guarded_heads(strategy, self.trained, recipe)
        self.edits = overrides(strategy, "edit_gradients")

    def losses(self, batches: Sequence[Batch]) -> Tensor:
        """Return the loss [1] of the only batch."""
        with self.autocast:
            return self.loss(batches[0])[None]

    def edit_gradients(self) -> None:
        """Let the strategy edit its gradients."""
        if self.edits:
            gradients = {n: p.grad for n, p in self.trained.items() if p.grad is not None}
            for name, gradient in edited_gradients(self.strategy, gradients).items():
                set_gradient(self.trained[name], gradient)

    def close(self) -> None:
        """Do nothing: the strategy was never stacked."""


def take_step(train_step: TrainStep, batches: Sequence[Batch], parts: int = 1) -> Tensor:
    """Take one optimizer step for each replica on its prepared batch; return the losses [S], left on the device.

    The batches are divided into at most `parts` parts, whose gradients are accumulated.
    """
    for parameter in train_step.trained.values():
        parameter.grad = None
    total: Tensor | float = 0.0
    for share, part in divide_batches(batches, parts):
        losses = share * train_step.losses(part) if parts > 1 else train_step.losses(part)
        require_losses(train_step.members, losses)
        losses.sum().backward()  # type: ignore[no-untyped-call]
        total = total + losses.detach()
    with start_at(train_step.members, 0):  # it may call the model on inputs of its own, such as stored samples
        train_step.edit_gradients()
    with keep_idle_rows(train_step.optimizer, train_step.heads, int(len(batches) > 1)):
        train_step.optimizer.step()
    assert isinstance(total, Tensor)
    return total
