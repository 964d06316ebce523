"""Dry runs, which count what methods train, store and compute before anything is trained.

The training loop runs a method's real code through all tasks on torch's meta device. Weights and inputs have shapes but
no values, so models of any size cost nothing. Tensors on which shapes can depend (labels, masks, counters, the draws of
a replay buffer) have values and are on the CPU.

One step of every kind (batch shape and phase) is taken and counted, and its FLOPs are added for each step of this kind.
From the third pass over a task on, a step has the FLOPs of the step at the same place in the previous pass, because a
replay buffer is filled in the first pass.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from clbench.accounting.callback import FlopsCallback, kind_of_step
from clbench.core.errors import typed_message
from clbench.core.registry import Registry
from clbench.core.scenario import Scenario
from clbench.data.samples import Samples
from clbench.data.stream import Stream
from clbench.experiment.recipe import Recipe
from clbench.experiment.trial import Resolved
from clbench.models.network import Network
from clbench.strategy.base import Strategy, Task
from clbench.strategy.granted import PhaseSpec
from clbench.training.budget import shares_of
from clbench.training.building import build_strategy, stream_info_of
from clbench.training.costs import nbytes, role
from clbench.training.loop import TrainingLoop
from clbench.training.phase_cache import PhaseInputs
from clbench.training.replica import Replica, TaskResult
from clbench.training.sampling import BatchSampler, StreamSampler
from clbench.training.steps import take_step
from clbench.training.stream_loop import merge_tasks

# Optimizers count as 0, and products have the same FLOPs in any precision; autocast does not change meta tensors.
CHEAP = {"optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0, "max_grad_norm": None, "precision": "fp32"}


class DryRun(TrainingLoop):
    """The training loop on tensors without values, for one strategy.

    Args:
        strategy: a strategy from `strategy_of_shapes`.
        stream: a stream with inputs on the meta device.
        recipe: the training configuration.
        counted: whether to count the FLOPs of all steps of a phase. If not, only the batches of one pass are drawn, to
            fill a replay buffer. This is also done for the remaining phases of a run once a loss needs values.
        cache_bytes: most bytes that a phase may cache; None for the default.
    """

    def __init__(self, strategy: Strategy, stream: Stream, recipe: Recipe, counted: bool,
                 cache_bytes: int | None = None) -> None:
        self.flops = FlopsCallback()
        replica = Replica(strategy, merge_tasks(stream) if stream.hidden else stream, seed=0)
        super().__init__([replica], recipe.model_copy(update=CHEAP), [self.flops], cache_bytes=cache_bytes)
        self.strategy = strategy
        self.costs = replica.costs
        self.counted = counted
        self.trainable: list[tuple[int, int]] = []  # parameters and bytes, of each task
        self.uncounted = ""  # why the FLOPs of training cannot be counted

    def take_task_steps(self, tasks: Sequence[Task]) -> list[TaskResult]:
        """Run the phases of a task.

        Raises:
            SpecError: the recipe gives a task fewer steps than it has phases.
            RuntimeError: the strategy needs values, or has its own training loop.
        """
        strategy, task = self.strategy, tasks[0]
        drop_values(strategy)  # of what `before_task` added
        if strategy.owns_loop:
            raise RuntimeError("it trains by a loop of its own; its records say what it trained and kept")
        self.trainable.append((0, 0))
        if self.counted and not strategy.stream_info.boundaries and not shares_of(strategy, task):
            sampler = StreamSampler([task.train], self.recipe.batch_size, 0)
            for _ in range(sampler.steps_through(1)):
                sampler.observe_next_batch(strategy, partial(self.callbacks.around_prepare, self.replicas[0]))
        return super().take_task_steps(tasks)

    def _train_phase(self, phase: PhaseSpec, samples: list[Samples], samplers: list[BatchSampler], losses: list[Tensor],
                     index: int, steps: int) -> None:
        """Run a phase; the losses are zeros, because meta tensors have no values."""
        drop_values(self.strategy)  # of what `before_phase` added
        parameters, size = with_gradient(self.strategy)
        trainable = self.strategy.trainable()  # packnet trains only a part of each parameter
        self.trainable[-1] = max(self.trainable[-1], (trainable, size * trainable // max(parameters, 1)))
        if self.counted and not self.uncounted:
            try:
                super()._train_phase(phase, samples, samplers, losses, index, steps)
                return
            except (RuntimeError, TypeError) as error:  # torch raises them if a value is needed
                self.uncounted = typed_message(error, 200)
        sampler = samplers[0]
        one_pass = math.ceil(len(samples[0]) / self.recipe.batch_size) * sampler.repeats
        for _ in range(min(one_pass, phase.steps) if self.uncounted else one_pass):
            batch = (sampler.observe_next_batch(self.strategy) if isinstance(sampler, StreamSampler)
                     else sampler.next_batch(samples[0]))
            self.strategy.prepare_batch(batch)
        losses += [torch.zeros(1)] * phase.steps

    def _take_steps(self, count: int, inputs: PhaseInputs, samplers: Sequence[BatchSampler],
                    schedule: LRScheduler | None, losses: list[Tensor], index: int, steps: int,
                    steps_before: int = 0) -> None:
        """Take a step of each kind and add the FLOPs of all steps.

        Raises:
            RuntimeError, TypeError: the loss needs values.
        """
        assert self.train_step is not None
        replica, sampler, totals = self.replicas[0], samplers[0], self.flops.totals
        pass_length = math.ceil(len(inputs.samples[0]) / self.recipe.batch_size) * sampler.repeats
        pass_flops: dict[int, int] = {}  # of steps after the first pass, by their place in a pass
        steps_done = 0
        while steps_done < count:
            passes = (count - steps_done) // pass_length
            if len(pass_flops) == pass_length and not sampler.left and passes:
                totals[replica] += passes * sum(pass_flops.values())
                steps_done += passes * pass_length
                continue
            flops_before = totals[replica]
            batches = self._draw(inputs, samplers)
            with self.callbacks.around_step(self, batches):
                if kind_of_step(self.strategy, batches[0]) not in self.flops.steps:
                    take_step(self.train_step, batches, self.recipe.accumulate)
            if steps_done and not batches[0].first_pass:
                pass_flops[len(sampler.left)] = totals[replica] - flops_before
            steps_done += 1
        losses += [torch.zeros(1)] * count

    def _inputs(self, samples: list[Samples], index: int, draws: int) -> PhaseInputs:
        """Return the inputs of a phase; those of a stream with hidden boundaries stay raw."""
        if not self.strategy.stream_info.boundaries:
            return PhaseInputs(samples, samples)
        return super()._inputs(samples, index, draws)

    def _samplers(self, samples: Sequence[Samples], tasks: Sequence[Task], phase: int | None = None
                  ) -> list[BatchSampler]:
        """Return the batch sampler; for a stream with hidden boundaries, it draws samples in order of arrival."""
        if phase is None and not self.strategy.stream_info.boundaries:
            return [StreamSampler(samples, self.recipe.batch_size, 0, self.augment)]
        return super()._samplers(samples, tasks, phase)


def strategy_of_shapes(model: Network, method: Resolved, stream: Stream, scenario: Scenario, pretrained: bool,
                       registry: Registry) -> Strategy:
    """Return a method's strategy for a model without values."""
    strategy = build_strategy(method, model, stream_info_of(stream, scenario, 0, pretrained), registry)
    drop_values(strategy)
    return strategy


def drop_values(strategy: Strategy) -> None:
    """Remove the values of a strategy's tensors, except labels, counts and masks: integer and boolean buffers.

    A stored input has no values either, so a buffer with the role "replay" keeps them only if it has one dimension.
    """
    kept_buffers = []
    for prefix, module in strategy.named_modules():
        for name, buffer in module.named_buffers(recurse=False):
            is_input = buffer.dim() > 1 and role(strategy, f"{prefix}.{name}".lstrip(".")) == "replay"
            if not buffer.is_floating_point() and not is_input:
                kept_buffers.append((module, name, buffer))
    strategy.to("meta")
    for module, name, buffer in kept_buffers:
        setattr(module, name, buffer)


def with_gradient(module: nn.Module) -> tuple[int, int]:
    """Return the number of parameters that require a gradient, and their bytes."""
    trained = [p for p in module.parameters() if p.requires_grad]
    return sum(p.numel() for p in trained), sum(map(nbytes, trained))
