"""Training with a strategy's own loop (`Strategy.fit`), for example from another library."""

from __future__ import annotations

from functools import partial

import torch

from clbench.core.errors import SpecError
from clbench.data.photo_samples import crops_originals
from clbench.experiment.recipe import Recipe
from clbench.strategy.base import Task
from clbench.strategy.granted import Budget
from clbench.training.budget import steps_per_epoch
from clbench.training.callbacks.interface import Callback
from clbench.training.optimizers import make_optimizer, make_schedule, require_head_rate
from clbench.training.replica import Replica, TaskResult, diverged, last_tenths, on_host
from clbench.training.sampling import BatchSampler


def fit_by_itself(replica: Replica, task: Task, recipe: Recipe, callback: Callback) -> TaskResult:
    """Train a strategy on a task with its own training loop.

    Raises:
        SpecError: the recipe or the augmentation needs something that only clbench's loop can do.
    """
    strategy, augment = replica.strategy, replica.stream.augment
    if recipe.head_lr is not None:
        require_head_rate(strategy)
    for name in ("repeats", "accumulate", "head_decay"):
        if getattr(recipe, name) not in (None, 1, "all"):
            raise SpecError(f"{type(strategy).__name__} trains by a loop of its own: {name} does not go with it")
    if crops_originals(augment, task.train):
        raise SpecError(f"{type(strategy).__name__} trains by a loop of its own, which cannot cut crops out of the "
                        "photos' files (read = files); choose read=memory or another augmentation")
    sampler = BatchSampler(len(task.train), recipe.batch_size, replica.seed, task.index, augment)
    strategy.train()
    budget = Budget(
        recipe, partial(sampler.following, torch.device("cpu")), partial(make_optimizer, recipe),
        partial(make_schedule, recipe, epoch=steps_per_epoch(recipe, len(task.train))),
        sampler.augmented if augment else None)
    with callback.around_prepare(replica):
        losses = on_host(strategy.fit(task, budget))
    return TaskResult(len(losses), strategy.trainable(), diverged(losses, task.index),
                      last_tenths(losses, len(losses)))
