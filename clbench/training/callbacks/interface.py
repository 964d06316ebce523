"""Callbacks of the training loop: what they can watch, and several of them as one.

A run calls them in this order; the methods that begin with `around` return contexts.

    on_start
    for each task:
        around_prepare(replica)                   before_task
        for each phase:
            around_prepare(replica)               before_phase, and computing what the phase caches
            on_phase
            for each step:
                around_prepare(replica, batch)    prepare_batch
                around_step                       loss, gradients, optimizer step
                on_step
        around_prepare(replica)                   after_task
        on_trained
        on_task
    on_end

A strategy with its own loop has one `around_prepare(replica)` in the place of phases and steps.
`clbench.execution.trial_runner` puts the callbacks of a run together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Protocol

from clbench.experiment.recipe import Recipe
from clbench.strategy.base import Batch, overrides
from clbench.training.cache import PhaseInputs
from clbench.training.replica import Replica, TaskResult
from clbench.training.steps import TrainStep


class Training(Protocol):
    """What callbacks see of the loop."""

    replicas: list[Replica]  # those that have not diverged
    recipe: Recipe
    train_step: TrainStep | None  # what takes steps at the moment, or took the last ones
    compiled: bool  # whether losses are compiled


class Callback:
    """Watches training. Every method does nothing; a subclass overrides what it needs."""

    def on_start(self, training: Training) -> None:
        """Act before the first task of a run."""

    def around_prepare(self, replica: Replica, batch: Batch | None = None) -> AbstractContextManager[object]:
        """Return a context for what a strategy computes outside of steps, or by its own loop.

        `batch` is given for `prepare_batch`.
        """
        return nullcontext()

    def on_phase(self, training: Training, inputs: PhaseInputs) -> None:
        """Act when a phase begins, once its inputs are there."""

    def around_step(self, training: Training, batches: Sequence[Batch]) -> AbstractContextManager[object]:
        """Return a context for a step on prepared batches, one for each replica."""
        return nullcontext()

    def on_step(self, training: Training, task: int, step: int, steps: int) -> None:
        """Act before the first step of a task (`step` is 0), then after each step.

        Parameters still have the gradients of the step (`training.train_step.trained`).
        """

    def on_trained(self, training: Training, results: Sequence[TaskResult]) -> None:
        """Act when a task is learned, also on replicas that have diverged in it: a result for each."""

    def on_task(self, training: Training, task: int) -> None:
        """Act after a task, on the replicas that have not diverged."""

    def on_end(self, training: Training) -> None:
        """Act after the last task, on the replicas that have learned all of them."""


class Callbacks(Callback):
    """Several callbacks as one."""

    def __init__(self, callbacks: Sequence[Callback] = ()) -> None:
        """Call them in this order."""
        self.callbacks = list(callbacks)
        self.preparing = self._overriding("around_prepare")
        self.stepping = self._overriding("around_step")

    def _overriding(self, name: str) -> list[Callback]:
        """Return the callbacks that have a method of their own: contexts cost time in every step."""
        return [callback for callback in self.callbacks if overrides(callback, name, Callback)]

    def on_start(self, training: Training) -> None:
        """Call them all."""
        for callback in self.callbacks:
            callback.on_start(training)

    def around_prepare(self, replica: Replica, batch: Batch | None = None) -> AbstractContextManager[object]:
        """Return the contexts of all."""
        return nested([callback.around_prepare(replica, batch) for callback in self.preparing])

    def on_phase(self, training: Training, inputs: PhaseInputs) -> None:
        """Call them all."""
        for callback in self.callbacks:
            callback.on_phase(training, inputs)

    def around_step(self, training: Training, batches: Sequence[Batch]) -> AbstractContextManager[object]:
        """Return the contexts of all."""
        return nested([callback.around_step(training, batches) for callback in self.stepping])

    def on_step(self, training: Training, task: int, step: int, steps: int) -> None:
        """Call them all."""
        for callback in self.callbacks:
            callback.on_step(training, task, step, steps)

    def on_trained(self, training: Training, results: Sequence[TaskResult]) -> None:
        """Call them all."""
        for callback in self.callbacks:
            callback.on_trained(training, results)

    def on_task(self, training: Training, task: int) -> None:
        """Call them all."""
        for callback in self.callbacks:
            callback.on_task(training, task)

    def on_end(self, training: Training) -> None:
        """Call them all."""
        for callback in self.callbacks:
            callback.on_end(training)


@contextmanager
def entered(contexts: Sequence[AbstractContextManager[object]]) -> Iterator[None]:
    """Enter contexts one after the other."""
    with ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context)
        yield


def nested(contexts: Sequence[AbstractContextManager[object]]) -> AbstractContextManager[object]:
    """Return several contexts as one."""
    if not contexts:
        return nullcontext()
    return contexts[0] if len(contexts) == 1 else entered(contexts)
