"""Accuracy while a task is learned: evaluations between steps that leave no trace in training.

A point is looked at before the first step of a task, after each of its first `FIRST` steps, then after every
`every`-th and after the last; and once more when the task is consolidated. It is the number of test samples of each
task so far that are answered right, by the strategy as it stands, with the outputs of the task at hand among those that
compete. The samples are drawn once for each task, the same for all seeds and methods.

What an evaluation could change is put back: the draws of the global generators and of the strategy's own, the mode of
each module, the block at which the model starts. Predictions change no state by contract (`Strategy.predict`), and the
clock of training stands still meanwhile. A stack predicts as one, under `torch.func.vmap`, where that gives each
member the logits that it gives by itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from clbench.core import seeds
from clbench.core.device import out_of_memory, synchronize
from clbench.data.stream import Stream
from clbench.data.tests import Tests
from clbench.experiment.recipe import Recipe
from clbench.results.curve import Curve
from clbench.strategy.base import Strategy
from clbench.training import precision
from clbench.training.budget import steps_of
from clbench.training.callbacks.interface import Callback, Training
from clbench.training.costs import Clock
from clbench.training.evaluation import batch_size, given_tasks, offered_outputs
from clbench.training.prediction_cache import predictions
from clbench.training.replica import Replica, TaskResult
from clbench.training.steps import StackedStep, TrainStep

FIRST = 50  # steps of a task, each of which has a point: what a boundary does is over soon
OWN_LOOP = "trains by a loop of its own, so its accuracy while learning is known at the boundaries only"
PASSES = 3  # a step costs about three predictions of its batch: forwards, and backwards twice as much


def points(steps: int, every: int) -> list[int]:
    """Return after which steps of a task there is a point.

    >>> points(120, 25)[-5:]
    [49, 50, 75, 100, 120]
    """
    return [step for step in range(steps + 1) if due(step, steps, every)]


def due(step: int, steps: int, every: int) -> bool:
    """Tell whether there is a point after so many of a task's steps."""
    return step <= FIRST or step % every == 0 or step == steps


def some_tests(stream: Stream, samples: int) -> Tests:
    """Return so many test samples of each task, all of a task that has fewer, in the order of the stream.

    A smaller number is a part of a larger one.
    """
    tests, chosen, begin = stream.tests, list[Tensor](), 0
    for task, size in enumerate(tests.sizes):
        order = torch.randperm(size, generator=seeds.generator(0, "curve", task))[:samples]
        chosen.append(begin + order.sort().values)
        begin += size
    index = torch.cat(chosen).to(tests.y.device)
    return replace(tests, x=tests.x[index], y=tests.y[index], tasks=tests.tasks[index], sizes=tuple(map(len, chosen)))


def first_tasks(tests: Tests, tasks: int) -> Tests:
    """Return the samples of the first so many tasks."""
    end = sum(tests.sizes[:tasks])
    return replace(tests, x=tests.x[:end], y=tests.y[:end], tasks=tests.tasks[:end], sizes=tests.sizes[:tasks])


