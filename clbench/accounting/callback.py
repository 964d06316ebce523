"""FLOPs of training, counted at one step of each kind, times the number of such steps; and FLOPs of predictions.

Steps of a phase are of one kind if their batches have the same shape; where gradients are edited, the strategy's own
buffers too. What a member of a stack computes is what it would compute alone, and a compiled loss counts as the
uncompiled one: there the loss of the first member is run once more, by itself, for each kind of step. What is cached
for a phase (`clbench.training.cache`) is counted once, where it is computed.

What draws replay (`augment_batch`) can compute more or less from step to step, in calls of modules: these count
each time, and the rest once for each kind of draw. Of a strategy's own loop, some of the steps are counted.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from fractions import Fraction
from functools import partial
from statistics import mean
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from clbench.accounting.flops import FlopCount, counted_modules
from clbench.core import seeds
from clbench.strategy.base import Batch, Strategy, overrides
from clbench.training import precision
from clbench.training.cache import PhaseInputs
from clbench.training.callbacks.interface import Callback, NextIndices, Training
from clbench.training.evaluation import batch_size, given_tasks
from clbench.training.replica import Replica, TaskResult
from clbench.training.sampling import divided
from clbench.training.steps import Engine, Loss, arguments_of

EVERY = 17  # of the steps of an own loop one in so many is counted; prime, so that it falls on no rhythm


class FlopsCallback(Callback):
    """Counts the FLOPs of training on each task, and of predicting a sample after it, for the costs of replicas."""

    def __init__(self) -> None:
        """Begin at 0."""
        self.totals: Counter[int] = Counter()  # of the task at hand, by id of the replica
        self.phase: PhaseFlops | None = None

    def around_prepare(self, replica: Replica, batch: Batch | None = None) -> AbstractContextManager[object]:
        """Count what a strategy computes outside of steps."""
        if batch is None:
            return self._added(replica, FlopCount())
        if not overrides(replica.strategy, "augment_batch"):
            return nullcontext()
        assert self.phase is not None
        return self._added(replica, self.phase.counted_draw(replica.strategy, batch))

    @contextmanager
    def _added(self, replica: Replica, counting: AbstractContextManager[FlopCount]) -> Iterator[None]:
        with counting as count:
            yield
        self.totals[id(replica)] += count.total

    def on_phase(self, training: Training, inputs: PhaseInputs) -> None:
        """Begin with no kind of step counted."""
        self.phase = PhaseFlops([replica.strategy for replica in training.replicas], training.compiled,
                                training.recipe.accumulate)

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
        """Add the FLOPs of predicting a sample to the costs; where the scenario gives the task, the mean over tasks."""
        for replica in training.replicas:
            strategy, tests = replica.strategy, replica.stream.tests
            size = batch_size(replica.stream, tests.y.device)
            flops = []
            with precision.forward(training.recipe, strategy.active.device, strategy):
                for given in given_tasks(strategy.world.scenario, task + 1):
                    samples = len(tests.y) if given is None else tests.sizes[given]
                    x, y, _ = next(tests.batches(2, given))
                    flops.append(prediction_flops(strategy, x, y, given, min(size, samples)))
            replica.costs.inference_flops.append(round(mean(flops)))


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
        self.draws: dict[Hashable, int] = {}  # FLOPs of a draw of each kind, without calls of modules

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
        batch = batches[0]
        return batch.x.shape, batch.y.shape, batch.replayed, sizes_of(self.strategies[0]) if self.edits else ()

    @contextmanager
    def counted_draw(self, strategy: Strategy, batch: Batch) -> Iterator[FlopCount]:
        """Count what `augment_batch` computes for a batch in the block; the total is there at the end."""
        kind = len(batch.y), batch.first_pass, sizes_of(strategy)
        with counted_modules() as count:
            if kind in self.draws:
                yield count
            else:
                with FlopCount() as whole:
                    yield count
                self.draws[kind] = whole.total - count.total
        count.total += self.draws[kind]


def sizes_of(strategy: Strategy) -> tuple[torch.Size, ...]:
    """Return the shapes of a strategy's own buffers."""
    return tuple([buffer.shape for buffer in strategy._buffers.values() if buffer is not None])


