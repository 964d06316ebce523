"""Losses and gradients of a single strategy, or of several members (seeds, strengths) stacked into one.

A stack owns storage of shape [S, ...] for every parameter and buffer, and its members' tensors become views of it. So
the members are always up to date: `prepare_batch`, `edit_gradients` and everything between tasks run on them as usual,
and only `loss` runs once for all, under `torch.func.vmap`. What is frozen and equal in all members, such as a
pretrained base, is kept once until it is written to: vmap runs it on the samples of all members as one large product.
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
from clbench.core.torch_private import write_count
from clbench.experiment.recipe import Recipe
from clbench.strategy.base import Batch, Strategy, overrides
from clbench.training import precision
from clbench.training.optimizers import guarded_heads, make_optimizer, rates_of
from clbench.training.precision import Compiler, FoldedAttention
from clbench.training.replica import share_equal, varying_options


class Unstackable(ValueError):
    """Trials cannot train as one stack, for the reason given; each trains alone."""


class TrainStep(Protocol):
    """What an optimizer step needs; a new one is made for every phase of every task."""

    optimizer: torch.optim.Optimizer
    trained: dict[str, nn.Parameter]  # what the optimizer steps on, by name
    heads: list[nn.Parameter]  # of these, the heads whose idle rows stay as they are
    members: list[Strategy]
    # The first member's parameters behind them: they tell whether kept optimizer state is of the same parameters.
    sources: dict[str, nn.Parameter]
    loss: Callable[..., Tensor]  # what a step differentiates; may be replaced by a compiled one
    forward: AbstractContextManager[object]  # in which it runs

    def losses(self, batches: Sequence[Batch]) -> Tensor:
        """Return the losses [S] of a prepared batch per member."""

    def edit_gradients(self) -> None:
        """Let each member edit its own gradients (`Strategy.edit_gradients`)."""

    def close(self) -> None:
        """Make the members independent strategies again."""

    def keep_members(self, chosen: Sequence[int]) -> None:
        """Keep the optimizer state of these members only."""


def make_train_step(strategies: Sequence[Strategy], recipe: Recipe, previous: TrainStep | None,
                    compiler: Compiler | None = None) -> TrainStep:
    """Return the training step of one strategy or of several seeds of it.

    If the recipe keeps optimizer state, it is taken over from `previous`. A compiler compiles the loss.

    Raises:
        ValueError: no parameter requires a gradient.
    """
    one = len(strategies) == 1
    forward = precision.forward(recipe, strategies[0].class_mask.device, strategies[0] if compiler is None else None,
                               stacked=not one)
    train_step = SingleStep(strategies[0], recipe, forward) if one else StackedStep(strategies, recipe, forward)
    if compiler is not None:
        train_step.loss = compiler(train_step.loss)
    if previous is not None and recipe.optimizer_state == "keep":
        for name, parameter in train_step.trained.items():
            known = previous.trained.get(name)
            if known is None or known not in previous.optimizer.state:
                continue
            if previous.sources[name] is train_step.sources[name]:
                train_step.optimizer.state[parameter] = previous.optimizer.state[known]
    return train_step


class SingleStep:
    """One strategy."""

    def __init__(self, strategy: Strategy, recipe: Recipe, forward: AbstractContextManager[object]) -> None:
        """Optimize what requires a gradient, with losses in the arithmetic of `forward`."""
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
    """Options of which some have other values; a plain object, which torch.compile can read, unlike a new model."""

    def __init__(self, options: Options, values: Mapping[str, Tensor]) -> None:
        self._options, self._values = options, values

    def __getattr__(self, name: str) -> Any:
        """Return an option."""
        return self._values[name] if name in self._values else getattr(self._options, name)


# Under vmap a member does not get the numbers that it gets alone, whatever `randomness` says.
DRAWS = "its loss draws random numbers (dropout, say), which in a stack would depend on the other trials"


class Loss(nn.Module):
    """A strategy whose `forward` is its loss, since `functional_call` calls `forward`."""

    def __init__(self, strategy: Strategy) -> None:
        super().__init__()
        self.strategy = strategy

    def forward(self, batch: Batch, x: Tensor, y: Tensor, tasks: Tensor, frozen: Mapping[str, Tensor] | None = None,
                scalars: Mapping[str, Tensor] | None = None, at: Tensor | None = None) -> Tensor:
        """Return the strategy's loss, with these values of its `Scalar` options instead of its own."""
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
    """Several seeds of one strategy."""

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
        """Return the losses [S] of a batch per member."""
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
            self.folding = None  # nothing to fold; looking at every call of torch takes time
        self.untried = False
        return losses

    def state(self) -> dict[str, Tensor]:
        """Return the members' parameters and buffers [S, ...], named as those of a module that has a `strategy`."""
        self._follow_buffers()
        self._follow_shared()
        return {f"strategy.{n}": t for n, t in (*self.trained.items(), *self.frozen.items(), *self.buffers.items())}

    def vectorized(self, state: dict[str, Tensor], batch: Batch, x: Tensor, y: Tensor, tasks: Tensor,
                   frozen: dict[str, Tensor] | None, scalars: dict[str, Tensor], at: Tensor | None = None) -> Tensor:
        """Return the losses [S] of members whose parameters and buffers are `state`, on x [S, N, ...] and so on."""
        def loss(state: dict[str, Tensor], x: Tensor, y: Tensor, tasks: Tensor, frozen: dict[str, Tensor] | None,
                 scalars: dict[str, Tensor], at: Tensor | None) -> Tensor:
            value: Tensor = functional_call(self.call, state, (batch, x, y, tasks, frozen, scalars, at))
            return value

        try:
            with self.folding or nullcontext():
                losses: Tensor = vmap(loss, (0, 0, 0, 0, None if frozen is None else 0, 0, None if at is None else 0),
                                      randomness="error")(state, x, y, tasks, frozen, scalars, at)
        except RuntimeError as error:
            if "randomness" in str(error):  # no other way to be told of it
                raise Unstackable(DRAWS) from error
            raise
        return losses

    def close(self) -> None:
        """Give every member its own storage again; what is shared stays shared until it is written to."""
        with torch.no_grad():
            for member in self.members:
                for name, tensor in (*member.named_parameters(), *member.named_buffers()):
                    if name in self.trained or name in self.frozen or name in self.buffers:
                        tensor.data = tensor.data.clone()

    def keep_members(self, chosen: Sequence[int]) -> None:
        """Keep the optimizer state of these members only; a single one gets the state of unstacked training."""
        index: Any = list(chosen) if len(chosen) > 1 else chosen[0]
        size = len(self.members)
        for name, old in self.trained.items():
            self.trained[name] = nn.Parameter(old.detach()[index])
            self.optimizer.state[self.trained[name]] = {
                key: value[index] if isinstance(value, Tensor) and value.dim() and len(value) == size else value
                for key, value in self.optimizer.state.pop(old, {}).items()}
        self.members = [self.members[i] for i in chosen]
        self._find_sources()

    def _find_sources(self) -> None:
        """Note the first member's own parameters."""
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
        """Stack buffers again that `prepare_batch` replaced (those changed in place are views already)."""
        now = [dict(member.named_buffers()) for member in self.members]
        for name in now[0]:
            if any(new[name] is not old.get(name) for new, old in zip(now, self._seen, strict=True)):
                self.buffers[name] = torch.stack([new[name] for new in now])
                for index, new in enumerate(now):
                    new[name].data = self.buffers[name][index]
        self._seen = now

    def _follow_shared(self) -> None:
        """Stack parameters that members shared and that were written to, such as those of a teacher that follows."""
        for name in [name for name, of in self.shared.items() if any(write_count(p) != count for p, count in of)]:
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
