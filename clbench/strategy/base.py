"""Strategy, Task, Batch, World: all that the author of a strategy reads.

A strategy is an `nn.Module` and everything it remembers is a parameter or a buffer. The harness owns the stream, the
data order, the optimiser, the budget, the evaluation and the clock, and calls, for each task in turn:

    before_task(task)                       grow, freeze, reset; what is trained is what requires_grad
    for each step:
        batch = augment_batch(batch)        outside the pure part: replay, random draws from world.generator
        loss(batch)                         pure in parameters, buffers and batch
        edit_gradients(gradients)           projections and the like
    after_task(task)                        consolidate: Fisher, memory, prototypes
    export(folder, task)                    write what is to outlive the run: adapters, say

A strategy whose loop is its own (one from another library, say) overrides `fit`, which takes the place of the steps.

The defaults are naive fine-tuning, so that a strategy is only its difference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clbench.core.moved import OldNames, Renamed
from clbench.core.options import NoOptions, Options
from clbench.core.scenario import Scenario, scenario_rules
from clbench.data.samples import Samples
from clbench.experiment.spec import Recipe
from clbench.models.network import Network


@dataclass(frozen=True)
class World:
    """What a strategy is told about where it lives."""

    classes: int  # C, the number of outputs
    tasks: int  # T, the length of the stream
    scenario: Scenario
    input_shape: tuple[int, ...]  # of one prepared sample, (channels, height, width) for images
    generator: torch.Generator  # on the CPU; the only source of randomness outside layer initialisation
    pretrained: bool = False  # whether the model came with weights
    prepare: Callable[[Tensor], Tensor] = torch.Tensor.float  # raw samples [N, ...] -> float inputs [N, *input_shape]

    @property
    def task_given(self) -> bool:
        """Tell whether the test says which task a sample comes from."""
        return scenario_rules(self.scenario).task_given

    @property
    def shared_outputs(self) -> bool:
        """Tell whether all tasks use the same outputs."""
        return scenario_rules(self.scenario).shared_outputs


@dataclass(frozen=True)
class Task:
    """The task at hand: its index, its classes (outputs, in stream order) and its training samples."""

    index: int
    classes: tuple[int, ...]
    train: Samples


@dataclass(frozen=True)
class Batch:
    """One training batch: x [N, ...], y [N] int64, tasks [N] int64 (the task each sample came from).

    In `augment_batch` x is raw, as the stream stores it; in `loss` it is a float input of the model.
    `task` is the task being trained; `first_pass` tells whether these samples of the task are met for the first time;
    the last `replayed` samples were put there by `extended`.
    """

    x: Tensor
    y: Tensor
    tasks: Tensor
    task: int
    first_pass: bool = True
    replayed: int = 0

    def extended(self, extra: Samples) -> Batch:
        """Return this batch with more samples (replay) behind its own."""
        both = Samples.concat(Samples(self.x, self.y, self.tasks), extra)
        return replace(self, x=both.x, y=both.y, tasks=both.tasks, replayed=self.replayed + len(extra))


@dataclass(frozen=True)
class Budget:
    """What the recipe gives a task, for a strategy that trains by a loop of its own (`Strategy.fit`).

    Args:
        recipe: epochs or iterations, batch size, precision, whether the optimiser's state is kept.
        following: returns the places of the next batch in the task's samples, int64 [N] on the CPU; pass after pass,
            in the order in which every other method meets them.
        optimizer: makes the recipe's optimiser over parameters.
        schedule: makes the recipe's schedule of an optimiser over so many steps, None where the rate is constant.
        augment: augments raw training images [N, C, H, W], None where the benchmark does not; the flag says that they
            are replayed. What is drawn for the batches of `following`, each as a whole, is as for every other method;
            for all else there are other draws.
    """

    recipe: Recipe
    following: Callable[[], Tensor]
    optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
    schedule: Callable[[torch.optim.Optimizer, int], torch.optim.lr_scheduler.LRScheduler | None]
    augment: Callable[[Tensor, bool], Tensor] | None = None


class Prediction(NamedTuple):
    """Logits [N, C] and, from strategies that infer the task, the inferred task of each sample [N]."""

    logits: Tensor
    task: Tensor | None = None


class Strategy(OldNames, nn.Module):
    """Base of all strategies, and naive fine-tuning as it stands.

    Args:
        model: the network before any method touched it, on its device; the strategy may wrap or replace its layers.
        world: class count, number of tasks, scenario, input shape, generator.
        options: an instance of the options class that the strategy's `StrategyInfo` declares.
    """

    # (name pattern, role) pairs: the first that fits a parameter or buffer (fnmatch) names its role in the footprint,
    # e.g. (("heads.*", "heads"), ("memory_*", "replay")); what no pattern fits is "base".
    roles: tuple[tuple[str, str], ...] = ()
    # Why a trial cannot go on from a checkpoint of this strategy and starts over instead; empty where it can: all that
    # changes as it learns is in parameters, buffers and plain attributes (numbers, strings, lists of them).
    not_resumable: ClassVar[str] = ""
    active: Tensor
    starts_over, frozen = Renamed("not_resumable"), Renamed("frozen_modules")  # until 0.3

    def __init__(self, model: Network, world: World, options: Options | None = None) -> None:
        """Keep the model; subclasses call this first."""
        super().__init__()
        self.model = model
        self.world = world
        self.options = options if options is not None else NoOptions()
        # active[t, c]: does output c take part in the loss of a sample of task t? Kept by the harness, not a memory.
        self.register_buffer("active", torch.zeros(world.tasks, world.classes, dtype=torch.bool), persistent=False)

    def before_task(self, task: Task) -> None:
        """Get ready to train on a task: grow, freeze, reset. Default: nothing."""

    def phases(self, task: Task) -> int:
        """Return into how many phases of equal length the task's budget of steps is split. Default: 1.

        With 0 nothing is trained by gradients and the budget is left unused; what is learned, `after_task` learns.
        """
        return 1

    def before_phase(self, task: Task, phase: int) -> None:
        """Get ready for a phase (0, 1, ...) of a task; the optimiser is made anew after it. Default: nothing."""

    def frozen_modules(self) -> Iterable[nn.Module]:
        """Return the modules that no longer learn, as they are in this phase of this task. Default: none.

        What has requires_grad in them does learn. The rest is not changed by anything until the phase is over, so what
        is computed with it may be computed once.
        """
        return ()

    def trainable(self) -> int:
        """Return how many numbers the phase at hand can change. Default: all of each parameter that requires_grad.

        Of a strategy with a loop of its own it is asked after `fit`, about the task that was trained.
        """
        return sum(p.numel() for p in self.parameters() if p.requires_grad)

    def train(self, mode: bool = True) -> Strategy:
        """Set the mode of everything but the frozen modules, which stay in eval mode: normalisation must not drift."""
        super().train(mode)
        for module in self.frozen_modules():
            module.eval()
        return self

    def training_samples(self, task: Task) -> Samples:
        """Return the samples that the task's batches are drawn from. Default: the task's own."""
        return task.train

    def augment_batch(self, batch: Batch) -> Batch:
        """Return the batch to train on; the stateful or random part of a step, on raw inputs. Default: as it is."""
        return batch

    def loss(self, batch: Batch) -> Tensor:
        """Return the loss of a prepared batch, a scalar; pure in parameters, buffers and the batch.

        Default: mean cross-entropy over the active outputs of each sample.
        """
        return self.cross_entropy(self(batch.x, batch.task), batch)

    def cross_entropy(self, logits: Tensor, batch: Batch) -> Tensor:
        """Return the mean cross-entropy of logits [N, C] over each sample's active outputs."""
        return F.cross_entropy(self.mask(logits, batch.tasks), batch.y)

    def mask(self, logits: Tensor, tasks: Tensor) -> Tensor:
        """Return logits [N, C] with the outputs that are not active for tasks [N] set to -inf."""
        return logits.masked_fill(~self.active[tasks], float("-inf"))

    def edit_gradients(self, gradients: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the gradients to step with, by parameter name. Default: unchanged."""
        return gradients

    def fit(self, task: Task, budget: Budget) -> Tensor:
        """Train on a task by a loop of its own and return the losses of its steps [steps], none left out.

        Who overrides it spends the budget itself; none of the methods that a step calls is called by the harness then,
        and seeds of the strategy are not stacked. Everything else stays as it is.
        """
        raise NotImplementedError

    @property
    def owns_loop(self) -> bool:
        """Tell whether the strategy trains by `fit` and not by the harness's steps."""
        return type(self).fit is not Strategy.fit

    def after_task(self, task: Task) -> None:
        """Consolidate what the task taught: Fisher, memory, prototypes. Default: nothing."""

    def export(self, folder: Path, task: Task) -> None:
        """Write what is to outlive the run to a folder of the trial's own, after a task. Default: nothing."""

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load as any module does; buffers take the sizes of what is loaded, as a memory grows.

        A buffer of the strategy's own that it does not have yet is registered.
        """
        for name, loaded in state_dict.items():
            where, _, last = name.rpartition(".")
            try:
                owner = self.get_submodule(where)
            except AttributeError:
                continue  # reported below
            known = owner._buffers.get(last)
            own = last in owner._buffers or (owner is self and not hasattr(self, last))
            if own and (known is None or (known.shape, known.dtype) != (loaded.shape, loaded.dtype)):
                owner.register_buffer(last, torch.empty_like(loaded, device=self.active.device))
        return super().load_state_dict(state_dict, strict, assign)

    def forward(self, x: Tensor, task: int | None = None) -> Tensor:
        """Return logits [N, C] over all classes for inputs x [N, *input_shape].

        `task` is the index of the task all of x comes from, None where the scenario does not give it.
        """
        logits: Tensor = self.model(x)
        return logits

    def predict(self, x: Tensor, task: int | None = None) -> Prediction:
        """Return what the evaluation uses; changes nothing. Strategies that infer the task return it too."""
        return Prediction(self(x, task))
