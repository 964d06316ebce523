"""Callbacks of the training loop.

A run calls the methods of a callback in this order. A method that begins with `around` returns a context for the work
that is named on the right.

    on_start
    for each task:
        around_prepare(replica)                   before_task
        around_prepare(replica)                   training_samples
        for each phase:
            around_prepare(replica)               before_phase and phase_samples, and computing what the phase caches
            on_phase
            on_step                               only in the first phase: step 0
            for each step:
                around_prepare(replica, batch)    prepare_batch
                around_step                       loss, gradients, optimizer step
                on_step
        around_prepare(replica)                   after_task
        on_trained
        on_task
    on_end

If a strategy has no phases or its own training loop, `on_step` is called once, with step 0, and there are no calls for
`training_samples`, phases and steps. A strategy's own training loop runs in one `around_prepare(replica)`. With hidden
boundaries, `on_phase` and step 0 come in every task. But `before_task` and `before_phase` are called only in the first
task, `after_task` only in the last one, and `training_samples` and `phase_samples` never.
`clbench.execution.trial_runner` selects the callbacks of a run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Protocol

from clbench.experiment.recipe import Recipe
from clbench.strategy.base import Batch, overrides
from clbench.training.phase_cache import PhaseInputs
from clbench.training.replica import Replica, TaskResult
from clbench.training.steps import TrainStep


class Training(Protocol):
    """The attributes of the training loop that callbacks use."""

    replicas: list[Replica]  # without those that failed before; one that diverges stays until after `on_trained`
    recipe: Recipe
    train_step: TrainStep | None  # the training step of the current phase, or of the latest one
    compiled: bool  # whether losses are compiled
    cache_bytes: int | None  # most bytes that caches may take; None for the default

    def drop_failed(self) -> None:
        """Keep only the replicas that have not failed."""


class Callback:
    """Base class of callbacks. Its methods do nothing; a subclass overrides those that it needs."""

    def on_start(self, training: Training) -> None:
        """Act before the first task of a run."""

    def around_prepare(self, replica: Replica, batch: Batch | None = None) -> AbstractContextManager[object]:
        """Return a context for the computations of a strategy outside of steps, or in its own training loop.

        `batch` is the argument of `prepare_batch`, and None for all other computations.
        """
        return nullcontext()

    def on_phase(self, training: Training, inputs: PhaseInputs) -> None:
        """Act when a phase begins, after its inputs have been prepared."""

    def around_step(self, training: Training, batches: Sequence[Batch]) -> AbstractContextManager[object]:
        """Return a context for a step on prepared batches, one for each replica."""
        return nullcontext()

    def on_step(self, training: Training, task: int, step: int, steps: int) -> None:
        """Act before the first step of a task (`step` is 0), then after each step.

        Parameters still have the gradients of the step (`training.train_step.trained`).
        """

    def on_trained(self, training: Training, results: Sequence[TaskResult]) -> None:
        """Act after training on a task; `results` has one result per replica, including those that have diverged."""

    def on_task(self, training: Training, task: int) -> None:
        """Act after a task, on the replicas that have not diverged."""

    def on_end(self, training: Training) -> None:
        """Act after the last task, on the replicas that have learned all of them."""


class Callbacks(Callback):
    """Calls several callbacks in order."""

    def __init__(self, callbacks: Sequence[Callback] = ()) -> None:
        """Store the callbacks in the order in which they are called."""
        self.callbacks = list(callbacks)
        self.preparing = self._find_overriding("around_prepare")
        self.stepping = self._find_overriding("around_step")

    def _find_overriding(self, name: str) -> list[Callback]:
        """Return the callbacks that override a method, because every context takes time in each step."""
        return [callback for callback in self.callbacks if overrides(callback, name, Callback)]

    def on_start(self, training: Training) -> None:
        """Call all callbacks while replicas are left; a callback can mark replicas as failed."""
        for callback in self.callbacks:
            if training.replicas:
                callback.on_start(training)
                training.drop_failed()

    def around_prepare(self, replica: Replica, batch: Batch | None = None) -> AbstractContextManager[object]:
        """Return the contexts of all callbacks as one."""
        return nest_contexts([callback.around_prepare(replica, batch) for callback in self.preparing])

    def on_phase(self, training: Training, inputs: PhaseInputs) -> None:
        """Call all callbacks."""
        for callback in self.callbacks:
            callback.on_phase(training, inputs)

    def around_step(self, training: Training, batches: Sequence[Batch]) -> AbstractContextManager[object]:
        """Return the contexts of all callbacks as one."""
        return nest_contexts([callback.around_step(training, batches) for callback in self.stepping])

    def on_step(self, training: Training, task: int, step: int, steps: int) -> None:
        """Call all callbacks."""
        for callback in self.callbacks:
            callback.on_step(training, task, step, steps)

    def on_trained(self, training: Training, results: Sequence[TaskResult]) -> None:
        """Call all callbacks."""
        for callback in self.callbacks:
            callback.on_trained(training, results)

    def on_task(self, training: Training, task: int) -> None:
        """Call all callbacks while replicas are left; a callback can mark replicas as failed."""
        for callback in self.callbacks:
            if training.replicas:
                callback.on_task(training, task)
                training.drop_failed()

    def on_end(self, training: Training) -> None:
        """Call all callbacks."""
        for callback in self.callbacks:
            callback.on_end(training)


@contextmanager
def enter_contexts(contexts: Sequence[AbstractContextManager[object]]) -> Iterator[None]:
    """Enter contexts one after the other."""
    with ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context)
        yield


def nest_contexts(contexts: Sequence[AbstractContextManager[object]]) -> AbstractContextManager[object]:
    """Return several contexts as one."""
    if not contexts:
        return nullcontext()
    return contexts[0] if len(contexts) == 1 else enter_contexts(contexts)