@contextmanager
def counted_edits(strategies: Sequence[Strategy]) -> Iterator[list[FlopCount]]:
    """Count what each strategy computes in `edit_gradients` inside the block."""
    counts = [FlopCount() for _ in strategies]
    try:
        for strategy, count in zip(strategies, counts, strict=True):  # an engine need not know of it
            vars(strategy)["edit_gradients"] = partial(run_counted, count, strategy.edit_gradients)
        yield counts
    finally:
        for strategy in strategies:
            vars(strategy).pop("edit_gradients", None)


def run_counted(count: FlopCount, function: Callable[..., Any], *args: object) -> Any:
    """Call a function and count what it computes."""
    with count:
        return function(*args)


def flops_alone(strategy: Strategy, engine: Engine, batch: Batch) -> int:
    """Return the FLOPs of the loss and its gradients where a strategy trains alone, uncompiled.

    It leaves no trace: no running statistics, no draws.
    """
    buffers: dict[str, Tensor] = {}
    for where, module in strategy.named_modules():
        if module.training:
            prefix = f"strategy.{where}." if where else "strategy."
            buffers |= {prefix + name: buffer.clone() for name, buffer in module.named_buffers(recurse=False)}
    trained = [p for p in strategy.parameters() if p.requires_grad]
    with seeds.scope(0, "flops"), FlopCount() as count:
        with engine.forward:
            loss: Tensor = functional_call(Loss(strategy), buffers, arguments_of(batch))
        torch.autograd.grad(loss, trained, allow_unused=True)
    return int(count.total)


def prediction_flops(strategy: Strategy, x: Tensor, y: Tensor, given: int | None, size: int) -> Fraction:
    """Return the FLOPs of predicting one sample in batches of `size`, whatever of it is cached.

    Of a language model they include the head, at the scored positions.

    Part of a batch's cost does not depend on its size (dora's weights), so batches of one and of two are counted.

    Args:
        strategy: after some tasks.
        x: two samples, as inputs of the model; or one, if there are no more.
        y: their labels.
        given: their task, None if the scenario does not give it.
        size: of the batches.
    """
    training = strategy.training
    strategy.eval()
    totals = []
    for part in (x[:1], x):
        with torch.no_grad(), FlopCount() as count:
            prediction = strategy.predict(part, given)
            if strategy.world.predicts_tokens:
                strategy.objective.scores(strategy, prediction.logits, y[:len(part)], given)
        totals.append(count.total)
    strategy.train(training)
    each = (totals[1] - totals[0]) or totals[0]  # there may be one sample only
    return Fraction(each) + Fraction(totals[0] - each, size)


class LoopFlops:
    """The FLOPs of a strategy's own loop (`Strategy.fit`).

    From one batch that it asks for to the next is a step. Counted are what comes before the first, the first of each
    size, one in `EVERY`, and the last of the budget with all that follows it; a step that is not counted costs the
    mean of those of its size that are. A loop that asks for its batches beforehand is so counted whole.

    Args:
        following: gives the indices of the next batch.
        steps: how many batches the budget has.
    """

    def __init__(self, following: Callable[[], Tensor], steps: int) -> None:
        self._following = following
        self.steps = steps
        self.taken = 0
        self.size: int | None = None  # of the batch of the step at hand; None before the first step and in the last
        self.count: FlopCount | None = None  # of the step at hand, if it is counted
        self.counted: defaultdict[int | None, list[int]] = defaultdict(list)  # FLOPs of steps, by size
        self.skipped: Counter[int | None] = Counter()

    def __enter__(self) -> LoopFlops:
        """Begin before the first step."""
        self.count = FlopCount().start()
        return self

    def __exit__(self, *_: object) -> None:
        """End the last step."""
        self._end()

    def following(self) -> Tensor:
        """Return the indices of the next batch: the next step begins, unless the budget is spent."""
        if self.taken >= self.steps:
            return self._following()  # a loader that reads ahead; no step follows
        self._end()
        index = self._following()
        self.taken += 1
        self.size = len(index) if self.taken != self.steps else None
        if self.size is None or self.size not in self.counted or self.taken % EVERY == 0:
            self.count = FlopCount().start()
        return index

    def _end(self) -> None:
        if self.count is None:
            self.skipped[self.size] += 1
        else:
            self.count.stop()
            self.counted[self.size].append(self.count.total)
            self.count = None

    @property
    def total(self) -> int:
        """Return the FLOPs of all steps and of what is outside them."""
        uncounted = sum(Fraction(sum(flops), len(flops)) * self.skipped[size] for size, flops in self.counted.items())
        return sum(map(sum, self.counted.values())) + round(uncounted)
