"""Training on a stream whose boundaries are hidden: one task, one pass, in the order in which samples arrive.

The harness goes on task by task, to evaluate where tasks really end, and nothing of that reaches the strategy:

- Batches run on across boundaries. A row of R is taken after the batch that has its task's last sample.
- There is one optimiser, schedule and phase, and `before_task` and `after_task` are called once for the whole stream.
- Draws that would begin anew with each task (augmentation, dropout) begin anew with each step.
- `Batch.task` and `Batch.tasks` are 0, `Task.train` cannot be had, and an output becomes active with its first sample.

`Strategy.observe` is shown the samples as they pass, also of who takes no steps (`phases` is 0).
`clbench.testing` checks that two streams with the same samples in the same order, and other boundaries, leave a
strategy with the same parameters and buffers, bit for bit.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from clbench.core import seeds
from clbench.core.device import send
from clbench.core.errors import SpecError
from clbench.data.augmentation import Augmentation
from clbench.data.samples import Samples
from clbench.data.stream import Stream
from clbench.experiment.spec import Recipe
from clbench.strategy.base import Batch, Strategy, Task, overrides
from clbench.training.budget import whole_phase
from clbench.training.cache import PhaseInputs
from clbench.training.curve import Watch
from clbench.training.flops import FlopCount
from clbench.training.lifecycle import Trained, begin_phase
from clbench.training.losses import diverged, last_tenths, on_host
from clbench.training.numerics import Compiler
from clbench.training.optimizers import make_schedule
from clbench.training.stacking import Unstackable, make_engine
from clbench.training.step_flops import PhaseFlops
from clbench.training.trainer import Order, Trainer, stackable


class Flow(Order):
    """The order in which the samples of a stream pass: task after task, each shuffled as in its own first pass."""

    def __init__(self, parts: Sequence[Samples], batch_size: int, seed: int,
                 augment: Augmentation | None = None) -> None:
        """Begin with the first sample of the first part."""
        super().__init__(sum(map(len, parts)), batch_size, seed, 0, augment)
        self.parts, self.seed, self.passes = list(parts), seed, 1
        self.step = 0  # that comes next
        self.ends = list(itertools.accumulate(map(len, parts)))
        self.rows = [torch.randperm(len(part), generator=seeds.generator(seed, "data", index))
                     for index, part in enumerate(parts)]
        self.y = torch.cat([part.y[send(rows, part.y.device)] for part, rows in zip(parts, self.rows, strict=True)])

    def until(self, tasks: int) -> int:
        """Return after how many steps all samples of the first tasks have passed."""
        return math.ceil(self.ends[tasks - 1] / self.batch_size) if tasks else 0

    def activate(self, strategy: Strategy, begin: int, end: int) -> None:
        """Let the outputs of the samples of steps `begin` to `end` take part in losses from now on."""
        strategy.active[:, self.y[begin * self.batch_size:end * self.batch_size]] = True

    def batch(self, samples: Samples) -> Batch:
        """Return the next batch, raw; it may have samples of several tasks, and says of all that they are of task 0."""
        begin, end = self.step * self.batch_size, (self.step + 1) * self.batch_size
        self.step += 1
        taken, start = [], 0
        for part, rows, stop in zip(self.parts, self.rows, self.ends, strict=True):
            own = rows[max(begin - start, 0):max(end - start, 0)]
            if len(own):
                taken.append(part.take(send(own, part.index_device)))
            start = stop
        found = taken[0] if len(taken) == 1 else Samples.concat(*taken)
        return Batch(found.x, found.y, torch.zeros_like(found.tasks), 0)

    def ready(self, strategy: Strategy, samples: Samples, count: PhaseFlops | None = None) -> Batch:
        """Return the next batch, augmented and prepared, its outputs active, and draws begun anew."""
        seeds.reseed(self.seed, "training", "step", self.step)
        self.draws = (seeds.generator(self.seed, "augmentation", "step", self.step),
                      seeds.generator(self.seed, "augmentation of replay", "step", self.step))
        batch, flops = self.observed(strategy)
        if count is not None:
            count.totals[count.strategies.index(strategy)] += flops
        return self.prepared(strategy, batch, count)

    def observed(self, strategy: Strategy) -> tuple[Batch, int]:
        """Return the next batch, raw, after the strategy has observed it, and what that computed."""
        self.activate(strategy, self.step, self.step + 1)
        batch = self.batch(self.parts[0])
        if not overrides(strategy, "observe"):
            return batch, 0
        with FlopCount() as spent:
            strategy.observe(batch)
        return batch, spent.total


class StreamTrainer(Trainer):
    """Trains strategies, one or a stack of them, on streams with hidden boundaries; `fit` is asked task by task."""

    def __init__(self, strategies: Sequence[Strategy], recipe: Recipe, seeds: Sequence[int], streams: Sequence[Stream],
                 learned: int = 0, compiler: Compiler | None = None, watch: Watch | None = None) -> None:
        """Begin, or go on after `learned` of the streams' tasks; members have a stream each.

        Raises:
            Unstackable: their streams are of different sizes, or what they draw would depend on each other.
        """
        super().__init__(strategies, recipe.model_copy(update={"optimizer_state": "keep"}), seeds,
                         streams[0].augment, compiler, watch=watch)
        if len({tuple(len(task.train) for task in stream.tasks) for stream in streams}) > 1:
            raise Unstackable("streams whose tasks have other numbers of samples do not go in one stack")
        self.streams = list(streams)
        self.flows = [Flow([task.train for task in stream.tasks], recipe.batch_size, seed, stream.augment)
                      for stream, seed in zip(streams, seeds, strict=True)]
        self.learned = learned

    def fit(self, tasks: Sequence[Task]) -> list[Trained]:
        """Train until all samples of one more of the stream's tasks have passed.

        Raises:
            SpecError: a strategy splits the stream into phases, or trains by a loop of its own.
            Unstackable: what members draw would depend on each other.
        """
        first = self.strategies[0]
        if first.owns_loop or (phases := first.phases(tasks[0])) not in (0, 1):
            raise SpecError(f"{type(first).__name__} has phases, or a loop of its own: it cannot be run with hidden "
                            "boundaries")
        samples = stackable([flow.parts[0] for flow in self.flows])
        steps = range(self.flows[0].until(self.learned), self.flows[0].until(self.learned + 1))
        for strategy, flow in zip(self.strategies, self.flows, strict=True):
            flow.step = steps.start
            flow.activate(strategy, 0, steps.start)  # which no checkpoint keeps
        self.learned += 1
        if not phases:
            if self.watch is not None:
                self.watch.look(self.learned - 1, 0)
            return [self._watched(*own) for own in zip(self.strategies, self.flows, strict=False)]
        phase = whole_phase(self.recipe, self.streams[0])
        for strategy, task in zip(self.strategies, tasks, strict=True):
            if not steps.start:
                begin_phase(strategy, task, phase)
            strategy.train()
        losses: list[Tensor] = []
        given = PhaseInputs(samples, samples)
        engine = self.engine = make_engine(self.strategies, self.recipe, self.engine, self.compiler)
        schedule = make_schedule(self.recipe, engine.optimizer, phase.steps)
        if schedule is not None:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", ".*before `optimizer.step", UserWarning)  # those are over
                for _ in range(steps.start):
                    schedule.step()
        count = PhaseFlops(self.strategies, given, self.compiler is not None)
        look = self._look(self.learned - 1, len(steps), engine, steps.start)
        look(steps.start)
        self._take_steps(steps, engine, count, self.flows, samples, False, schedule, losses, look)
        engine.close()
        most = first.trainable()
        found = on_host(torch.stack(losses)) if losses else torch.empty(0, len(self.strategies))
        return [Trained(len(steps), most, diverged(column, self.learned - 1), flops, last_tenths(column, len(column)))
                for column, flops in zip(found.unbind(1), count.totals, strict=True)]

    def keep(self, strategies: Sequence[Strategy]) -> None:
        """Continue with these members only."""
        chosen = [i for i, s in enumerate(self.strategies) if any(s is k for k in strategies)]
        self.streams, self.flows = [self.streams[i] for i in chosen], [self.flows[i] for i in chosen]
        super().keep(strategies)

    def _watched(self, strategy: Strategy, flow: Flow) -> Trained:
        """Show a strategy that takes no steps the samples of one more task."""
        strategy.train()
        flops = 0
        while flow.step < flow.until(self.learned):
            flops += flow.observed(strategy)[1]
        return Trained(0, 0, flops=flops)


def in_one_task(stream: Stream) -> Stream:
    """Return a stream with hidden boundaries as the one task that it is for a strategy, to be counted on shapes."""
    parts = [Samples(task.train.x, task.train.y, torch.zeros_like(task.train.tasks)) for task in stream.tasks]
    one = replace(stream.tasks[0], classes=tuple(range(stream.classes)), train=Samples.concat(*parts), class_names=(),
                  met=())
    return replace(stream, tasks=(one,), hidden=False)


def trainer_of(strategies: Sequence[Strategy], recipe: Recipe, seeds: Sequence[int], streams: Sequence[Stream],
               learned: int = 0, compiler: Compiler | None = None, cache_bytes: int | None = None,
               watch: Watch | None = None, verify_caches: bool = False) -> Trainer:
    """Return the trainer for strategies on their streams, which have hidden boundaries or not; see `Trainer`.

    `learned` says after how many tasks it goes on.
    """
    if streams[0].hidden:
        return StreamTrainer(strategies, recipe, seeds, streams, learned, compiler, watch)
    return Trainer(strategies, recipe, seeds, streams[0].augment, compiler, cache_bytes, watch, verify_caches)
