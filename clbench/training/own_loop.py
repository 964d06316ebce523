"""Training of a strategy by a loop of its own (`Strategy.fit`), instead of clbench's."""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import partial

import torch
from torch import Tensor

from clbench.core.errors import PluginError, SpecError
from clbench.data.photo_samples import crops_originals
from clbench.experiment.recipe import Recipe
from clbench.strategy.base import Task
from clbench.strategy.granted import Budget
from clbench.training import precision
from clbench.training.budget import steps_of, steps_per_epoch
from clbench.training.optimizers import make_optimizer, make_schedule, require_head_rate
from clbench.training.replica import Replica, TaskResult, on_host
from clbench.training.sampling import BatchSampler


def run_own_loop(replica: Replica, task: Task, recipe: Recipe, around: AbstractContextManager[object]) -> TaskResult:
    """Train a strategy on a task with its own training loop, in the context `around`.

    Raises:
        SpecError: the recipe or the augmentation needs something that only clbench's loop can do.
        PluginError: `fit` returned no tensor.
    """
    strategy, augment = replica.strategy, replica.stream.augment
    if recipe.head_lr is not None:
        require_head_rate(strategy)
    unsupported = {"repeats": (recipe.repeats or 1) > 1, "accumulate": recipe.accumulate > 1,
                   "head_decay": recipe.head_decay != "all", "group_by_length": recipe.group_by_length}
    for name in filter(unsupported.get, unsupported):
        raise SpecError(f"{type(strategy).__name__} trains by a loop of its own: {name} does not go with it")
    if crops_originals(augment, task.train):
        raise SpecError(f"{type(strategy).__name__} trains by a loop of its own, which cannot cut crops out of the "
                        "photos' files (read = files); choose read=memory or another augmentation")
    sampler = BatchSampler(len(task.train), recipe.batch_size, replica.seed, task.index, augment)
    strategy.train()
    budget = Budget(
        recipe, steps_of(recipe, len(task.train)), partial(sampler.next_indices, torch.device("cpu")),
        partial(make_optimizer, recipe), partial(make_schedule, recipe, epoch=steps_per_epoch(recipe, len(task.train))),
        sampler.augmented if augment else None,
        precision.autocast_context(recipe, strategy.class_mask.device, strategy))
    with around:
        returned: object = strategy.fit(task, budget)
    if not isinstance(returned, Tensor):
        raise PluginError(f"`fit` of {type(strategy).__name__} must return a tensor, not {type(returned).__name__}")
    losses = on_host(returned)
    return TaskResult.of(losses, task.index, strategy.trainable(), len(losses))