class CurveCallback(Callback):
    """Evaluates replicas between the steps that they take.

    Args:
        every: steps between points.
        samples: test samples of each task.
    """

    def __init__(self, every: int, samples: int) -> None:
        """Begin with no samples drawn."""
        self.every = every
        self.samples = samples
        self.tests: dict[int, Tests] = {}  # by id of a stream
        self.spent = Clock(0.0, 0.0)  # on evaluations since the task began, all replicas together
        self.train_step: TrainStep | None = None  # whose members are known to predict alike alone and as one
        self.as_one = True

    def new_curve(self, stream: Stream) -> Curve:
        """Return a curve without points."""
        return Curve(every=self.every, samples=list(self._tests(stream).sizes))

    def on_step(self, training: Training, task: int, step: int, steps: int) -> None:
        """Add a point to each curve, if one is due: what is right on the tasks so far."""
        if not due(step, steps, self.every):
            return
        train_step = training.train_step if steps else None
        replicas = training.replicas
        device = replicas[0].strategy.class_mask.device
        synchronize(device)
        began = Clock.now()
        with untouched([replica.strategy for replica in replicas]):
            right = None
            if isinstance(train_step, StackedStep) and self.as_one:
                right = self._as_one(training, train_step, task + 1)
            for position, replica in enumerate(replicas):
                add_point(self._curve(replica), task, step,
                          self.right(replica, training.recipe, task + 1) if right is None else right[position])
        self.spent = self.spent.plus(Clock.now().since(began))

    def on_trained(self, training: Training, results: Sequence[TaskResult]) -> None:
        """Take the time of evaluations out of that of training."""
        share, self.spent = self.spent.share(len(training.replicas)), Clock(0.0, 0.0)
        for replica in training.replicas:
            times = replica.timings
            times.curve.append(share.wall)
            times.curve_cpu.append(share.cpu)
            times.train[-1] -= share.wall
            times.train_cpu[-1] -= share.cpu

    def on_task(self, training: Training, task: int) -> None:
        """Add what is known once the task is consolidated."""
        for replica in training.replicas:
            began = Clock.now()
            with untouched([replica.strategy]):
                self._curve(replica).after.append(self.right(replica, training.recipe, task + 1))
            spent = Clock.now().since(began)
            replica.timings.curve[-1] += spent.wall
            replica.timings.curve_cpu[-1] += spent.cpu
            if replica.strategy.owns_loop:
                replica.add_note(OWN_LOOP)

    def right(self, replica: Replica, recipe: Recipe, learned: int) -> list[int]:
        """Return how many samples of each of the first tasks are right; the strategy is in eval mode."""
        tests, offered = first_tasks(self._tests(replica.stream), learned), outputs_offered(replica, learned)
        right = torch.zeros(learned, dtype=torch.int64, device=offered.device)
        size = batch_size(replica.stream, offered.device)
        with precision.forward(recipe, offered.device, replica.strategy):
            for given in given_tasks(replica.strategy.stream_info.scenario, learned):
                for prediction, y, tasks in predictions(replica.strategy, tests, size, given):
                    right.index_add_(0, tasks, (answered(prediction.logits, offered[tasks]) == y).long())
        return list(map(int, right.tolist()))

    def _tests(self, stream: Stream) -> Tests:
        if id(stream) not in self.tests:
            self.tests[id(stream)] = some_tests(stream, self.samples)
        return self.tests[id(stream)]

    def _curve(self, replica: Replica) -> Curve:
        if replica.curve is None:
            replica.curve = self.new_curve(replica.stream)
        return replica.curve

    def _as_one(self, training: Training, train_step: StackedStep, learned: int) -> list[list[int]] | None:
        """Return the right answers of each replica, predicted as one; None where that cannot be, from now on."""
        replicas = training.replicas
        first = replicas[0]
        shared = all(replica.stream is first.stream for replica in replicas)
        tests = [first_tasks(self._tests(replica.stream), learned) for replica in replicas[:1 if shared else None]]
        if len({part.sizes for part in tests}) > 1 or first.stream.is_text:  # text is cut off by the batch
            return None
        offered = torch.stack([outputs_offered(replica, learned) for replica in replicas])
        right = torch.zeros(len(replicas), learned, dtype=torch.int64, device=offered.device)
        size = batch_size(first.stream, offered.device)
        try:
            with precision.forward(training.recipe, offered.device, first.strategy, stacked=True):
                for given in given_tasks(first.strategy.stream_info.scenario, learned):
                    for batch in zip(*(part.batches(size, given) for part in tests), strict=True):
                        x = batch[0][0] if shared else torch.stack([part[0] for part in batch])
                        logits = stacked_logits(train_step, x, given, shared)
                        if self.train_step is not train_step and not predict_alike(replicas, logits, x, given, shared):
                            self.as_one = False
                            return None
                        self.train_step = train_step
                        y, tasks = torch.stack([part[1] for part in batch]), batch[0][2]
                        right.index_add_(1, tasks, (answered(logits, offered[:, tasks]) == y).long())
        except RuntimeError as error:  # of what vmap cannot do: look at values, say
            if out_of_memory(error):
                raise
            self.as_one = False
            return None
        return [list(map(int, row)) for row in right.tolist()]


