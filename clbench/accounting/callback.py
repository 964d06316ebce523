"""FLOPs of training steps: counted at one step of each kind, times the number of such steps.

Steps of a phase are of one kind if their batches have the same shape; where gradients are edited, the strategy's own
buffers too. What a member of a stack computes is what it would compute alone, and a compiled loss counts as the
uncompiled one: there the loss of the first member is run once more, by itself, for each kind of step. What is cached
for a phase (`clbench.training.cache`) is counted once, where it is computed.

Code that shows less of its steps (`augment_batch`, a strategy's own loop) is counted by `sampled`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from fractions import Fraction
from statistics import mean
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from clbench.accounting.flops import FlopCount
from clbench.accounting.sampled import Draws, LoopFlops, sizes_of
from clbench.core import seeds
from clbench.data.stream import Tests
from clbench.experiment.spec import Recipe
from clbench.strategy.base import Batch, Strategy, overrides
from clbench.training import precision
from clbench.training.cache import PhaseInputs
from clbench.training.callbacks.interface import Callback, NextIndices, Training
from clbench.training.evaluation import batch_size, given_tasks
from clbench.training.replica import Replica, TaskResult
from clbench.training.sampling import divided
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

    def is_new_kind(self, batches: Sequence[Batch]) -> bool:
        """Tell whether no step of the phase on such batches has been counted."""
        assert self.phase is not None
        return self.phase.kind_of(batches) not in self.phase.steps

    def on_phase(self, training: Training, inputs: PhaseInputs) -> None:
        """Begin with no kind of step counted."""
        self.phase = PhaseFlops([replica.strategy for replica in training.replicas], training.compiled,
                                training.recipe.accumulate)
        self.draws = None

    @contextmanager
    def around_step(self, training: Training, batches: Sequence[Batch]) -> Iterator[None]:
        """Add the FLOPs of a step, which is counted if it is the first of its kind."""
        assert self.phase is not None and training.engine is not None
        with self.phase.counted(training.engine, batches) as flops:
            yield
        for replica, flops_of_replica in zip(training.replicas, flops, strict=True):
            self.totals[id(replica)] += flops_of_replica

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
        parts: in which the gradients of a batch are computed.
    """

    def __init__(self, strategies: Sequence[Strategy], compiled: bool, parts: int = 1) -> None:
        self.strategies = strategies
        self.parts = parts
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
            loss = sum(flops_alone(self.strategies[0], engine, part) for _, (part,) in divided(batches[:1], self.parts))
            with counted_edits(self.strategies) as counts:
                yield flops
            self.steps[kind] = [loss + edits.total for edits in counts]
        flops += self.steps[kind]

    def kind_of(self, batches: Sequence[Batch]) -> Hashable:
        """Return what steps on batches that cost the same have in common."""
        return batches[0].x.shape, batches[0].replayed, sizes_of(self.strategies[0]) if self.edits else ()


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


def inference_flops(replica: Replica, recipe: Recipe, learned: int) -> int:
    """Return the FLOPs of predicting a sample after `learned` tasks, in the arithmetic of a recipe.

    The sample is of an unknown task; where the scenario gives the task, it is the mean over the learned tasks.
    """
    strategy, tests = replica.strategy, replica.stream.tests
    size = batch_size(replica.stream, tests.y.device)
    training = strategy.training
    strategy.eval()
    with torch.no_grad(), precision.forward(recipe, strategy.active.device, strategy):
        flops = [flops_of(strategy, tests, task, size) for task in given_tasks(strategy.world.scenario, learned)]
    strategy.train(training)
    return round(mean(flops))


def flops_of(strategy: Strategy, tests: Tests, given: int | None, size: int) -> Fraction:
    """Return the FLOPs of predicting one test sample in batches of `size`, whatever of it is cached.

    Part of a batch's cost does not depend on its size (dora's weights), so batches of one and of two are counted.
    """
    x = next(tests.batches(2, given))[0]
    totals = []
    for part in (x[:1], x):
        with FlopCount() as count:
            strategy.predict(part, given)
        totals.append(count.total)
    each = (totals[1] - totals[0]) or totals[0]  # there may be one sample only
    whole = len(tests.y) if given is None else tests.sizes[given]
    return Fraction(each) + Fraction(totals[0] - each, min(size, whole))
