"""FLOPs of predicting one test sample."""

from __future__ import annotations

from fractions import Fraction
from statistics import mean

import torch

from clbench.accounting.flops import FlopCount
from clbench.core.scenario import scenario_rules
from clbench.data.stream import Tests
from clbench.experiment.spec import Recipe
from clbench.strategy.base import Strategy
from clbench.training import precision
from clbench.training.evaluation import batch_size
from clbench.training.replica import Replica


def inference_flops(replica: Replica, recipe: Recipe, learned: int) -> int:
    """Return the FLOPs of predicting a sample after `learned` tasks, in the arithmetic of a recipe.

    The sample is of an unknown task; where the scenario gives the task, it is the mean over the learned tasks.
    """
    strategy, tests = replica.strategy, replica.stream.tests
    size = batch_size(replica.stream, tests.y.device)
    given = range(learned) if scenario_rules(strategy.world.scenario).task_given else (None,)
    training = strategy.training
    strategy.eval()
    with torch.no_grad(), precision.forward(recipe, strategy.active.device, strategy):
        flops = [flops_of(strategy, tests, task, size) for task in given]
    strategy.train(training)
    return round(mean(flops))


def flops_of(strategy: Strategy, tests: Tests, given: int | None, size: int) -> Fraction:
    """Return the FLOPs of predicting one test sample in batches of `size`, whatever of it is cached.

    Part of a batch's cost does not depend on its size (dora's weights), so batches of one and of two are counted.
    """
    x = next(tests.batches(2, given))[0]
    totals = []
    for part in (x[:1], x):
        with FlopCount() as count:
            strategy.predict(part, given)
        totals.append(count.total)
    each = (totals[1] - totals[0]) or totals[0]  # there may be one sample only
    whole = len(tests.y) if given is None else tests.sizes[given]
    return Fraction(each) + Fraction(totals[0] - each, min(size, whole))
