"""FLOPs of training and of predictions. In a phase, one step of each kind is counted, for all steps of this kind.

Steps are of one kind if their batches have the same shapes and replayed samples. If the strategy defines how losses or
gradients are computed, its own buffers must have the same shapes, too. A member of a stack counts as if it trained
alone, except that its texts have the padding of the stack, and that a stack whose outputs exceed the limit of the cache
computes them in every step. A compiled loss counts as if it were not compiled. In a stack or compiled, the loss of the
first member runs once more, alone, for each kind of step. What a phase caches (`clbench.training.phase_cache`) is
counted once, when it is computed.

Calls of modules in `prepare_batch` can differ from step to step, so they are counted in every step, and the other
operations once for each kind of draw. A strategy's own training loop is counted as a whole.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from itertools import chain
from statistics import mean

import torch
from torch import Tensor
from torch.func import functional_call

from clbench.accounting.flops import FlopCount, counted_modules
from clbench.core import seeds
from clbench.data.stream import Stream
from clbench.models.scoring import IGNORED
from clbench.strategy.base import Batch, Strategy, overrides
from clbench.strategy.per_sample_gradients import evaluating
from clbench.training import precision
from clbench.training.callbacks.interface import Callback, Training
from clbench.training.evaluation import batch_size, given_tasks
from clbench.training.phase_cache import PhaseInputs
from clbench.training.replica import Replica, TaskResult, require_losses
from clbench.training.sampling import divide_batches
from clbench.training.stacked_step import StrategyCall, loss_of
from clbench.training.steps import TrainStep


class FlopsCallback(Callback):
    """Adds the FLOPs of training on each task, and of predicting a sample after it, to the costs of replicas."""

    def __init__(self) -> None:
        """Start at 0."""
        self.totals: Counter[Replica] = Counter()  # FLOPs of the current task
        self.steps: dict[Hashable, list[int]] = {}  # FLOPs of a step of each kind in this phase, for each replica
        self.draws: dict[Hashable, int] = {}  # FLOPs of a draw of each kind in this phase, without module calls

    @contextmanager
    def around_prepare(self, replica: Replica, batch: Batch | None = None) -> Iterator[None]:
        """Count the FLOPs of a strategy outside of steps or in its own loop; with a batch, those of `prepare_batch`."""
        if batch is not None and not overrides(replica.strategy, "prepare_batch"):
            yield
            return
        with FlopCount() if batch is None else self.count_draw(replica.strategy, batch) as count:
            yield
        self.totals[replica] += count.total

    @contextmanager
    def count_draw(self, strategy: Strategy, batch: Batch) -> Iterator[FlopCount]:
        """Count the FLOPs of `prepare_batch` for a batch inside the block; the total is complete when it ends."""
        kind = len(batch.y), batch.first_pass, sizes_of(strategy)
        with counted_modules() as count:
            if kind in self.draws:
                yield count
            else:
                with FlopCount() as full_count:
                    yield count
                self.draws[kind] = full_count.total - count.total
        count.total += self.draws[kind]

    def on_phase(self, training: Training, inputs: PhaseInputs) -> None:
        """Forget the counts of the previous phase."""
        self.steps, self.draws = {}, {}

    @contextmanager
    def around_step(self, training: Training, batches: Sequence[Batch]) -> Iterator[None]:
        """Add the FLOPs of a step; count them if it is the first step of its kind."""
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
                       for _, (part,) in divide_batches(batches[:1], training.recipe.accumulate))
            with counted_edits(strategies) as counts:
                yield
            self.steps[kind] = [loss + edits.total for edits in counts]
        for replica, flops in zip(training.replicas, self.steps[kind], strict=True):
            self.totals[replica] += flops

    def on_trained(self, training: Training, results: Sequence[TaskResult]) -> None:
        """Add the totals to the costs."""
        for replica in training.replicas:
            replica.costs.train_flops.append(self.totals.pop(replica, 0))

    def on_task(self, training: Training, task: int) -> None:
        """Add the FLOPs of predicting a sample to the costs; if the task ID is given, the mean over tasks."""
        for replica in training.replicas:
            strategy = replica.strategy
            with precision.autocast_context(training.recipe, strategy.class_mask.device, strategy):
                flops = [evaluation_flops(strategy, replica.stream, given_task)
                         for given_task in given_tasks(strategy.stream_info.scenario, task + 1)]
            replica.costs.inference_flops.append(round(mean(flops)))


def kind_of_step(strategy: Strategy, batch: Batch) -> Hashable:
    """Return the kind of a step; steps of one kind in a phase have the same FLOPs."""
    reads_buffers = any(overrides(strategy, name) for name in ("loss", "forward", "edit_gradients"))
    sizes = sizes_of(strategy) if reads_buffers else ()
    return batch.x.shape, batch.y.shape, batch.replayed, sizes


def sizes_of(strategy: Strategy) -> tuple[torch.Size, ...]:
    """Return the shapes of a strategy's buffers, without those of its model."""
    parts = [part.buffers() for name, part in strategy.named_children() if name != "model"]
    return tuple([buffer.shape for buffer in chain(strategy.buffers(recurse=False), *parts)])


