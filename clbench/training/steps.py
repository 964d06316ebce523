"""Losses and gradients of a training step, for one strategy or for a stack of several.

The members of a stack are strategies that differ in seed or in `Scalar` options. The stack owns a tensor [S, ...] for
every parameter and buffer, and the tensors of its members become views of it. So the members are always up to date:
`prepare_batch`, `edit_gradients` and all code between tasks run on each member as usual. Only `loss` runs once for all
members, under `torch.func.vmap`. Parameters that are frozen and equal in all members, such as a pretrained backbone,
are stored once until they are written to. vmap runs them on the samples of all members in one large matrix product.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from clbench.core import seeds
from clbench.core.options import Options
from clbench.core.torch_private import vmap_refusal, write_count
from clbench.experiment.recipe import Recipe
from clbench.strategy.base import Batch, Strategy, overrides
from clbench.training import precision
from clbench.training.optimizers import guarded_heads, make_optimizer, rates_of
from clbench.training.precision import Compiler, FoldedAttention
from clbench.training.replica import share_equal, varying_options


class Unstackable(ValueError):
    """Raised if trials cannot train as a stack; the message has the reason, and each trial then trains alone."""


class TrainStep(Protocol):
    """The loss, gradients and optimizer of training steps; a new one is created for every phase of every task."""

    optimizer: torch.optim.Optimizer
    trained: dict[str, nn.Parameter]  # parameters that the optimizer updates, by name
    heads: list[nn.Parameter]  # trained heads whose rows without a gradient must stay unchanged
    members: list[Strategy]
    # The first member's own parameters by name. Optimizer state is taken over only if they are the same objects.
    sources: dict[str, nn.Parameter]
    loss: Callable[..., Tensor]  # the function that a step differentiates; a compiled one may replace it
    forward: AbstractContextManager[object]  # context in which the loss runs

    def losses(self, batches: Sequence[Batch]) -> Tensor:
        """Return the losses [S], given a prepared batch for each member."""

    def edit_gradients(self) -> None:
        """Let each member edit its own gradients (`Strategy.edit_gradients`)."""

    def close(self) -> None:
        """Make the members independent strategies again."""

    def keep_members(self, chosen: Sequence[int]) -> None:
        """Keep the optimizer state of these members only."""


def make_train_step(strategies: Sequence[Strategy], recipe: Recipe, previous: TrainStep | None,
                    compiler: Compiler | None = None) -> TrainStep:
    """Return the training step of one strategy or of a stack of strategies.

    If the recipe keeps optimizer state, it is taken over from `previous`. If there is a compiler, it compiles the loss.

    Raises:
        ValueError: no parameter requires a gradient.
    """
    is_single = len(strategies) == 1
    forward = precision.forward(recipe, strategies[0].class_mask.device, strategies[0] if compiler is None else None,
                                stacked=not is_single)
    train_step = SingleStep(strategies[0], recipe, forward) if is_single else StackedStep(strategies, recipe, forward)
    if compiler is not None:
        train_step.loss = compiler(train_step.loss)
    if previous is not None and recipe.optimizer_state == "keep":
        for name, parameter in train_step.trained.items():
            old_parameter = previous.trained.get(name)
            if old_parameter is None or old_parameter not in previous.optimizer.state:
                continue
            if previous.sources[name] is train_step.sources[name]:
                train_step.optimizer.state[parameter] = previous.optimizer.state[old_parameter]
    return train_step


class SingleStep:
    """The training step of one strategy."""

    def __init__(self, strategy: Strategy, recipe: Recipe, forward: AbstractContextManager[object]) -> None:
        """Create the optimizer of the parameters that require a gradient; losses run in the context `forward`."""
        self.forward = forward
        self.strategy, self.members = strategy, [strategy]
        self.loss: Callable[..., Tensor] = strategy.loss
        learning = {n: p for n, p in strategy.named_parameters() if p.requires_grad}
        rates = rates_of(strategy, learning, recipe)
        self.trained = {n: learning[n] for n in rates}
        self.sources = self.trained
        self.optimizer = make_optimizer(recipe, self.trained.values(), rates=list(rates.values()))
        self.heads = guarded_heads(strategy, self.trained, recipe)
        self.edits = overrides(strategy, "edit_gradients")

    def losses(self, batches: Sequence[Batch]) -> Tensor:
        """Return the loss [1] of the only batch."""
        with self.forward:
            return self.loss(batches[0])[None]

    def edit_gradients(self) -> None:
        """Let the strategy edit its gradients."""
        if self.edits:
            gradients = {n: p.grad for n, p in self.trained.items() if p.grad is not None}
            for name, gradient in self.strategy.edit_gradients(gradients).items():
                self.trained[name].grad = gradient

    def close(self) -> None:
        """Do nothing: the strategy was never stacked."""

    def keep_members(self, chosen: Sequence[int]) -> None:
        """Keep the only member."""


class OptionsView:
    """Options with some values replaced; torch.compile can read this plain object, but not a new options model."""

    def __init__(self, options: Options, values: Mapping[str, Tensor]) -> None:
        self._options, self._values = options, values

    def __getattr__(self, name: str) -> Any:
        """Return an option."""
        return self._values[name] if name in self._values else getattr(self._options, name)


# No setting of vmap's `randomness` gives a member the random numbers that it would get alone.
DRAWS = "its loss draws random numbers (dropout, say), which in a stack would depend on the other trials"


class Loss(nn.Module):
    """Wraps a strategy so that `forward` returns its loss, because `functional_call` calls `forward`."""

    def __init__(self, strategy: Strategy) -> None:
        super().__init__()
        self.strategy = strategy

    def forward(self, batch: Batch, x: Tensor, y: Tensor, tasks: Tensor, frozen: Mapping[str, Tensor] | None = None,
                scalars: Mapping[str, Tensor] | None = None, at: Tensor | None = None) -> Tensor:
        """Return the strategy's loss; `scalars` has values that replace those of its `Scalar` options."""
        batch = replace(batch, x=x, y=y, tasks=tasks, frozen=frozen, at=at)
        if not scalars:
            return self.strategy.loss(batch)
        options: Any = self.strategy.options
        self.strategy.options = OptionsView(options, scalars)  # type: ignore[assignment]
        try:
            return self.strategy.loss(batch)
        finally:
            self.strategy.options = options


