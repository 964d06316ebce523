"""The training loop. It trains one replica, or several replicas as a stack, with any method.

    for each task:
        strategy.before_task
        for each phase:
            strategy.before_phase; create an optimizer
            for each step:
                draw a batch, add replay (prepare_batch), augment and prepare the inputs, collate texts
                compute losses and gradients, edit_gradients, optimizer step
        strategy.after_task

A replica is one trial in training, and a stack is several replicas that take their steps together. A phase is a part of
a task's steps with its own optimizer. before_task, the steps and after_task each seed the global generators of torch,
NumPy and Python, so draws in one do not affect the others. The optimizer clips gradients (`optimizers`). Callbacks
record costs and curves, evaluate, and write checkpoints; `clbench.execution.trial_runner` selects them. Streams with
hidden boundaries use `clbench.training.stream_loop`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from clbench.core import seeds
from clbench.core.device import synchronize
from clbench.core.errors import DivergedError
from clbench.data.photo_samples import decode_ahead
from clbench.data.prefetch import prefetch
from clbench.data.samples import Samples
from clbench.experiment.recipe import Recipe
from clbench.strategy.base import Batch, Task
from clbench.strategy.granted import PhaseSpec
from clbench.training import phase_cache, precision
from clbench.training.budget import phases_of, steps_of, steps_per_epoch
from clbench.training.callbacks.interface import Callback, Callbacks
from clbench.training.costs import Clock
from clbench.training.members import Unstackable, require_same_phases, require_stackable, separate_draws
from clbench.training.optimizers import make_schedule
from clbench.training.own_loop import run_own_loop
from clbench.training.phase_cache import PhaseInputs
from clbench.training.replica import Replica, TaskResult, begin_phase, on_host
from clbench.training.sampling import BatchSampler, division_notes, item_lengths
from clbench.training.steps import TrainStep, keep_members, make_train_step, take_step

CHECK_EVERY = 256  # steps between checks whether all replicas have diverged; each check waits for the device


class TrainingLoop:
    """Trains replicas task by task and drops those that diverge.

    Args:
        replicas: trials that differ only in their seeds and `Scalar` options.
        recipe: the training configuration.
        callbacks: see `clbench.training.callbacks.interface`.
        compiler: compiles the losses; None to run them uncompiled.
        cache_bytes: most bytes that a phase may cache; None for the default.
        verify_caches: whether to recompute and compare everything that a phase has cached when it ends.
    """

    def __init__(self, replicas: Sequence[Replica], recipe: Recipe, callbacks: Sequence[Callback] = (),
                 compiler: precision.Compiler | None = None, cache_bytes: int | None = None,
                 verify_caches: bool = False) -> None:
        """Prepare for training; `run` starts it.

        Raises:
            Unstackable: there are several replicas, and their strategy has its own training loop.
        """
        if len(replicas) > 1 and replicas[0].strategy.owns_loop:
            raise Unstackable(f"{type(replicas[0].strategy).__name__} trains by a loop of its own, one seed at a time")
        self.replicas = list(replicas)
        self.recipe = recipe
        self.callbacks = Callbacks(callbacks)
        self.compiler = compiler
        self.compiled = compiler is not None
        self.cache_bytes = cache_bytes
        self.verify_caches = verify_caches
        self.augment = replicas[0].stream.augment
        self.train_step: TrainStep | None = None  # of the latest phase; its optimizer state may be kept

    def run(self, first_task: int = 0) -> None:
        """Train on the tasks from index `first_task` on."""
        tasks = len(self.replicas[0].stream.tasks)
        self.callbacks.on_start(self)
        for index in range(first_task, tasks):
            if self.replicas:
                self.train_task(index)
            self.callbacks.on_task(self, index)
        if self.replicas:
            self.callbacks.on_end(self)

    def train_task(self, index: int) -> list[TaskResult]:
        """Train on a task, record its costs on each replica, and return a result for each replica."""
        device = self.replicas[0].strategy.class_mask.device
        began = Clock.now()
        tasks = []
        for replica in self.replicas:
            with self.callbacks.around_prepare(replica):
                tasks.append(replica.begin(index))
        with self.replicas[0].seed_training(index):
            steps_began = Clock.now()
            results = self.take_task_steps(tasks)
            synchronize(device)
            steps_ended = Clock.now()
        for replica, task, result in zip(self.replicas, tasks, results, strict=True):
            if result.diverged is None and replica.stream.ends_at(index):
                try:
                    with self.callbacks.around_prepare(replica):
                        replica.finish(task)
                except DivergedError as error:
                    result.diverged = error
                result.steps += replica.strategy.extra_steps
        synchronize(device)
        ended = Clock.now()
        self._add_notes(self.compiler.notes if self.compiler else ())
        count = len(self.replicas)
        training, total = steps_ended.since(steps_began).share(count), ended.since(began).share(count)
        for replica, result in zip(self.replicas, results, strict=True):
            replica.add_result(index, result, training, total.since(training))
        self.callbacks.on_trained(self, results)
        self.drop_failed()
        return results

    def take_task_steps(self, tasks: Sequence[Task]) -> list[TaskResult]:
        """Train on a task, with one `Task` for each replica.

        A strategy with its own training loop trains by it. No step is taken if the strategy has no phases.

        Raises:
            Unstackable: replicas have different numbers of samples, or their random draws would depend on each other.
            SpecError: there are fewer steps than phases.
        """
        strategy, index = self.replicas[0].strategy, tasks[0].index
        if strategy.owns_loop:
            self.callbacks.on_step(self, index, 0, 0)
            around = self.callbacks.around_prepare(self.replicas[0])
            return [run_own_loop(self.replicas[0], tasks[0], self.recipe, around)]
        if not require_same_phases([replica.strategy for replica in self.replicas], tasks):
            self.callbacks.on_step(self, index, 0, 0)
            return [TaskResult(steps=0) for _ in tasks]
        self._add_notes(division_notes(strategy, self.recipe))
        draw_contexts = separate_draws([replica.seed for replica in self.replicas], index, strategy.class_mask.device)
        members = [*zip(self.replicas, tasks, draw_contexts, strict=True)]
        task_samples = []
        for replica, task, draws in members:
            with draws, self.callbacks.around_prepare(replica):
                task_samples.append(replica.strategy.training_samples(task))
        task_samplers = self._samplers(require_stackable(task_samples), tasks)
        steps = steps_of(self.recipe, len(task_samples[0]))
        phases = phases_of(strategy, tasks[0], self.recipe, steps)
        trainable, losses = [0] * len(tasks), list[Tensor]()
        for phase in phases:
            own_samples: list[Samples | None] = []
            for replica, task, draws in members:
                with draws, self.callbacks.around_prepare(replica):
                    begin_phase(replica.strategy, task, phase)
                    own_samples.append(replica.strategy.phase_samples(task, phase))
            samples, samplers = task_samples, task_samplers
            if (phase_samples := [part for part in own_samples if part is not None]):  # all replicas have them, or none
                samples = require_stackable(phase_samples)
                samplers = self._samplers(samples, tasks, phase)
                for sampler in task_samplers:
                    sampler.can_be_first = False
            self._train_phase(phase, samples, samplers, losses, index, steps)
            trainable = [*map(max, trainable, (replica.strategy.trainable() for replica in self.replicas))]
            if len(phases) > 1 and not bool(torch.isfinite(on_host(losses[-1])).any()):
                break  # the next phase would begin with weights that are not finite
        return [TaskResult.of(column, index, number, phases[-1].steps)
                for number, column in zip(trainable, on_host(torch.stack(losses)).unbind(1), strict=True)]

    def _train_phase(self, phase: PhaseSpec, samples: list[Samples], samplers: list[BatchSampler], losses: list[Tensor],
                     index: int, steps: int) -> None:
        """Take the steps of a phase and append the losses [S] of each; task `index` has `steps` steps in all."""
        strategies = [replica.strategy for replica in self.replicas]
        inputs = self._inputs(samples, index, phase.steps * self.recipe.batch_size)
        self.train_step = make_train_step(strategies, self.recipe, self.train_step, self.compiler)
        self.callbacks.on_phase(self, inputs)
        schedule = make_schedule(self.recipe, self.train_step.optimizer, phase.steps,
                                 steps_per_epoch(self.recipe, len(samples[0])))
        requests = [sampler.peek_requests(strategy, phase.steps)
                    for sampler, strategy in zip(samplers, strategies, strict=True)]
        with (phase_cache.start_at(strategies, inputs.start),
              prefetch(inputs.samples[0], partial(samplers[0].next_indices, torch.device("cpu")), phase.steps) as first,
              decode_ahead([first, *inputs.samples[1:]], requests) as decoded):
            if not losses:
                self.callbacks.on_step(self, index, 0, steps)
            self._take_steps(phase.steps, replace(inputs, samples=decoded), samplers, schedule, losses, index, steps)
        self.train_step.close()
        inputs.verify(strategies, seeds.derive(self.replicas[0].seed, "phase", index, phase), self.verify_caches)

    def _take_steps(self, count: int, inputs: PhaseInputs, samplers: Sequence[BatchSampler],
                    schedule: LRScheduler | None, losses: list[Tensor], index: int, steps: int,
                    steps_before: int = 0) -> None:
        """Take `count` steps and append the losses [S] of each; stop if all replicas have diverged.

        `steps_before` is the number of steps before this task if boundaries are hidden, else 0. With it, divergence is
        checked at the same steps of the stream, wherever its tasks end.
        """
        assert self.train_step is not None
        for _ in range(count):
            batches = self._draw(inputs, samplers)
            with self.callbacks.around_step(self, batches):
                losses.append(take_step(self.train_step, batches, self.recipe.accumulate))
            if schedule is not None:
                schedule.step()
            self.callbacks.on_step(self, index, len(losses), steps)
            if (steps_before + len(losses)) % CHECK_EVERY == 0 and not bool(torch.isfinite(losses[-1]).any()):
                break

    def _draw(self, inputs: PhaseInputs, samplers: Sequence[BatchSampler]) -> list[Batch]:
        """Return the next batch of each replica as the loss gets it."""
        batches = [sampler.next_batch(part) if inputs.prepared else
                   sampler.next_prepared(replica.strategy, part, partial(self.callbacks.around_prepare, replica))
                   for replica, sampler, part in zip(self.replicas, samplers, inputs.samples, strict=True)]
        return self.replicas[0].strategy.collate(batches)

    def _inputs(self, samples: list[Samples], index: int, draws: int) -> PhaseInputs:
        """Return the inputs of a phase, prepared or cached if that saves work; it has `draws` draws of samples."""
        if self.augment:
            return PhaseInputs(samples, samples)
        autocast = precision.autocast_context(self.recipe, self.replicas[0].strategy.class_mask.device)
        around = [self.callbacks.around_prepare(replica) for replica in self.replicas]
        return phase_cache.phase_inputs([replica.strategy for replica in self.replicas], samples, index, draws,
                                        self.recipe.batch_size, autocast, self.cache_bytes, around)

    def _samplers(self, samples: Sequence[Samples], tasks: Sequence[Task], phase: int | None = None
                  ) -> list[BatchSampler]:
        """Return a batch sampler for each replica; `phase` is set if the samples belong to that phase alone."""
        return [BatchSampler(len(part), self.recipe.batch_size, replica.seed, task.index, self.augment, phase,
                             self.recipe.repeats, item_lengths(part, self.recipe))
                for part, task, replica in zip(samples, tasks, self.replicas, strict=True)]

    def _add_notes(self, notes: Iterable[str]) -> None:
        """Add notes to each replica."""
        for replica in self.replicas:
            for note in notes:
                replica.add_note(note)

    def drop_failed(self) -> None:
        """Drop the replicas that have failed. A replica fails if a loss, an output or a score is not finite."""
        positions = [position for position, replica in enumerate(self.replicas) if replica.failure is None]
        if len(positions) == len(self.replicas):
            return
        self.replicas = [self.replicas[position] for position in positions]
        if self.replicas and self.train_step is not None:
            keep_members(self.train_step, positions)
