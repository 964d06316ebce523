"""Accuracy while a task is learned: evaluations between steps that leave no trace in training.

A point is looked at before the first step of a task, after each of its first `FIRST` steps, then after every
`every`-th and after the last; and once more when the task is consolidated. It tells how many of some test samples of
each task so far are answered right, by the strategy as it stands, with the outputs of the task at hand among those that
compete. The samples are drawn once for each task, whatever the seed of the trial and the method.

What an evaluation could change is put back: the draws of the global generators and of the strategy's own, the mode of
each module, the block at which the model starts. Predictions change no state by contract (`Strategy.predict`), and the
clock of training stands still meanwhile. A stack predicts as one, under `torch.func.vmap`, where that gives each
member the logits that it gives by itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from clbench.core import seeds
from clbench.core.device import out_of_memory, synchronize
from clbench.core.scenario import scenario_rules
from clbench.data.stream import Stream, Tests
from clbench.experiment.spec import Recipe
from clbench.results.curve import Curve
from clbench.strategy.base import Strategy
from clbench.training import numerics
from clbench.training.budget import steps_of
from clbench.training.evaluation import batch_size, offered_outputs
from clbench.training.prediction_cache import predictions
from clbench.training.stacking import Engine, StackedStep
from clbench.training.trials.costs import Clock

FIRST = 50  # steps of a task, each of which has a point: what a boundary does is over soon
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
    return Tests(tests.x[index], tests.y[index], tests.tasks[index], tuple(map(len, chosen)), tests.prepare)


def first_tasks(tests: Tests, tasks: int) -> Tests:
    """Return the samples of the first so many tasks."""
    end = sum(tests.sizes[:tasks])
    return Tests(tests.x[:end], tests.y[:end], tests.tasks[:end], tests.sizes[:tasks], tests.prepare)


@dataclass
class Watched:
    """A strategy that is evaluated while it learns, and its curve so far.

    Args:
        strategy: that learns.
        stream: what it learns.
        tests: the samples that it is asked, from `some_tests`.
        curve: what a record keeps of it; grows in place.
        recipe: whose arithmetic predictions have.
    """

    strategy: Strategy
    stream: Stream
    tests: Tests
    curve: Curve
    recipe: Recipe
    spent: Clock = field(default_factory=lambda: Clock(0.0, 0.0))  # on evaluations of the current task

    @classmethod
    def begin(cls, strategy: Strategy, stream: Stream, recipe: Recipe, every: int, samples: int) -> Watched:
        """Begin with no point, to have one every so many steps on so many samples of each task."""
        tests = some_tests(stream, samples)
        return cls(strategy, stream, tests, Curve(every=every, samples=list(tests.sizes)), recipe)

    def add(self, index: int, step: int, right: Sequence[int]) -> None:
        """Add a point of a task: right answers on it and each one before."""
        if len(self.curve.steps) == index:
            self.curve.steps.append([])
            self.curve.right.append([[] for _ in range(index + 1)])
        self.curve.steps[index].append(step)
        for series, count in zip(self.curve.right[index], right, strict=True):
            series.append(count)

    def consolidated(self, index: int) -> None:
        """Look at what the strategy knows once a task is consolidated."""
        began = Clock.now()
        with untouched([self.strategy]):
            self.curve.after.append(self.right(index + 1))
        self.spend(Clock.now(), began, 1)

    def spend(self, ended: Clock, began: Clock, members: int) -> None:
        """Add a share of the time that an evaluation took."""
        self.spent = Clock(self.spent.wall + (ended.wall - began.wall) / members,
                           self.spent.cpu + (ended.cpu - began.cpu) / members)

    def take_spent(self) -> Clock:
        """Return what was spent since this was last asked."""
        spent, self.spent = self.spent, Clock(0.0, 0.0)
        return spent

    def offered(self, learned: int) -> Tensor:
        """Return which outputs take part for a sample of each task, bool [T, C]."""
        return offered_outputs(self.stream, self.strategy.world.scenario, learned)

    def right(self, learned: int) -> list[int]:
        """Return how many samples of each of the first tasks are answered right; in eval mode, without gradients."""
        tests, offered = first_tasks(self.tests, learned), self.offered(learned)
        right = torch.zeros(learned, dtype=torch.int64, device=offered.device)
        size = batch_size(self.stream, offered.device)
        with numerics.forward(self.recipe, offered.device, self.strategy):
            for given in given_tasks(self.strategy, learned):
                for prediction, y, tasks in predictions(self.strategy, tests, size, given):
                    right.index_add_(0, tasks, (answered(prediction.logits, offered[tasks]) == y).long())
        return list(map(int, right.tolist()))


class Watch:
    """Evaluates one strategy, or the members of a stack, between the steps that they take together."""

    def __init__(self, watched: Sequence[Watched]) -> None:
        """Watch these, which are alike in everything but their seed."""
        self.watched = list(watched)
        self.every = watched[0].curve.every
        self.engine: Engine | None = None  # whose members have been seen to predict alike by themselves and as one
        self.as_one = True

    @classmethod
    def over(cls, watched: Sequence[Watched | None]) -> Watch | None:
        """Return a watch over these, None if nobody is to be watched."""
        there = [one for one in watched if one is not None]
        return cls(there) if there else None

    def due(self, step: int, steps: int) -> bool:
        """Tell whether there is a point after so many of a task's steps."""
        return due(step, steps, self.every)

    def look(self, index: int, step: int, engine: Engine | None = None) -> None:
        """Add a point to each curve: what is right on the tasks up to `index` after so many of its steps.

        `engine` is what takes the steps, where there are any.
        """
        device = self.watched[0].tests.y.device
        synchronize(device)
        began = Clock.now()
        with untouched([one.strategy for one in self.watched]):
            right = self._as_one(engine, index + 1) if isinstance(engine, StackedStep) and self.as_one else None
            for k, one in enumerate(self.watched):
                one.add(index, step, one.right(index + 1) if right is None else right[k])
        ended = Clock.now()
        for one in self.watched:
            one.spend(ended, began, len(self.watched))

    def keep(self, strategies: Sequence[Strategy]) -> None:
        """Go on with these only."""
        self.watched = [one for one in self.watched if any(one.strategy is s for s in strategies)]

    def _as_one(self, engine: StackedStep, learned: int) -> list[list[int]] | None:
        """Return the right answers of each member, predicted as one; None where that cannot be, from now on."""
        first = self.watched[0]
        shared = all(one.stream is first.stream for one in self.watched)
        tests = [first_tasks(one.tests, learned) for one in self.watched[:1 if shared else None]]
        if len({part.sizes for part in tests}) > 1 or first.stream.is_text:  # text is cut off by the batch
            return None
        offered = torch.stack([one.offered(learned) for one in self.watched])
        right = torch.zeros(len(self.watched), learned, dtype=torch.int64, device=offered.device)
        size = batch_size(first.stream, offered.device)
        try:
            with numerics.forward(first.recipe, offered.device, first.strategy, stacked=True):
                for given in given_tasks(first.strategy, learned):
                    for batch in zip(*(part.batches(size, given) for part in tests), strict=True):
                        x = batch[0][0] if shared else torch.stack([own[0] for own in batch])
                        logits = stacked_logits(engine, x, given, shared)
                        if self.engine is not engine and not self._alike(logits, x, given, shared):
                            self.as_one = False
                            return None
                        self.engine = engine
                        y, tasks = torch.stack([own[1] for own in batch]), batch[0][2]
                        right.index_add_(1, tasks, (answered(logits, offered[:, tasks]) == y).long())
        except RuntimeError as error:  # of what vmap cannot do: look at values, say
            if out_of_memory(error):
                raise
            self.as_one = False
            return None
        return [list(map(int, row)) for row in right.tolist()]

    def _alike(self, logits: Tensor, x: Tensor, given: int | None, shared: bool) -> bool:
        """Tell whether each member by itself has the logits [S, N, C] that it has in the stack, but for rounding."""
        own = [one.strategy.predict(x if shared else x[k], given).logits for k, one in enumerate(self.watched)]
        return bool(torch.allclose(logits, torch.stack(own), rtol=1e-3, atol=1e-4, equal_nan=True))