def arguments_of(batch: Batch) -> tuple[object, ...]:
    """Return the arguments of `Loss.forward` for a prepared batch."""
    return batch, batch.x, batch.y, batch.tasks, batch.frozen, None, batch.at


class StackedStep:
    """The training step of a stack of strategies."""

    def __init__(self, strategies: Sequence[Strategy], recipe: Recipe, forward: AbstractContextManager[object]) -> None:
        """Stack parameters and buffers, and make the members' tensors views of the stack."""
        self.forward = forward
        self.members = list(strategies)
        self.call = Loss(self.members[0])
        self.loss: Callable[..., Tensor] = self.vectorized
        self.scalars = varying_options(self.members)
        shared = share_equal(self.members, frozen=True)
        parameters = [dict(member.named_parameters()) for member in self.members]
        buffers = [dict(member.named_buffers()) for member in self.members]
        stacked = {name: torch.stack([of_member[name].detach() for of_member in parameters])
                   for name in parameters[0] if name not in shared}
        rates = rates_of(self.members[0], [n for n in stacked if parameters[0][n].requires_grad],
                         recipe)
        self.trained = {n: nn.Parameter(stacked[n]) for n in rates}
        self.frozen = {n: t for n, t in stacked.items() if n not in self.trained}
        self.shared = {n: [(of_member[n], write_count(of_member[n])) for of_member in parameters] for n in shared}
        self.buffers = {n: torch.stack([of_member[n].detach() for of_member in buffers]) for n in buffers[0]}
        self.folding: FoldedAttention | None = FoldedAttention()
        self._tie()
        self._find_sources()
        self.optimizer = make_optimizer(recipe, self.trained.values(), len(self.members), list(rates.values()))
        self.heads = guarded_heads(self.members[0], self.trained, recipe)
        self.untried = True
        self.edits = overrides(self.members[0], "edit_gradients")

    def losses(self, batches: Sequence[Batch]) -> Tensor:
        """Return the losses [S], given a batch for each member."""
        state = self.state()
        x, y, tasks = (torch.stack([getattr(b, field) for b in batches]) for field in ("x", "y", "tasks"))
        frozen = None if batches[0].frozen is None else {
            name: torch.stack([b.frozen[name] for b in batches if b.frozen is not None]) for name in batches[0].frozen}
        places = [b.at for b in batches if b.at is not None]
        drawn = seeds.state() if self.untried else None
        with self.forward:
            losses = self.loss(state, batches[0], x, y, tasks, frozen, self.scalars,
                               torch.stack(places) if places else None)
        if drawn is not None and drawn != seeds.state():
            raise Unstackable(DRAWS)
        if self.untried and self.folding and not self.folding.calls:
            self.folding = None  # there is no attention, and intercepting every torch call takes time
        self.untried = False
        return losses

    def state(self) -> dict[str, Tensor]:
        """Return the stacked parameters and buffers [S, ...], with the names that they have in `Loss`."""
        self._follow_buffers()
        self._follow_shared()
        return {f"strategy.{n}": t for n, t in (*self.trained.items(), *self.frozen.items(), *self.buffers.items())}

    def vectorized(self, state: dict[str, Tensor], batch: Batch, x: Tensor, y: Tensor, tasks: Tensor,
                   frozen: dict[str, Tensor] | None, scalars: dict[str, Tensor], at: Tensor | None = None) -> Tensor:
        """Return the losses [S] for stacked parameters and buffers `state` and stacked batches x [S, N, ...], y, ..."""
        def loss(state: dict[str, Tensor], x: Tensor, y: Tensor, tasks: Tensor, frozen: dict[str, Tensor] | None,
                 scalars: dict[str, Tensor], at: Tensor | None) -> Tensor:
            value: Tensor = functional_call(self.call, state, (batch, x, y, tasks, frozen, scalars, at))
            return value

        try:
            with self.folding or nullcontext():
                losses: Tensor = vmap(loss, (0, 0, 0, 0, None if frozen is None else 0, 0, None if at is None else 0),
                                      randomness="error")(state, x, y, tasks, frozen, scalars, at)
        except RuntimeError as error:
            if "randomness" in str(error):  # vmap has no error type of its own for it
                raise Unstackable(DRAWS) from error
            if reason := vmap_refusal(error):
                raise Unstackable(f"its loss cannot be computed for several trials at once ({reason})") from error
            raise
        return losses

    def close(self) -> None:
        """Give every member its own storage again; shared parameters stay shared until they are written to."""
        with torch.no_grad():
            for member in self.members:
                for name, tensor in (*member.named_parameters(), *member.named_buffers()):
                    if name in self.trained or name in self.frozen or name in self.buffers:
                        tensor.data = tensor.data.clone()

    def keep_members(self, chosen: Sequence[int]) -> None:
        """Keep the optimizer state of these members only; for a single one, remove the stack dimension."""
        index: Any = list(chosen) if len(chosen) > 1 else chosen[0]
        size = len(self.members)
        for name, parameter in self.trained.items():
            self.trained[name] = nn.Parameter(parameter.detach()[index])
            self.optimizer.state[self.trained[name]] = {
                key: value[index] if isinstance(value, Tensor) and value.dim() and len(value) == size else value
                for key, value in self.optimizer.state.pop(parameter, {}).items()}
        self.members = [self.members[i] for i in chosen]
        self._find_sources()

    def _find_sources(self) -> None:
        """Set `sources` to the first member's own parameters."""
        parameters = dict(self.members[0].named_parameters())
        self.sources = {name: parameters[name] for name in self.trained}

    def _tie(self) -> None:
        """Make the members' parameters and buffers views of the stacked ones."""
        for index, member in enumerate(self.members):
            for name, parameter in member.named_parameters():
                stacked = self.trained.get(name, self.frozen.get(name))
                if stacked is not None:
                    parameter.data = stacked[index].detach()
            for name, buffer in member.named_buffers():
                buffer.data = self.buffers[name][index]
        self._seen = [dict(member.named_buffers()) for member in self.members]

    def _follow_buffers(self) -> None:
        """Stack buffers again that `prepare_batch` replaced; buffers that it changed in place are still views."""
        member_buffers = [dict(member.named_buffers()) for member in self.members]
        for name in member_buffers[0]:
            if any(buffers[name] is not old.get(name) for buffers, old in zip(member_buffers, self._seen, strict=True)):
                self.buffers[name] = torch.stack([buffers[name] for buffers in member_buffers])
                for index, buffers in enumerate(member_buffers):
                    buffers[name].data = self.buffers[name][index]
        self._seen = member_buffers

    def _follow_shared(self) -> None:
        """Stack shared parameters that have been written to, such as those of a teacher that is updated in training."""
        for name in [name for name, pairs in self.shared.items() if any(write_count(p) != count for p, count in pairs)]:
            parameters = [parameter for parameter, _ in self.shared.pop(name)]
            self.frozen[name] = torch.stack([parameter.detach() for parameter in parameters])
            for index, parameter in enumerate(parameters):
                parameter.data = self.frozen[name][index]

    def edit_gradients(self) -> None:
        """Let each member edit its own gradients."""
        if not self.edits:
            return
        edited = []
        for index, member in enumerate(self.members):
            edited.append(member.edit_gradients({n: p.grad[index] for n, p in self.trained.items()
                                                 if p.grad is not None}))
        for name in edited[0]:
            self.trained[name].grad = torch.stack([e[name] for e in edited])
