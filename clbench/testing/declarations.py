"""Whether what a strategy declares about itself holds, and what more it could declare."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from clbench.accounting.flops import FlopCount
from clbench.core.errors import PluginError
from clbench.core.scenario import Scenario
from clbench.strategy.base import Strategy, declares
from clbench.testing.tiny import RECIPE, TASKS, Bench, Make, NonConforming
from clbench.training.evaluation import given_tasks
from clbench.training.loop import TrainingLoop
from clbench.training.prediction_cache import PredictionCache

SCENARIOS: tuple[Scenario, ...] = ("task", "class")
BATCH = 8  # test samples that are predicted at once
MUCH = 1.5  # times as fast, from which a declaration is suggested
FACTS = ("parts_final", "inputs_only_through_model")


class CountedCache(PredictionCache):
    """A cache that counts the FLOPs of verification apart: on few samples they are most of all."""

    verification = 0

    def _verify(self, *args: Any) -> None:
        """Compute a batch again and count it."""
        with FlopCount() as count:
            super()._verify(*args)
        self.verification += count.total


def check_declarations(make: Make) -> None:
    """Check that all that is cached because of a declaration is the same when it is computed again."""
    for scenario in SCENARIOS:
        b, cache = make(scenario), PredictionCache(everything=True)
        try:
            for _ in train_tasks(b):
                predict_all(b, cache)
        except PluginError as error:
            raise NonConforming(f"scenario {scenario}: {error}") from None


def suggested_declarations(make: Make) -> list[str]:
    """Return a line for each fact that the strategy says nothing of, that holds here, and that would save much."""
    lines = []
    for fact in FACTS:
        gains = [gain(make, scenario, fact) for scenario in SCENARIOS]
        if min(gains) >= 1 and max(gains) >= MUCH:
            name = type(make("task").strategy).__name__
            lines.append(f"{name} could declare {fact} = True, which held here: its evaluation would be up to "
                         f"{max(gains):.1f} times as fast (False ends this note)")
    return lines


def gain(make: Make, scenario: Scenario, fact: str) -> float:
    """Return how many times as fast evaluations would be with a declaration, by FLOPs; 0 if it is wrong or made."""
    without, declared = make(scenario), make(scenario)
    if without.strategy.owns_loop or is_decided(without.strategy, fact):
        return 0
    cls = type(declared.strategy)
    declared.strategy.__class__ = type(cls.__name__, (cls,), {fact: True})
    try:
        before, after = (evaluation_flops(b) for b in (without, declared))
    except (PluginError, RuntimeError, ValueError, IndexError, TypeError):
        return 0
    return before / max(after, 1)


def is_decided(strategy: Strategy, fact: str) -> bool:
    """Return whether a strategy declares a fact, or says itself that it does not hold."""
    subclasses = type(strategy).__mro__[:type(strategy).__mro__.index(Strategy)]
    return declares(strategy, fact) or any(fact in vars(cls) for cls in subclasses)


def evaluation_flops(b: Bench) -> int:
    """Return the FLOPs of all evaluations of a trial, without what verifies the cache."""
    cache, total = CountedCache(everything=True), 0
    for _ in train_tasks(b):
        with FlopCount() as count:
            predict_all(b, cache)
        total += count.total
    return total - cache.verification


def train_tasks(b: Bench) -> Iterator[int]:
    """Train on each task and yield its index; what training caches is verified."""
    for index in range(TASKS):
        TrainingLoop([b.replica], RECIPE, verify_caches=True).train_task(index)
        yield index


def predict_all(b: Bench, cache: PredictionCache) -> None:
    """Predict all test samples as an evaluation does."""
    b.strategy.eval()
    with torch.no_grad():
        for given in given_tasks(b.strategy.world.scenario, TASKS):
            for _ in cache.predictions(b.strategy, b.stream.tests, BATCH, given):
                pass
    cache.evaluations += 1