class Logits(nn.Module):
    """A strategy whose `forward` is its prediction, since `functional_call` calls `forward`."""

    def __init__(self, strategy: Strategy) -> None:
        super().__init__()
        self.strategy = strategy

    def forward(self, x: Tensor, given: int | None) -> Tensor:
        """Return the logits [N, C] of inputs x [N, ...]."""
        return self.strategy.predict(x, given).logits


def stacked_logits(engine: StackedStep, x: Tensor, given: int | None, shared: bool) -> Tensor:
    """Return the logits [S, N, C] of the members of a stack, on x [N, ...] for all or on x [S, N, ...]."""
    call = Logits(engine.members[0])

    def logits(state: dict[str, Tensor], x: Tensor) -> Tensor:
        found: Tensor = functional_call(call, state, (x, given))
        return found

    result: Any = vmap(logits, in_dims=(0, None if shared else 0), randomness="error")(engine.state(), x)
    return result  # type: ignore[no-any-return]


def given_tasks(strategy: Strategy, learned: int) -> Sequence[int | None]:
    """Return the tasks that samples are known to be of, one after the other, or None where that is not given."""
    return range(learned) if scenario_rules(strategy.world.scenario).task_given else (None,)


def answered(logits: Tensor, offered: Tensor) -> Tensor:
    """Return the outputs chosen by logits [..., C] among those that are offered, bool of the same shape."""
    return logits.masked_fill(~offered, float("-inf")).argmax(-1)


@contextmanager
def untouched(strategies: Sequence[Strategy]) -> Iterator[None]:
    """Set strategies to eval mode, without gradients, and put back afterwards what training goes on from."""
    modes = [(module, module.training) for strategy in strategies for module in strategy.modules()]
    starts = [(strategy.model, strategy.model.start) for strategy in strategies if getattr(strategy.model, "start", 0)]
    drawn = [(strategy.world.generator, strategy.world.generator.get_state()) for strategy in strategies]
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
    looks = asked = trained = 0
    for index, task in enumerate(stream.tasks):
        steps = steps_of(recipe, len(task.train))
        found = len(points(steps, every)) + 1  # the last when the task is consolidated
        looks += found
        asked += found * sum(min(samples, len(known.test)) for known in stream.tasks[:index + 1])
        trained += steps * recipe.batch_size
    share = asked / (PASSES * trained)
    much = f"{share:.1f} times" if share >= 1 else f"{100 * share:.0f}% of"
    return (f"evaluating while learning: {looks:,} times on {samples:,} test samples of each task so far, {asked:,} "
            f"predictions, about {much} the FLOPs of plain training; less with a larger --evaluate-every or fewer "
            "--evaluate-samples")
