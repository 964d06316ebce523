"""The training step of a stack, which is several strategies that take their steps together.

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
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from clbench.core import seeds
from clbench.core.errors import PluginError
from clbench.core.option_marks import PerMember, marks
from clbench.core.options import Options
from clbench.core.torch_private import vmap_refusal, write_count
from clbench.experiment.recipe import Recipe
from clbench.strategy.base import Batch, Strategy, overrides
from clbench.training.members import (
    Unstackable,
    differing_attributes,
    record_reads,
    require_counted_writes,
    require_same_structure,
    share_equal,
    stack_buffer,
)
from clbench.training.optimizers import OptimizerStates, guarded_heads, make_optimizer, rates_of, set_gradient
from clbench.training.precision import FoldedAttention


class OptionsView:
    """Options with some values replaced; torch.compile can read this plain object, but not a new options model."""

    def __init__(self, options: Options, values: Mapping[str, Tensor]) -> None:
        self._options, self._values = options, values

    def __getattr__(self, name: str) -> Any:
        """Return an option."""
        return self._values[name] if name in self._values else getattr(self._options, name)


# No setting of vmap's `randomness` gives a member the random numbers that it would get alone.
DRAWS = "its {} draws random numbers (dropout, say), which in a stack would depend on the other trials"


class StrategyCall(nn.Module):
    """Calls a function of a strategy, because `functional_call` can only call modules."""

    def __init__(self, strategy: Strategy, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.strategy, self.function = strategy, function

    def forward(self, *arguments: Any) -> Tensor:
        """Return the value of the function for the strategy and further arguments."""
        return self.function(self.strategy, *arguments)


def loss_of(strategy: Strategy, batch: Batch, columns: Mapping[str, Any] | None = None,
            scalars: Mapping[str, Tensor] | None = None) -> Tensor:
    """Return a strategy's loss.

    `columns` has tensors that replace those of the batch (`Batch.columns`). `scalars` has values that replace those of
    the strategy's `Scalar` options.
    """
    batch = replace(batch, **columns or {})
    if not scalars:
        return strategy.loss(batch)
    options: Any = strategy.options
    strategy.options = OptionsView(options, scalars)  # type: ignore[assignment]
    try:
        return strategy.loss(batch)
    finally:
        strategy.options = options


def stack_columns(columns: Sequence[Any]) -> Any:
    """Stack tensors, or dicts of tensors with the same keys, along a new first dimension."""
    if isinstance(columns[0], Tensor):
        return torch.stack([*columns])
    return {name: stack_columns([column[name] for column in columns]) for name in columns[0]}


class StackedStep:
    """The training step of a stack of strategies."""

    def __init__(self, strategies: Sequence[Strategy], recipe: Recipe,
                 autocast: AbstractContextManager[object]) -> None:
        """Stack parameters and buffers, and make the members' tensors views of the stack.

        Raises:
            Unstackable: the members have different parameters, buffers of different shapes, or other learning rates.
        """
        require_same_structure(strategies)
        self.autocast = autocast
        self.members = list(strategies)
        self.call = StrategyCall(self.members[0], loss_of)
        self.loss: Callable[..., Tensor] = self.vectorized
        self.scalars = varying_options(self.members)
        shared = share_equal(self.members, frozen=True)
        parameters = [dict(member.named_parameters()) for member in self.members]
        self.layouts = {name: torch.empty_like(parameter, device="meta") for name, parameter in parameters[0].items()}
        buffers = [dict(member.named_buffers()) for member in self.members]
        stacked = {name: torch.stack([of_member[name].detach() for of_member in parameters])
                   for name in parameters[0] if name not in shared}
        learning = [name for name in stacked if parameters[0][name].requires_grad]
        rates, *other_rates = [rates_of(member, learning, recipe) for member in self.members]
        if any(other != rates for other in other_rates):
            raise Unstackable("its learning rates differ between the trials")
        self.trained = {n: nn.Parameter(stacked[n]) for n in rates}
        self.untrained = {n: t for n, t in stacked.items() if n not in self.trained}
        self.shared = {n: [(of_member[n], write_count(of_member[n])) for of_member in parameters] for n in shared}
        self.buffers = {n: stack_buffer(n, [of_member[n] for of_member in buffers]) for n in buffers[0]}
        self.folding: FoldedAttention | None = FoldedAttention()
        self._tie()
        self.optimizer = make_optimizer(recipe, self.trained.values(), len(self.members), list(rates.values()))
        self.states: OptimizerStates = {n: ([of_member[n] for of_member in parameters], self.optimizer.state[p])
                                        for n, p in self.trained.items()}
        self.heads = guarded_heads(self.members[0], self.trained, recipe)
        self.calls, self.edited = 0, False
        self.edits = overrides(self.members[0], "edit_gradients")

    def losses(self, batches: Sequence[Batch]) -> Tensor:
        """Return the losses [S], given a batch for each member."""
        state = self.state()
        if len({(batch.replayed, batch.first_pass) for batch in batches}) > 1:
            raise Unstackable("its batches differ in their number of replayed samples, or only some are a first pass")
        columns = stack_columns([batch.columns for batch in batches])
        if self.calls & (self.calls + 1) == 0:  # calls 1, 2, 4, 8, ..., because steps may change attributes
            self._require_equal_attributes(batches[0])
        drawn = None if self.calls else seeds.state()
        with self.autocast:
            losses = self.loss(state, batches[0], columns, self.scalars)
        if drawn is not None and drawn != seeds.state():
            raise Unstackable(DRAWS.format("loss"))
        if self.folding and not self.calls and not self.folding.calls:
            self.folding = None  # there is no attention, and intercepting every torch call takes time
        self.calls += 1
        return losses

    def _require_equal_attributes(self, batch: Batch) -> None:
        """Run the loss of the first member alone if attributes differ between the members; it must not read these.

        Running statistics stay unchanged.

        Raises:
            Unstackable: the loss reads one of them, so in the stack all members would use the value of the first one.
        """
        differing = differing_attributes(self.members)
        if not differing:
            return
        first = self.members[0]
        buffers = {f"strategy.{name}": buffer.clone() for name, buffer in first.named_buffers()}
        with seeds.scope(0, "attributes"), self.autocast, record_reads(first, differing) as reads:
            functional_call(self.call, buffers, (batch,))
        if reads:
            raise Unstackable(f"its loss reads the attribute {reads[0]}, which differs between the trials (buffers and "
                              "options of type Scalar may differ)")

    def state(self) -> dict[str, Tensor]:
        """Return the stacked parameters and buffers [S, ...], with the names that they have in `StrategyCall`."""
        self._follow_buffers()
        self._follow_shared()
        return {f"strategy.{n}": t for n, t in (*self.trained.items(), *self.untrained.items(), *self.buffers.items())}

    def vectorized(self, state: dict[str, Tensor], batch: Batch, columns: dict[str, Any],
                   scalars: dict[str, Tensor]) -> Tensor:
        """Return the losses [S] for stacked parameters and buffers `state` and stacked `Batch.columns` [S, N, ...]."""
        def loss(state: dict[str, Tensor], columns: dict[str, Any], scalars: dict[str, Tensor]) -> Tensor:
            value: Tensor = functional_call(self.call, state, (batch, columns, scalars))
            return value

        try:
            with self.folding or nullcontext():
                losses: Tensor = vmap(loss, randomness="error")(state, columns, scalars)
        except RuntimeError as error:
            if "randomness" in str(error):  # vmap has no error type of its own for it
                raise Unstackable(DRAWS.format("loss")) from error
            if reason := vmap_refusal(error):
                raise Unstackable(f"its loss cannot be computed for several trials at once ({reason})") from error
            raise
        return losses

    def close(self) -> None:
        """Give every member its own storage again; shared parameters stay shared until they are written to.

        Parameters have the memory format that they had before, such as channels-last for the weights of convolutions.
        """
        require_counted_writes({name: [p for p, _ in pairs] for name, pairs in self.shared.items()})
        with torch.no_grad():
            for member in self.members:
                for name, parameter in member.named_parameters():
                    if name in self.trained or name in self.untrained:
                        parameter.data = torch.empty_like(self.layouts[name], device=parameter.device).copy_(parameter)
                for name, buffer in member.named_buffers():
                    if name in self.buffers:
                        buffer.data = buffer.data.clone()

    def _tie(self) -> None:
        """Make the members' parameters and buffers views of the stacked ones."""
        for index, member in enumerate(self.members):
            for name, parameter in member.named_parameters():
                stacked = self.trained.get(name, self.untrained.get(name))
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
                self.buffers[name] = stack_buffer(name, [buffers[name] for buffers in member_buffers])
                for index, buffers in enumerate(member_buffers):
                    buffers[name].data = self.buffers[name][index]
        self._seen = member_buffers

    def _follow_shared(self) -> None:
        """Stack shared parameters that have been written to, such as those of a teacher that is updated in training."""
        for name in [name for name, pairs in self.shared.items() if any(write_count(p) != count for p, count in pairs)]:
            parameters = [parameter for parameter, _ in self.shared.pop(name)]
            self.untrained[name] = torch.stack([parameter.detach() for parameter in parameters])
            for index, parameter in enumerate(parameters):
                parameter.data = self.untrained[name][index]

    def edit_gradients(self) -> None:
        """Let each member edit its own gradients.

        Raises:
            Unstackable: the first edit of the phase draws from a global random generator.
        """
        if not self.edits:
            return
        drawn = None if self.edited else seeds.state(self.members[0].class_mask.device)
        edited = []
        for index, member in enumerate(self.members):
            edited.append(edited_gradients(member, {n: p.grad[index] for n, p in self.trained.items()
                                                    if p.grad is not None}))
        if drawn is not None and drawn != seeds.state(self.members[0].class_mask.device):
            raise Unstackable(DRAWS.format("`edit_gradients`"))
        self.edited = True
        for name in edited[0]:
            set_gradient(self.trained[name], torch.stack([e[name] for e in edited]))


def edited_gradients(strategy: Strategy, gradients: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the gradients that a strategy makes of these ones, which are given by parameter name.

    Raises:
        PluginError: the names differ.
    """
    names = set(gradients)
    edited = strategy.edit_gradients(gradients)
    if different := sorted(names ^ edited.keys()):
        raise PluginError(f"`edit_gradients` of {type(strategy).__name__} must return the same names that it gets, and "
                          f"{different[0]!r} is {'missing' if different[0] in names else 'not one of them'}; for a "
                          "parameter that must not change, return a gradient of zeros")
    return edited


def varying_options(members: Sequence[Strategy]) -> dict[str, Tensor]:
    """Return the values [S] of the `Scalar` options that differ between the members of a stack, by name.

    The values are float32, like the computation. Options that are equal in all members are left out and stay numbers.
    """
    values = {name: [getattr(m.options, name) for m in members] for name in marks(type(members[0].options), PerMember)}
    return {name: torch.tensor(member_values, dtype=torch.float32, device=members[0].class_mask.device)
            for name, member_values in values.items() if len(set(member_values)) > 1}
