"""FLOPs of training steps: counted at one step of each kind, times the number of such steps.

Steps of a phase are of one kind if their batches have the same shape; where gradients are edited, the strategy's own
buffers too. What a member of a stack computes is what it would compute alone, and a compiled loss counts as the
uncompiled one: there the loss of the first member is run once more, by itself, for each kind of step. What is cached
for a phase (`clbench.training.cache`) is counted once, where it is computed.

What draws replay (`augment_batch`) can compute more or less from step to step. There the calls of modules are told
apart by the shapes of their arguments, the rest by the sizes of the strategy's own buffers.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from clbench.core import seeds
from clbench.strategy.base import Batch, Strategy, overrides
from clbench.training.cache import PhaseInputs
from clbench.training.flops import FlopCount
from clbench.training.stacking import Engine, Loss


class PhaseFlops:
    """The FLOPs of a phase: `totals`, of each member.

    Args:
        strategies: the members, as the phase trains them.
        given: the phase's inputs, whose own FLOPs are where the totals begin.
        compiled: whether their loss is compiled.
    """

    def __init__(self, strategies: Sequence[Strategy], given: PhaseInputs, compiled: bool) -> None:
        self.totals = [given.flops] * len(strategies)
        self.strategies = strategies
        self.augments = overrides(strategies[0], "augment_batch")
        self.edits = overrides(strategies[0], "edit_gradients")
        self.in_place = len(strategies) == 1 and not compiled
        self.steps: dict[Hashable, list[int]] = {}
        self.draws = Draws()

    def augment(self, strategy: Strategy, batch: Batch) -> Batch:
        """Return what a member's `augment_batch` makes of a batch."""
        if not self.augments:
            return strategy.augment_batch(batch)
        batch, flops = self.draws.augment(strategy, batch)
        position = next(i for i, member in enumerate(self.strategies) if member is strategy)
        self.totals[position] += flops
        return batch

    def step(self, engine: Engine, batches: Sequence[Batch]) -> Tensor:
        """Take a step and return its losses [S]."""
        if self.known(batches):
            return engine.step(batches)
        kind = self._kind(batches)
        losses, self.steps[kind] = self._counted(engine, batches)
        self._add(self.steps[kind])
        return losses

    def known(self, batches: Sequence[Batch]) -> bool:
        """Add the FLOPs of a step on such batches if one has been counted, and tell whether that was so."""
        known = self.steps.get(self._kind(batches))
        if known is not None:
            self._add(known)
        return known is not None

    def _kind(self, batches: Sequence[Batch]) -> Hashable:
        sizes = sizes_of(self.strategies[0]) if self.edits else ()
        return batches[0].x.shape, batches[0].replayed, sizes

    def _add(self, flops: Sequence[int]) -> None:
        self.totals = [total + more for total, more in zip(self.totals, flops, strict=True)]

    def _counted(self, engine: Engine, batches: Sequence[Batch]) -> tuple[Tensor, list[int]]:
        """Take a step and return its losses, and what it costs each member."""
        if self.in_place:
            with FlopCount() as count:
                losses = engine.step(batches)
            return losses, [count.total]
        loss = flops_alone(self.strategies[0], engine, batches[0])
        with counted_edits(self.strategies) as counts:
            losses = engine.step(batches)
        return losses, [loss + count.total for count in counts]


def sizes_of(strategy: Strategy) -> tuple[torch.Size, ...]:
    """Return the shapes of a strategy's own buffers."""
    return tuple([buffer.shape for buffer in strategy._buffers.values() if buffer is not None])


@contextmanager
def counted_edits(strategies: Sequence[Strategy]) -> Iterator[list[FlopCount]]:
    """Count what each strategy computes in `edit_gradients` inside the block."""
    counts = [FlopCount() for _ in strategies]

    def counted(edit: Callable[[dict[str, Tensor]], dict[str, Tensor]], count: FlopCount) -> Callable[..., Any]:
        def run(gradients: dict[str, Tensor]) -> dict[str, Tensor]:
            with count:
                return edit(gradients)
        return run

    try:
        for strategy, count in zip(strategies, counts, strict=True):
            vars(strategy)["edit_gradients"] = counted(strategy.edit_gradients, count)  # an engine need not know of it
        yield counts
    finally:
        for strategy in strategies:
            vars(strategy).pop("edit_gradients", None)


def flops_alone(strategy: Strategy, engine: Engine, batch: Batch) -> int:
    """Return the FLOPs of the loss and its gradients where a strategy trains alone, uncompiled.

    It leaves no trace: no running statistics, no draws.
    """
    buffers = {".".join(filter(None, ("strategy", where, name))): buffer.clone()
               for where, module in strategy.named_modules() if module.training
               for name, buffer in module.named_buffers(recurse=False)}
    trained = [p for p in strategy.parameters() if p.requires_grad]
    with seeds.scope(0, "flops"), FlopCount() as count:
        with engine.forward:
            loss: Tensor = functional_call(Loss(strategy), buffers,
                                           (batch, batch.x, batch.y, batch.tasks, batch.frozen))
        torch.autograd.grad(loss, trained, allow_unused=True)
    return int(count.total)


class Draws:
    """What `augment_batch` costs."""

    def __init__(self) -> None:
        self.rest: dict[Hashable, int] = {}  # all but calls of modules
        self.modules: dict[Hashable, int] = {}

    def augment(self, strategy: Strategy, batch: Batch) -> tuple[Batch, int]:
        """Return what `augment_batch` makes of a batch, and its FLOPs."""
        kind = (len(batch.y), batch.first_pass, sizes_of(strategy))
        rest = self.rest.get(kind)
        with ModuleCalls(self.modules) as calls:
            if rest is not None:
                return strategy.augment_batch(batch), rest + calls.total
            with FlopCount() as count:
                batch = strategy.augment_batch(batch)
        self.rest[kind] = count.total - calls.total
        return batch, count.total


class ModuleCalls:
    """A context that adds up the FLOPs of calls of modules, each counted the first time that it is made.

    Calls are the same if the module, its mode and the shapes of its tensors are. Calls inside a call belong to it.
    """

    def __init__(self, known: dict[Hashable, int]) -> None:
        self.known = known
        self.total = self.depth = 0
        self.kind: Hashable = None
        self.count: FlopCount | None = None

    def __enter__(self) -> ModuleCalls:
        """Begin to watch."""
        self.handles = (register_module_forward_pre_hook(self._before),
                        register_module_forward_hook(self._after, always_call=True))
        return self

    def __exit__(self, *_: object) -> None:
        """Watch no more."""
        for handle in self.handles:
            handle.remove()

    def _before(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self.depth += 1
        if self.depth > 1:
            return
        shapes = tuple([arg.shape if isinstance(arg, Tensor) else None for arg in args])
        self.kind = (module, module.training, torch.is_grad_enabled(), shapes)
        if self.kind not in self.known:
            self.count = FlopCount().start()

    def _after(self, *_: object) -> None:
        self.depth -= 1
        if self.depth:
            return
        if self.count is not None:
            self.count.stop()
            self.known[self.kind] = self.count.total
            self.count = None
        self.total += self.known[self.kind]
