"""FLOPs of training, counted at one step of each kind, times the number of such steps; and FLOPs of predictions.

Steps of a phase are of one kind if their batches have the same shape; where gradients are edited, the strategy's own
buffers too. What a member of a stack computes is what it would compute alone, and a compiled loss counts as the
uncompiled one: there the loss of the first member is run once more, by itself, for each kind of step. What is cached
for a phase (`clbench.training.cache`) is counted once, where it is computed.

What draws replay (`prepare_batch`) can compute more or less from step to step, in calls of modules: these count
each time, and the rest once for each kind of draw. A strategy's own loop is counted as a whole.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from statistics import mean

import torch
from torch import Tensor
from torch.func import functional_call

from clbench.accounting.flops import FlopCount, counted_modules
from clbench.core import seeds
from clbench.strategy.base import Batch, Strategy, overrides
from clbench.training import precision
from clbench.training.cache import PhaseInputs
from clbench.training.callbacks.interface import Callback, Training
from clbench.training.evaluation import batch_size, given_tasks
from clbench.training.replica import Replica, TaskResult
from clbench.training.sampling import divided
from clbench.training.steps import Loss, TrainStep, arguments_of


class FlopsCallback(Callback):
    """Counts the FLOPs of training on each task, and of predicting a sample after it, for the costs of replicas."""

    def __init__(self) -> None:
        """Begin at 0."""
        self.totals: Counter[int] = Counter()  # of the task at hand, by id of the replica
        self.steps: dict[Hashable, list[int]] = {}  # of a step of each kind in this phase, for each replica
        self.draws: dict[Hashable, int] = {}  # of a draw of each kind in this phase, without calls of modules

    @contextmanager
    def around_prepare(self, replica: Replica, batch: Batch | None = None) -> Iterator[None]:
        """Count what a strategy computes outside of steps or by its own loop, or in `prepare_batch` for a batch."""
        if batch is not None and not overrides(replica.strategy, "prepare_batch"):
            yield
            return
        with FlopCount() if batch is None else self.counted_draw(replica.strategy, batch) as count:
            yield
        self.totals[id(replica)] += count.total

    @contextmanager
    def counted_draw(self, strategy: Strategy, batch: Batch) -> Iterator[FlopCount]:
        """Count what `prepare_batch` computes for a batch in the block; the total is there at the end."""
        kind = len(batch.y), batch.first_pass, sizes_of(strategy)
        with counted_modules() as count:
            if kind in self.draws:
                yield count
            else:
                with FlopCount() as whole:
                    yield count
                self.draws[kind] = whole.total - count.total
        count.total += self.draws[kind]

    def on_phase(self, training: Training, inputs: PhaseInputs) -> None:
        """Begin with no kind of step counted."""
        self.steps, self.draws = {}, {}

    @contextmanager
    def around_step(self, training: Training, batches: Sequence[Batch]) -> Iterator[None]:
        """Add the FLOPs of a step, which is counted if it is the first of its kind."""
        strategies = [replica.strategy for replica in training.replicas]
        kind = kind_of_step(strategies[0], batches[0])
        if kind in self.steps:
            yield
        elif len(strategies) == 1 and not training.compiled:
            with FlopCount() as count:
                yield
            self.steps[kind] = [count.total]
        else:
            assert training.train_step is not None
            loss = sum(flops_alone(strategies[0], training.train_step, part)
                       for _, (part,) in divided(batches[:1], training.recipe.accumulate))
            with counted_edits(strategies) as counts:
                yield
            self.steps[kind] = [loss + edits.total for edits in counts]
        for replica, flops in zip(training.replicas, self.steps[kind], strict=True):
            self.totals[id(replica)] += flops

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
            with precision.forward(training.recipe, strategy.class_mask.device, strategy):
                for given in given_tasks(strategy.stream_info.scenario, task + 1):
                    samples = len(tests.y) if given is None else tests.sizes[given]
                    x, y, _ = next(tests.batches(2, given))
                    flops.append(prediction_flops(strategy, x, y, given, min(size, samples)))
            replica.costs.inference_flops.append(round(mean(flops)))


def kind_of_step(strategy: Strategy, batch: Batch) -> Hashable:
    """Return what steps of a phase that cost the same have in common."""
    sizes = sizes_of(strategy) if overrides(strategy, "edit_gradients") else ()
    return batch.x.shape, batch.y.shape, batch.replayed, sizes


def sizes_of(strategy: Strategy) -> tuple[torch.Size, ...]:
    """Return the shapes of a strategy's own buffers."""
    return tuple([buffer.shape for buffer in strategy._buffers.values() if buffer is not None])


@contextmanager
def counted_edits(strategies: Sequence[Strategy]) -> Iterator[list[FlopCount]]:
    """Count what each strategy computes in `edit_gradients` inside the block."""
    counts = [FlopCount() for _ in strategies]
    try:
        for strategy, count in zip(strategies, counts, strict=True):  # an train_step need not know of it
            vars(strategy)["edit_gradients"] = count(strategy.edit_gradients)
        yield counts
    finally:
        for strategy in strategies:
            vars(strategy).pop("edit_gradients", None)


def flops_alone(strategy: Strategy, train_step: TrainStep, batch: Batch) -> int:
    """Return the FLOPs of the loss and its gradients where a strategy trains alone, uncompiled.

    It leaves no trace: no running statistics, no draws.
    """
    buffers = {f"strategy.{name}": buffer.clone() for name, buffer in strategy.named_buffers()}
    trained = [p for p in strategy.parameters() if p.requires_grad]
    with seeds.scope(0, "flops"), FlopCount() as count:
        with train_step.forward:
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
            if strategy.stream_info.predicts_tokens:
                strategy.objective.scores(strategy, prediction.logits, y[:len(part)], given)
        totals.append(count.total)
    strategy.train(training)
    each = (totals[1] - totals[0]) or totals[0]  # there may be one sample only
    return Fraction(each) + Fraction(totals[0] - each, size)