def add_point(curve: Curve, task: int, step: int, right: Sequence[int]) -> None:
    """Add a point of a task to a curve: right answers on it and each one before."""
    if len(curve.steps) == task:
        curve.steps.append([])
        curve.right.append([[] for _ in range(task + 1)])
    curve.steps[task].append(step)
    for series, count in zip(curve.right[task], right, strict=True):
        series.append(count)


def outputs_offered(replica: Replica, learned: int) -> Tensor:
    """Return which outputs take part for a sample of each task, bool [T, C]."""
    return offered_outputs(replica.stream, replica.strategy.stream_info.scenario, learned)


def predict_alike(replicas: Sequence[Replica], logits: Tensor, x: Tensor, given: int | None, shared: bool) -> bool:
    """Tell whether each replica by itself has the logits [S, N, C] that it has in the stack, but for rounding."""
    alone = [replica.strategy.predict(x if shared else x[k], given).logits for k, replica in enumerate(replicas)]
    return bool(torch.allclose(logits, torch.stack(alone), rtol=1e-3, atol=1e-4, equal_nan=True))


class Logits(nn.Module):
    """A strategy whose `forward` is its prediction, since `functional_call` calls `forward`."""

    def __init__(self, strategy: Strategy) -> None:
        super().__init__()
        self.strategy = strategy

    def forward(self, x: Tensor, given: int | None) -> Tensor:
        """Return the logits [N, C] of inputs x [N, ...]."""
        return self.strategy.predict(x, given).logits


def stacked_logits(train_step: StackedStep, x: Tensor, given: int | None, shared: bool) -> Tensor:
    """Return the logits [S, N, C] of the members of a stack, on x [N, ...] for all or on x [S, N, ...]."""
    call = Logits(train_step.members[0])

    def logits(state: dict[str, Tensor], x: Tensor) -> Tensor:
        predicted: Tensor = functional_call(call, state, (x, given))
        return predicted

    result: Any = vmap(logits, in_dims=(0, None if shared else 0), randomness="error")(train_step.state(), x)
    return result  # type: ignore[no-any-return]


def answered(logits: Tensor, offered: Tensor) -> Tensor:
    """Return the outputs chosen by logits [..., C] among those that are offered, bool of the same shape."""
    return logits.masked_fill(~offered, float("-inf")).argmax(-1)


@contextmanager
def untouched(strategies: Sequence[Strategy]) -> Iterator[None]:
    """Set strategies to eval mode, without gradients, and put back afterwards what training goes on from."""
    modules = chain.from_iterable(strategy.modules() for strategy in strategies)
    modes = [(module, module.training) for module in modules]
    starts = [(strategy.model, strategy.model.start) for strategy in strategies if getattr(strategy.model, "start", 0)]
    drawn = [(strategy.stream_info.generator, strategy.stream_info.generator.get_state()) for strategy in strategies]
    try:
        for strategy in strategies:
            strategy.eval()
        for model, _ in starts:
            model.start = 0
        with seeds.scope(0, "curve"), torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        for model, start in starts:
            model.start = start
        for generator, state in drawn:
            generator.set_state(state)


def cost_in_words(recipe: Recipe, stream: Stream, every: int, samples: int) -> str:
    """Return what evaluating while learning costs: evaluations, samples, and about what share of training's FLOPs."""
    evaluations = predicted = trained = 0
    for index, task in enumerate(stream.tasks):
        steps = steps_of(recipe, len(task.train))
        evaluations_of_task = len(points(steps, every)) + 1  # the last when the task is consolidated
        evaluations += evaluations_of_task
        tests = [min(samples, len(known.test)) for known in stream.tasks[:index + 1]]
        predicted += evaluations_of_task * sum(tests)
        trained += steps * recipe.batch_size
    share = predicted / (PASSES * trained)
    much = f"{share:.1f} times" if share >= 1 else f"{100 * share:.0f}% of"
    return (f"evaluating while learning: {evaluations:,} times on {samples:,} test samples of each task so far, "
            f"{predicted:,} predictions, about {much} the FLOPs of plain training; less with a larger --evaluate-every "
            "or fewer --evaluate-samples")
