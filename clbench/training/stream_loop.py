"""Training on a stream whose boundaries are hidden: one task, one pass, in the order in which samples arrive.

The loop still works task by task, so that it can evaluate at the true boundaries. The strategy cannot notice them:

- A batch may have samples of two or more tasks. A row of R follows the batch that has its task's last sample.
- There is one optimizer, schedule and phase, and `before_task` and `after_task` are called once for the whole stream.
- Random draws that are otherwise seeded for each task (augmentation, dropout) are seeded for each step.
- `Batch.task` and `Batch.tasks` are 0, `Task.train` is not available, and an output becomes active with its first
  sample.

`Strategy.observe` gets every batch of new samples, even if the strategy takes no steps (`phases` is 0).
`clbench.testing` checks that two streams with the same samples in the same order, and other boundaries, leave a
strategy with the same parameters and buffers, bit for bit.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from clbench.core.errors import SpecError
from clbench.data.samples import Samples
from clbench.data.stream import Stream
from clbench.experiment.recipe import Recipe
from clbench.strategy.base import Task
from clbench.training.budget import whole_phase
from clbench.training.callbacks.interface import Callback
from clbench.training.loop import TrainingLoop
from clbench.training.members import Unstackable, require_same_phases, require_stackable, separate_draws
from clbench.training.optimizers import make_schedule
from clbench.training.phase_cache import PhaseInputs
from clbench.training.precision import Compiler
from clbench.training.replica import Replica, TaskResult, begin_phase, on_host
from clbench.training.sampling import StreamSampler, division_notes
from clbench.training.steps import make_train_step


class StreamLoop(TrainingLoop):
    """Trains replicas, one or a stack of them, on streams with hidden boundaries; phases cache nothing."""

    def __init__(self, replicas: Sequence[Replica], recipe: Recipe, callbacks: Sequence[Callback] = (),
                 learned: int = 0, compiler: Compiler | None = None, cache_bytes: int | None = None) -> None:
        """Start at the beginning, or after the first `learned` tasks.

        Raises:
            Unstackable: the streams have different sizes, or several replicas have their own training loop.
        """
        super().__init__(replicas, recipe.model_copy(update={"optimizer_state": "keep"}), callbacks, compiler,
                         cache_bytes)
        if len({tuple(len(task.train) for task in replica.stream.tasks) for replica in replicas}) > 1:
            raise Unstackable("streams whose tasks have other numbers of samples do not go in one stack")
        self.samplers = {replica: StreamSampler([task.train for task in replica.stream.tasks], recipe.batch_size,
                                                replica.seed, replica.stream.augment) for replica in replicas}
        self.learned = learned

    def take_task_steps(self, tasks: Sequence[Task]) -> list[TaskResult]:
        """Train until all samples of the next task of the stream have been drawn.

        Raises:
            SpecError: the strategy splits the stream into phases, or has its own training loop.
            Unstackable: replicas differ in their phases, or their random draws would depend on each other.
        """
        first, samplers = self.replicas[0].strategy, [self.samplers[replica] for replica in self.replicas]
        strategies = [replica.strategy for replica in self.replicas]
        if first.owns_loop or len(phases := require_same_phases(strategies, tasks)) > 1:
            raise SpecError(f"{type(first).__name__} has phases, or a loop of its own: it cannot be run with hidden "
                            "boundaries")
        samples = require_stackable([sampler.parts[0] for sampler in samplers])
        begin, end = (samplers[0].steps_through(tasks) for tasks in (self.learned, self.learned + 1))
        for replica, sampler in zip(self.replicas, samplers, strict=True):
            sampler.step = begin
            sampler.activate(replica.strategy, 0, begin)  # checkpoints do not store `class_mask`
        index, self.learned = self.learned, self.learned + 1
        if not phases:
            self.callbacks.on_step(self, index, 0, 0)
            for replica, sampler in zip(self.replicas, samplers, strict=True):
                replica.strategy.train()
                while sampler.step < end:
                    sampler.observe_next_batch(replica.strategy, partial(self.callbacks.around_prepare, replica))
            return [TaskResult(steps=0) for _ in self.replicas]
        self._add_notes(division_notes(first, self.recipe))
        losses = self._train_stream(samplers, samples, tasks, index, begin, end)
        columns = on_host(torch.stack(losses)) if losses else torch.empty(0, len(self.replicas))
        return [TaskResult.of(column, index, replica.strategy.trainable(), len(column))
                for replica, column in zip(self.replicas, columns.unbind(1), strict=True)]

    def _train_stream(self, samplers: list[StreamSampler], samples: list[Samples], tasks: Sequence[Task], index: int,
                      begin: int, end: int) -> list[Tensor]:
        """Take steps `begin` to `end` of the stream, which belong to task `index`; return the losses [S] of each."""
        phase = whole_phase(self.recipe, self.replicas[0].stream)
        draw_contexts = separate_draws([replica.seed for replica in self.replicas], index,
                                       self.replicas[0].strategy.class_mask.device)
        for replica, task, draws in zip(self.replicas, tasks, draw_contexts, strict=True):
            if begin:
                replica.strategy.train()
                continue
            with draws, self.callbacks.around_prepare(replica):
                begin_phase(replica.strategy, task, phase)
        self.train_step = make_train_step([replica.strategy for replica in self.replicas], self.recipe, self.train_step,
                                          self.compiler)
        schedule = make_schedule(self.recipe, self.train_step.optimizer, phase.steps, phase.steps)
        if schedule is not None:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", ".*before `optimizer.step", UserWarning)  # they were taken before
                for _ in range(begin):
                    schedule.step()
        inputs = PhaseInputs(samples, samples)
        self.callbacks.on_phase(self, inputs)
        self.callbacks.on_step(self, index, 0, end - begin)
        losses: list[Tensor] = []
        self._take_steps(end - begin, inputs, samplers, schedule, losses, index, end - begin, begin)
        self.train_step.close()
        return losses


def merge_tasks(stream: Stream) -> Stream:
    """Return a stream with hidden boundaries as one task, as the strategy sees it; dry runs use it."""
    parts = [task.train.of_one_task() for task in stream.tasks]
    single_task = replace(stream.tasks[0], classes=tuple(range(stream.classes)), train=Samples.concat(*parts),
                          class_names=(), train_classes=())
    return replace(stream, tasks=(single_task,), hidden=False)
