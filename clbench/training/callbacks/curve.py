"""Metrics during training: evaluations between steps that do not affect training.

There is a point before the first step of a task, after each of its first `FIRST` steps, after every `every`-th step,
after the last step, and after consolidation. A point is the number of test samples of each task so far that the
strategy predicts correctly in its current state or, without classes, the values of the metrics on each task. The
outputs of the current task compete, too. The samples are drawn once for each task and are the same for all seeds and
methods.

Everything that an evaluation could change is restored: the global generators and the strategy's own, the mode of each
module, and the block at which the model starts. `Strategy.predict` must not change state, and evaluations do not count
as training time. A stack predicts for all members at once, under `torch.func.vmap`, if each member then has the same
logits as alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from clbench.core import seeds
from clbench.core.device import out_of_memory, synchronize
from clbench.core.objective import OBJECTIVES
from clbench.data.stream import Stream
from clbench.data.tests import Tests
from clbench.experiment.recipe import Recipe
from clbench.results.curve import Curve, Point, add_last_point, add_point
from clbench.strategy.base import Strategy
from clbench.strategy.per_sample_gradients import evaluating
from clbench.training import precision
from clbench.training.budget import steps_of
from clbench.training.callbacks.interface import Callback, Training
from clbench.training.costs import Clock
from clbench.training.evaluation import batch_size, candidate_outputs, evaluate, given_tasks
from clbench.training.phase_cache import start_at
from clbench.training.replica import Replica, TaskResult
from clbench.training.stacked_step import StackedStep, StrategyCall
from clbench.training.steps import TrainStep

FIRST = 50  # steps of a task that each have a point, because the effects of a boundary are short
OWN_LOOP = "trains by a loop of its own, so its accuracy while learning is known at the boundaries only"
PASSES = 3  # predictions of a batch that cost as much as a step: one for the forward pass, two for the backward pass


def points(steps: int, every: int) -> list[int]:
    """Return the steps of a task after which there is a point.

    >>> points(120, 25)[-5:]
    [49, 50, 75, 100, 120]
    """
    return [step for step in range(steps + 1) if has_point(step, steps, every)]


def has_point(step: int, steps: int, every: int) -> bool:
    """Return whether there is a point after step `step` of a task with `steps` steps."""
    return step <= FIRST or step % every == 0 or step == steps


def some_tests(stream: Stream, samples: int) -> Tests:
    """Return so many random test samples of each task in the order of the stream, or all if a task has fewer.

    The samples for a smaller number are a subset of those for a larger number.
    """
    tests, chosen, begin = stream.tests, list[Tensor](), 0
    for task, size in enumerate(tests.sizes):
        order = torch.randperm(size, generator=seeds.generator(0, "curve", task))[:samples]
        chosen.append(begin + order.sort().values)
        begin += size
    index = torch.cat(chosen).to(tests.y.device)
    return replace(tests, x=tests.x[index], y=tests.y[index], tasks=tests.tasks[index], sizes=tuple(map(len, chosen)))


def first_tasks(tests: Tests, tasks: int) -> Tests:
    """Return the samples of the first `tasks` tasks."""
    end = sum(tests.sizes[:tasks])
    return replace(tests, x=tests.x[:end], y=tests.y[:end], tasks=tests.tasks[:end], sizes=tests.sizes[:tasks])


class CurveCallback(Callback):
    """Evaluates replicas between their training steps.

    Args:
        every: number of steps between points.
        samples: number of test samples of each task.
    """

    def __init__(self, every: int, samples: int) -> None:
        """Start without samples."""
        self.every = every
        self.samples = samples
        self.tests: dict[int, Tests] = {}  # by id of a stream
        self.spent = Clock(0.0, 0.0)  # on evaluations since the task began, all replicas together
        self.train_step: TrainStep | None = None  # the latest one that passed `predict_alike`
        self.as_one = True  # whether stacks may predict for all members at once

    def new_curve(self, stream: Stream) -> Curve:
        """Return a curve without points."""
        return Curve(every=self.every, samples=[min(self.samples, size) for size in stream.tests.sizes],
                     metric="" if stream.has_classes else OBJECTIVES[stream.objective].primary)

    def on_step(self, training: Training, task: int, step: int, steps: int) -> None:
        """Add a point to each curve, if one is due after this step."""
        if not has_point(step, steps, self.every):
            return
        train_step = training.train_step if steps else None
        replicas = training.replicas
        device = replicas[0].strategy.class_mask.device
        synchronize(device)
        began = Clock.now()
        with eval_mode([replica.strategy for replica in replicas]):
            right = None
            if isinstance(train_step, StackedStep) and self.as_one:
                right = self._count_as_stack(training, train_step, task + 1)
            for position, replica in enumerate(replicas):
                add_point(self._curve(replica), task, step,
                          self.measure(replica, training.recipe, task + 1) if right is None else right[position])
        self.spent = self.spent.plus(Clock.now().since(began))

    def on_trained(self, training: Training, results: Sequence[TaskResult]) -> None:
        """Subtract the time of evaluations from the training time and record it separately."""
        share, self.spent = self.spent.share(len(training.replicas)), Clock(0.0, 0.0)
        for replica in training.replicas:
            times = replica.timings
            times.curve.append(share.wall)
            times.curve_cpu.append(share.cpu)
            times.train[-1] -= share.wall
            times.train_cpu[-1] -= share.cpu

    def on_task(self, training: Training, task: int) -> None:
        """Add the point after consolidation of the task."""
        for replica in training.replicas:
            began = Clock.now()
            with eval_mode([replica.strategy]):
                add_last_point(self._curve(replica), self.measure(replica, training.recipe, task + 1))
            spent = Clock.now().since(began)
            replica.timings.curve[-1] += spent.wall
            replica.timings.curve_cpu[-1] += spent.cpu
            if replica.strategy.owns_loop:
                replica.add_note(OWN_LOOP)

    def measure(self, replica: Replica, recipe: Recipe, learned: int) -> Point:
        """Return the point of the first `learned` tasks; the strategy is in eval mode."""
        strategy, stream = replica.strategy, replica.stream
        tests = first_tasks(self._tests(stream), learned)
        with precision.autocast_context(recipe, tests.y.device, strategy):
            row = evaluate(strategy, stream, strategy.stream_info.scenario, learned, tests=tests)
        if stream.has_classes:
            return [round(share * size) for share, size in zip(row.accuracy, tests.sizes, strict=True)]
        return {name: [float(f"{value:.7g}") for value in values] for name, values in row.scores.items()}

    def _tests(self, stream: Stream) -> Tests:
        if id(stream) not in self.tests:
            self.tests[id(stream)] = some_tests(stream, self.samples)
        return self.tests[id(stream)]

    def _curve(self, replica: Replica) -> Curve:
        if replica.curve is None:
            replica.curve = self.new_curve(replica.stream)
        return replica.curve

    def _count_as_stack(self, training: Training, train_step: StackedStep, learned: int) -> list[list[int]] | None:
        """Return the numbers of correct samples of each replica, predicted as a stack; None if that is not possible."""
        replicas = training.replicas
        first = replicas[0]
        shared = all(replica.stream is first.stream for replica in replicas)
        tests = [first_tasks(self._tests(replica.stream), learned) for replica in replicas[:1 if shared else None]]
        if len({part.sizes for part in tests}) > 1 or first.stream.is_text or not first.stream.has_classes:
            return None  # the batch determines the length of texts
        offered = torch.stack([candidate_outputs(r.stream, r.strategy.stream_info.scenario, learned) for r in replicas])
        right = torch.zeros(len(replicas), learned, dtype=torch.int64, device=offered.device)
        size = batch_size(first.stream, offered.device)
        try:
            with precision.autocast_context(training.recipe, offered.device, first.strategy, stacked=True):
                for given_task in given_tasks(first.strategy.stream_info.scenario, learned):
                    for batch in zip(*(part.batches(size, given_task) for part in tests), strict=True):
                        x = batch[0][0] if shared else torch.stack([part[0] for part in batch])
                        logits = stacked_logits(train_step, x, given_task, shared)
                        if self.train_step is not train_step and not predict_alike(replicas, logits, x, given_task,
                                                                                   shared):
                            self.as_one = False
                            return None
                        self.train_step = train_step
                        y, tasks = torch.stack([part[1] for part in batch]), batch[0][2]
                        right.index_add_(1, tasks, (predict_outputs(logits, offered[:, tasks]) == y).long())
        except RuntimeError as error:  # vmap does not support everything, such as branches on values
            if out_of_memory(error):
                raise
            self.as_one = False
            return None
        return [list(map(int, row)) for row in right.tolist()]


def predict_alike(replicas: Sequence[Replica], logits: Tensor, x: Tensor, task: int | None, shared: bool) -> bool:
    """Return whether each replica alone has the same logits as in the stack [S, N, C], except for rounding."""
    own_logits = [replica.strategy.predict(x if shared else x[k], task).logits for k, replica in enumerate(replicas)]
    return bool(torch.allclose(logits, torch.stack(own_logits), rtol=1e-3, atol=1e-4, equal_nan=True))


def stacked_logits(train_step: StackedStep, x: Tensor, task: int | None, shared: bool) -> Tensor:
    """Return the logits [S, N, C] of the members of a stack, for x [N, ...] if it is shared, else x [S, N, ...]."""
    call = StrategyCall(train_step.members[0], lambda strategy, x: strategy.predict(x, task).logits)

    def logits(state: dict[str, Tensor], x: Tensor) -> Tensor:
        predicted: Tensor = functional_call(call, state, (x,))
        return predicted

    with train_step.folding or nullcontext():
        result: Any = vmap(logits, in_dims=(0, None if shared else 0), randomness="error")(train_step.state(), x)
    return result  # type: ignore[no-any-return]


def predict_outputs(logits: Tensor, offered: Tensor) -> Tensor:
    """Return the predicted outputs [...] by logits [..., C], among those in the mask `offered` of the same shape."""
    return logits.masked_fill(~offered, float("-inf")).argmax(-1)


@contextmanager
def eval_mode(strategies: Sequence[Strategy]) -> Iterator[None]:
    """Set strategies to eval mode without gradients inside the block, and restore the state of training after it."""
    drawn = [(strategy.stream_info.generator, strategy.stream_info.generator.get_state()) for strategy in strategies]
    try:
        with evaluating(nn.ModuleList(strategies)), start_at(strategies, 0), seeds.scope(0, "curve"), torch.no_grad():
            yield
    finally:
        for generator, state in drawn:
            generator.set_state(state)


def describe_evaluation_cost(recipe: Recipe, stream: Stream, every: int, samples: int) -> str:
    """Describe what evaluation during training costs: evaluations, samples, and the approximate share of FLOPs."""
    evaluations = predicted = trained = 0
    sizes = sorted(min(samples, len(task.test)) for task in stream.tasks)
    for index, task in enumerate(stream.tasks):
        steps = steps_of(recipe, len(task.train))
        evaluations_of_task = len(points(steps, every)) + 1  # one more after consolidation
        evaluations += evaluations_of_task
        tests = [min(samples, len(learned_task.test)) for learned_task in stream.tasks[:index + 1]]
        predicted += evaluations_of_task * sum(tests)
        trained += steps * recipe.batch_size
    share = predicted / (PASSES * trained)
    relative_cost = f"{share:.1f} times" if share >= 1 else f"{100 * share:.0f}% of"
    of_task = f"{sizes[0]:,}" if sizes[0] == sizes[-1] else f"{sizes[0]:,} to {sizes[-1]:,}"
    return (f"evaluating while learning: {evaluations:,} times on {of_task} test samples of each task so far, "
            f"{predicted:,} predictions, about {relative_cost} the FLOPs of plain training; less with a larger "
            "--evaluate-every or fewer --evaluate-samples")
