"""FLOPs of training steps: counted at one step of each kind, times the number of such steps.

Steps of a phase are of one kind if their batches have the same shape; where gradients are edited, the strategy's own
buffers too. What a member of a stack computes is what it would compute alone, and a compiled loss counts as the
uncompiled one: there the loss of the first member is run once more, by itself, for each kind of step. What is cached
for a phase (`clbench.training.cache`) is counted once, where it is computed.

What draws replay (`augment_batch`) can compute more or less from step to step. There the calls of modules are told
apart by the shapes of their arguments, the rest by the sizes of the strategy's own buffers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from clbench.accounting.flops import FlopCount
from clbench.accounting.inference import inference_flops
from clbench.accounting.loop_flops import LoopFlops
from clbench.core import seeds
from clbench.strategy.base import Batch, Strategy, overrides
from clbench.training.cache import PhaseInputs
from clbench.training.callbacks.interface import Callback, NextIndices, Training
from clbench.training.replica import Replica, TaskResult
from clbench.training.steps import Engine, Loss


class FlopsCallback(Callback):
    """Counts the FLOPs of training on each task, and of predicting a sample after it, for the costs of replicas."""

    def __init__(self) -> None:
        """Begin at 0."""
        self.totals: Counter[int] = Counter()  # of the task at hand, by id of the replica
        self.phase: PhaseFlops | None = None
        self.draws: Draws | None = None

    def around_prepare(self, replica: Replica, batch: Batch | None = None) -> AbstractContextManager[object]:
        """Count what a strategy computes outside of steps."""
        if batch is None:
            return self._counted(replica)
        if not overrides(replica.strategy, "augment_batch"):
            return nullcontext()
        self.draws = self.draws or Draws()
        return self._drawn(replica, batch, self.draws)

    @contextmanager
    def _counted(self, replica: Replica) -> Iterator[None]:
        with FlopCount() as count:
            yield
        self.totals[id(replica)] += count.total

    @contextmanager
    def _drawn(self, replica: Replica, batch: Batch, draws: Draws) -> Iterator[None]:
        with draws.counted(replica.strategy, batch) as flops:
            yield
        self.totals[id(replica)] += flops[0]

    def on_phase(self, training: Training, inputs: PhaseInputs) -> None:
        """Begin with no kind of step counted."""
        self.phase = PhaseFlops([replica.strategy for replica in training.replicas], training.compiled)
        self.draws = None

    @contextmanager
    def around_step(self, training: Training, batches: Sequence[Batch]) -> Iterator[None]:
        """Add the FLOPs of a step, which is counted if it is the first of its kind."""
        assert self.phase is not None and training.engine is not None
        with self.phase.counted(training.engine, batches) as flops:
            yield
        for replica, own in zip(training.replicas, flops, strict=True):
            self.totals[id(replica)] += own

    @contextmanager
    def around_own_loop(self, replica: Replica, following: NextIndices, steps: int) -> Iterator[NextIndices]:
        """Count a loop that shows no more of its steps than the batches that it asks for."""
        with LoopFlops(following, steps) as count:
            yield count.following
        self.totals[id(replica)] += count.total

    def on_trained(self, training: Training, results: Sequence[TaskResult]) -> None:
        """Add the totals to the costs."""
        for replica in training.replicas:
            replica.costs.train_flops.append(self.totals.pop(id(replica), 0))

    def on_task(self, training: Training, task: int) -> None:
        """Add the FLOPs of predicting a sample to the costs."""
        for replica in training.replicas:
            replica.costs.inference_flops.append(inference_flops(replica, training.recipe, task + 1))


class PhaseFlops:
    """The FLOPs of the steps of a phase.

    Args:
        strategies: the members, as the phase trains them.
        compiled: whether their loss is compiled.
    """

    def __init__(self, strategies: Sequence[Strategy], compiled: bool) -> None:
        self.strategies = strategies
        self.edits = overrides(strategies[0], "edit_gradients")
        self.in_place = len(strategies) == 1 and not compiled
        self.steps: dict[Hashable, list[int]] = {}  # FLOPs of a step of each kind, for each member

    @contextmanager
    def counted(self, engine: Engine, batches: Sequence[Batch]) -> Iterator[list[int]]:
        """Count a step that is taken in the block, if it is the first of its kind; its FLOPs are there at the end."""
        flops: list[int] = []
        kind = self.kind_of(batches)
        if kind in self.steps:
            yield flops
        elif self.in_place:
            with FlopCount() as count:
                yield flops
            self.steps[kind] = [count.total]
        else:
            loss = flops_alone(self.strategies[0], engine, batches[0])
            with counted_edits(self.strategies) as counts:
                yield flops
            self.steps[kind] = [loss + edits.total for edits in counts]
        flops += self.steps[kind]

    def kind_of(self, batches: Sequence[Batch]) -> Hashable:
        """Return what steps on batches that cost the same have in common."""
        return batches[0].x.shape, batches[0].replayed, sizes_of(self.strategies[0]) if self.edits else ()


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

    @contextmanager
    def counted(self, strategy: Strategy, batch: Batch) -> Iterator[list[int]]:
        """Count what `augment_batch` computes for a batch in the block; its FLOPs are there at the end."""
        flops: list[int] = []
        kind = (len(batch.y), batch.first_pass, sizes_of(strategy))
        with ModuleCalls(self.modules) as calls:
            if kind in self.rest:
                yield flops
            else:
                with FlopCount() as count:
                    yield flops
                self.rest[kind] = count.total - calls.total
        flops.append(self.rest[kind] + calls.total)


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