@contextmanager
def counted_edits(strategies: Sequence[Strategy]) -> Iterator[list[FlopCount]]:
    """Count the FLOPs of each strategy's `edit_gradients` inside the block."""
    counts = [FlopCount() for _ in strategies]
    try:
        for strategy, count in zip(strategies, counts, strict=True):  # the training step need not know of it
            vars(strategy)["edit_gradients"] = count(strategy.edit_gradients)
        yield counts
    finally:
        for strategy in strategies:
            vars(strategy).pop("edit_gradients", None)


def flops_alone(strategy: Strategy, train_step: TrainStep, batch: Batch) -> int:
    """Return the FLOPs of the loss and its gradients if a strategy trains alone, uncompiled.

    Running statistics and random generators stay unchanged.
    """
    buffers = {f"strategy.{name}": buffer.clone() for name, buffer in strategy.named_buffers()}
    trained = [p for p in strategy.parameters() if p.requires_grad]
    with seeds.scope(0, "flops"), FlopCount() as count:
        with train_step.autocast:
            loss: Tensor = functional_call(StrategyCall(strategy, loss_of), buffers, (batch,))
        require_losses([strategy], loss[None])
        torch.autograd.grad(loss, trained, allow_unused=True)
    return int(count.total)


def evaluation_flops(strategy: Strategy, stream: Stream, task: int | None) -> Fraction:
    """Return the mean FLOPs of predicting a test sample, of the given task or of all, in the batches of evaluation.

    Batches of texts are padded to their longest text. Therefore, two samples are predicted for each length of batches,
    and count for all samples in batches of this length.
    """
    tests = stream.tests
    samples = len(tests.y) if task is None else tests.sizes[task]
    size = min(batch_size(stream, tests.y.device), samples)
    inputs: dict[torch.Size, Tensor] = {}
    counts = Counter[torch.Size]()  # of samples in batches of a shape
    for x, _, _ in tests.batches(size, task) if stream.is_text else [next(tests.batches(2, task))]:
        inputs.setdefault(x.shape[1:], x[:2])
        counts[x.shape[1:]] += len(x)
    total = sum(count * prediction_flops(strategy, inputs[shape], task, size) for shape, count in counts.items())
    head = Fraction()
    if stream.predicts_tokens:
        head = head_flops(strategy, x, torch.cat([y for y, _ in tests.labels(size, task)]), task)
    return Fraction(total, counts.total()) + head


def head_flops(strategy: Strategy, x: Tensor, y: Tensor, task: int | None) -> Fraction:
    """Return the FLOPs of a language model's head at the scored positions of an item, the mean over items.

    Args:
        strategy: the strategy that predicts.
        x: any tokens, [N, L].
        y: the labels of the items, [M, L].
        task: the task of the items; None if the scenario does not give it.
    """
    totals = []
    with evaluating(strategy), torch.no_grad():
        hidden = strategy.predict(x[:1], task).logits[0]
        for positions in (1, 2):  # part of the FLOPs may not depend on the number of positions
            with FlopCount() as count:
                strategy.head_of_task(task)(hidden[:positions])
            totals.append(count.total)
    return Fraction((totals[1] - totals[0]) * int((y[:, 1:] != IGNORED).sum()), len(y))


def prediction_flops(strategy: Strategy, x: Tensor, task: int | None, size: int) -> Fraction:
    """Return the FLOPs of predicting one sample in batches of `size`, as if nothing were cached.

    Part of the FLOPs does not depend on the batch size (dora's weights), so batches of one and two samples are counted.

    Args:
        strategy: the strategy that predicts.
        x: two samples, as inputs of the model; or one, if there are no more.
        task: the task of x; None if the scenario does not give it.
        size: number of samples in a batch.
    """
    totals = []
    with evaluating(strategy), torch.no_grad():
        for part in (x[:1], x):
            with FlopCount() as count:
                strategy.predict(part, task)
            totals.append(count.total)
    sample_flops = (totals[1] - totals[0]) or totals[0]  # x may have a single sample
    return Fraction(sample_flops) + Fraction(totals[0] - sample_flops, size)
