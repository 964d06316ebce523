"""Run an Avalanche strategy by the training configuration: use the harness's batches, record steps, print nothing."""

from __future__ import annotations

import math
import random
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from avalanche.core import SupervisedPlugin
from avalanche.logging import BaseLogger
from avalanche.training import supervised
from avalanche.training.plugins import EvaluationPlugin
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler

from clbench.core.errors import SpecError
from clbench.strategy.granted import Budget
from clbench_avalanche.experience import places


class Masked(nn.CrossEntropyLoss):
    """Cross-entropy over the outputs that take part: those in `active` [C], or all if that is None."""

    active: Tensor | None = None

    def forward(self, logits: Tensor, y: Tensor) -> Tensor:
        """Return the loss of logits [N, C] and labels [N]."""
        return super().forward(logits if self.active is None else logits.masked_fill(~self.active, float("-inf")), y)


class Batches(Sampler[list[int]]):
    """One pass over a task's samples in the harness's batches."""

    def __init__(self, following: Callable[[], Tensor], count: int) -> None:
        """Yield `count` batches in each pass, from `following`."""
        self.following, self.count = following, count

    def __len__(self) -> int:
        """Return the number of batches in a pass."""
        return self.count

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the indices of each batch's samples."""
        return (self.following().tolist() for _ in range(self.count))


class StepRecorder(SupervisedPlugin):  # type: ignore[misc]
    """Records a task's losses and number of trained weights, steps the schedule, and ends the task on budget."""

    def __init__(self, budget: Budget) -> None:
        """Start to record one task."""
        super().__init__()
        self.budget = budget
        self.losses: list[Tensor] = []
        self.trainable = 0  # weights that the first step can change; some strategies freeze more at the end of a task
        self.schedule: torch.optim.lr_scheduler.LRScheduler | None = None

    def before_training_epoch(self, strategy: Any, **_: Any) -> None:
        """Count the trained weights and start the schedule, now that the number of steps is known."""
        if self.losses:
            return
        self.trainable = sum(p.numel() for p in strategy.model.parameters() if p.requires_grad)
        steps = self.budget.recipe.iterations or strategy.train_epochs * len(strategy.dataloader)
        self.schedule = self.budget.schedule(strategy.optimizer, steps)

    def after_training_iteration(self, strategy: Any, **_: Any) -> None:
        """Record the step."""
        self.losses.append(strategy.loss.detach().reshape(()))
        if self.schedule is not None:
            self.schedule.step()
        if len(self.losses) == self.budget.recipe.iterations:
            strategy.stop_training()


@dataclass(frozen=True)
class BatchOrder:
    """A task's samples by their places in the stream, and the harness's order of batches.

    `following` returns the indices of the next batch within these samples.
    """

    places: list[int]
    following: Callable[[], Tensor]


@contextmanager
def seeded(generator: torch.Generator) -> Iterator[None]:
    """Seed the generators of Python and NumPy, which Avalanche uses too, inside the block; restore them after it."""
    states = random.getstate(), np.random.get_state()
    seed = int(torch.randint(2**31, (1,), generator=generator))
    random.seed(seed)
    np.random.seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


@contextmanager
def without_deprecations() -> Iterator[None]:
    """Suppress Avalanche's warnings about its own deprecated parts, which no filter stops; pass on all others."""
    with warnings.catch_warnings(record=True) as recorded_warnings:
        warnings.simplefilter("always")
        yield
    for warning in recorded_warnings:
        if not issubclass(warning.category, DeprecationWarning):
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


@contextmanager
def without_waiting(agent: Any) -> Iterator[None]:
    """Raise an error if a strategy would wait forever because its memory is too small to fill a batch.

    `cycle`, with which Avalanche's modules repeat a loader, never returns if the loader has no batch.

    Raises:
        SpecError: the strategy requested such a batch.
    """
    def cycle(loader: DataLoader[Any]) -> Iterator[Any]:
        if not len(loader):
            raise SpecError(f"avalanche:{type(agent).__name__}: its memory cannot fill a batch and Avalanche would "
                            "wait forever; choose a larger mem_size, or a smaller batch_size_mem or batch_size")
        while True:
            yield from loader

    module: Any = sys.modules[type(agent).__base__.__module__]
    if not hasattr(module, "cycle"):
        yield
        return
    original_cycle, module.cycle = module.cycle, cycle
    try:
        yield
    finally:
        module.cycle = original_cycle


def build(name: str, model: nn.Module, criterion: Masked, budget: Budget, device: torch.device,
          forward: AbstractContextManager[object], options: dict[str, Any]) -> Any:
    """Return the strategy of that name for a model; `forward` is the context of its forward passes."""
    base: Any = getattr(supervised, name)

    def make_train_dataloader(self: Any, **arguments: Any) -> None:
        """Use the harness's batches if the strategy trains on exactly the task's samples."""
        if places(self.adapted_dataset) == self.batch_order.places:
            count = math.ceil(len(self.adapted_dataset) / self.train_mb_size)
            self.dataloader = DataLoader(self.adapted_dataset, collate_fn=self.adapted_dataset.collate_fn,
                                         batch_sampler=Batches(self.batch_order.following, count))
        else:
            base.make_train_dataloader(self, **arguments)

    def in_precision(self: Any) -> Tensor:
        """Run the model on the batch in the configured precision; losses are in float32, as in clbench's methods."""
        with forward:
            logits: Tensor = base.forward(self)
        return logits.float()

    strategy_class = type(name, (base,), {"make_train_dataloader": make_train_dataloader, "forward": in_precision,
                                          "__module__": __name__})
    return strategy_class(model=model, optimizer=budget.optimizer(model.parameters()), criterion=criterion,
                          train_mb_size=budget.recipe.batch_size, device=device,
                          train_epochs=budget.recipe.epochs or budget.recipe.iterations,  # a pass has at least one step
                          evaluator=EvaluationPlugin(loggers=[BaseLogger()]), **options)
