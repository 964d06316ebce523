import subprocess
import sys

import pytest
import torch
from torch import nn

from clbench.core.hookspecs import StrategyInfo
from clbench.core.registry import discover
from clbench.experiment.spec import Recipe
from clbench.strategy.per_task import PerTaskStrategy
from clbench.testing.checks import TASKS, bench
from clbench.training import kept_answers, numerics
from clbench.training.evaluation import evaluate
from clbench.training.kept_answers import KeptAnswers

pytestmark = pytest.mark.usefixtures("small_batches")


def counted(strategy):
    """Count the samples of each call of `forward_task`, by task."""
    calls = {}
    original = strategy.forward_task

    def forward_task(x, task):
        calls.setdefault(task, []).append(len(x))
        return original(x, task)

    strategy.forward_task = forward_task
    return calls


@pytest.mark.parametrize("scenario", ["task", "class", "domain"])
@pytest.mark.parametrize(("method", "options"), [
    ("lora", {"rank": 2}), ("lora", {"rank": 2, "infer": "prototype"}),
    ("lora", {"rank": 2, "infer": "gaussian", "infer_normalize": True}), ("lora", {"rank": 2, "layers": "last"}),
    ("independent", {}), ("pnn", {}), ("shared-private", {"infer": "max-logit"}), ("packnet", {}), ("acl", {})])
def test_every_row_is_the_one_computed_anew(method, options, scenario):
    b = bench(discover().strategy(method), options, scenario)
    kept = KeptAnswers()
    for learned in range(TASKS + 1):
        if learned:
            b.learn(learned - 1)
        assert evaluate(b.strategy, b.stream, scenario, learned, kept) == evaluate(b.strategy, b.stream, scenario,
                                                                                   learned)
        assert evaluate(b.strategy, b.stream, scenario, learned, kept).accuracy  # all kept now


@pytest.mark.parametrize(("scenario", "samples"), [("task", 24), ("class", 24 * TASKS)])
@pytest.mark.parametrize("method", ["lora", "independent", "pnn"])
def test_only_the_new_part_runs_on_more_than_a_few_samples(method, scenario, samples):
    b = bench(discover().strategy(method), {}, scenario)
    kept = KeptAnswers()
    for learned in range(1, TASKS + 1):
        b.learn(learned - 1)
        calls = counted(b.strategy)
        evaluate(b.strategy, b.stream, scenario, learned, kept)
        del b.strategy.forward_task
        if learned > 1:
            assert {task: sum(sizes) for task, sizes in calls.items()} == {
                task: 5 + (samples if task == learned - 1 else 0) for task in range(learned)}


class Scaled(PerTaskStrategy):
    """Heads on the untouched model, with a buffer and a plain number that change answers."""

    factor = 1.0

    def __init__(self, model, world, options=None):
        super().__init__(model, world)
        self.register_buffer("shift", torch.zeros(()))
        self.unused = nn.Parameter(torch.zeros(3))

    def forward_task(self, x, task):
        return self.heads[task](self.model.features(x) * self.factor + self.shift)

    def shared_features(self, x):
        return self.model.features(x)


def test_watching_does_not_import_the_compiler():
    code = ("import sys, torch; from clbench.training.kept_answers import Reads\n"
            "with torch.no_grad(), Reads() as reads: torch.nn.Linear(2, 3)(torch.ones(1, 2))\n"
            "print(len(reads.storages) > 2, 'torch._dynamo' in sys.modules)")
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.split() == ["True", "False"]


def through_data(strategy):
    parameter = strategy.model.blocks[1].body.weight
    parameter.data = parameter.data + 1  # no version of the parameter tells of it


def far_from_the_few(strategy):
    with torch.no_grad():
        strategy.shift += 1e-12  # the few answers stay what they were


@pytest.mark.parametrize("scenario", ["task", "class"])
@pytest.mark.parametrize(("change", "noticed"), [
    (through_data, True), (far_from_the_few, True), (lambda s: setattr(s, "factor", -1.0), True),
    (lambda s: s.heads[0].weight.data.mul_(-1), True), (lambda s: s.unused.data.add_(1), False)])
def test_a_change_of_anything_behind_an_answer_is_noticed(scenario, change, noticed):
    b = bench(StrategyInfo("x", Scaled, ""), {}, scenario)
    kept = KeptAnswers()
    b.learn(0)
    before = evaluate(b.strategy, b.stream, scenario, 1, kept)
    change(b.strategy)
    calls = counted(b.strategy)
    again = evaluate(b.strategy, b.stream, scenario, 1, kept)
    assert (sum(calls[0]) > 5) == noticed
    del b.strategy.forward_task
    assert again == evaluate(b.strategy, b.stream, scenario, 1)
    assert noticed or again == before


def test_a_part_that_goes_on_changing_is_not_watched_any_more():
    b = bench(StrategyInfo("x", Scaled, ""), {}, "class")
    kept = KeptAnswers()
    b.learn(0)
    sizes = []
    for _ in range(4):
        calls = counted(b.strategy)
        evaluate(b.strategy, b.stream, "class", 1, kept)
        sizes.append(sum(calls[0]))
        del b.strategy.forward_task
        b.strategy.shift += 1
    assert sizes == [24 * TASKS + 5] * 3 + [24 * TASKS]


def test_no_more_is_kept_than_the_budget(monkeypatch):
    monkeypatch.setattr(kept_answers, "BYTES", 24 * TASKS * 2 * 4)  # two logits of each sample
    b = bench(StrategyInfo("x", Scaled, ""), {}, "class")
    kept = KeptAnswers()
    for learned in (1, 2):
        b.learn(learned - 1)
        row = evaluate(b.strategy, b.stream, "class", learned, kept)
        assert row == evaluate(b.strategy, b.stream, "class", learned)
    assert [answers.shape for _, answers in kept.known.values()] == [(24 * TASKS, 2)]


def test_a_frozen_weight_that_is_rounded_once_is_still_seen_to_be_read(monkeypatch):
    monkeypatch.setattr(numerics, "MANY", 1)
    b = bench(discover().strategy("lora"), {"rank": 2}, "task")
    kept = KeptAnswers()
    b.learn(0)
    forward = numerics.forward(Recipe(precision="bf16"), torch.device("cpu"), b.strategy)
    for changes in (0, 0, 1):
        if changes:
            next(iter(b.strategy.adapted.values())).base_layer.weight.data.mul_(0.5)
        with forward:
            row = evaluate(b.strategy, b.stream, "task", 1, kept)
            assert row == evaluate(b.strategy, b.stream, "task", 1)
        assert sum(kept.changes.values()) >= changes
    assert isinstance(forward, numerics.Bfloat16) and forward.copies
