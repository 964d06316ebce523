"""Accuracy while tasks are learned: training does not notice, stacks are as one, and the numbers are those by hand."""

from dataclasses import replace

import pytest
import torch
from helpers.methods import METHODS

from clbench.core import seeds
from clbench.core.hookspecs import StrategyInfo
from clbench.core.registry import discover
from clbench.data.stream import Tests
from clbench.experiment.spec import Recipe
from clbench.strategy.base import Prediction, Strategy
from clbench.testing.checks import SAMPLES, TASKS, bench, tiny_stream
from clbench.training import curve as curve_module
from clbench.training.curve import Watch, Watched, cost_in_words, first_tasks, points, some_tests
from clbench.training.lifecycle import learn_task
from clbench.training.trainer import Trainer

REGISTRY = discover()
RECIPE = Recipe(lr=0.01, batch_size=8, epochs=3)  # 9 steps a task
EVERYTHING = sorted({*REGISTRY.strategies} - {"avalanche:GSS_greedy"})  # which fails on tasks as small, anywhere


@pytest.fixture
def early(monkeypatch):
    """After two steps of a task only some have a point."""
    monkeypatch.setattr(curve_module, "FIRST", 2)


def lead(info, options, scenario="class", members=(0,), watch=True, model=None, recipe=RECIPE, samples=SAMPLES, every=3):
    """Train members together as a run does; return them, their curves and what each task's training told."""
    benches = [bench(info, options, scenario, seed, model) for seed in members]
    watched = [Watched.begin(b.strategy, b.stream, recipe, every, samples) for b in benches]
    trainer = Trainer([b.strategy for b in benches], recipe, list(members), watch=Watch(watched) if watch else None)
    told = []
    for index in range(TASKS):
        told.append(learn_task([b.learner for b in benches], index, trainer.fit))
        for one in watched if watch else ():
            one.consolidated(index)
    return benches, [one.curve for one in watched], told


def bits(strategy):
    """Return all that a strategy is: tensors, its draws, modes, and what it would draw from the global generators."""
    tensors = {**dict(strategy.named_parameters()), **dict(strategy.named_buffers())}
    return ({name: tensor.detach().clone() for name, tensor in tensors.items()},
            strategy.world.generator.get_state(), [m.training for m in strategy.modules()], seeds.state())


def assert_same(one, other):
    (tensors, generator, modes, drawn), (tensors_2, generator_2, modes_2, drawn_2) = bits(one), bits(other)
    assert tensors.keys() == tensors_2.keys() and modes == modes_2 and drawn == drawn_2
    assert torch.equal(generator, generator_2)
    assert [name for name, tensor in tensors.items() if not torch.equal(tensor, tensors_2[name])] == []


@pytest.mark.parametrize("name", EVERYTHING)
def test_training_is_the_same_bit_for_bit(name, early):
    info, options = REGISTRY.strategy(name), dict(METHODS).get(name, {})
    (plain,), _, told = lead(info, options, watch=False)
    (watched,), (curve,), told_2 = lead(info, options)
    assert_same(plain.strategy, watched.strategy)
    assert told == told_2  # steps, losses, FLOPs
    assert len(curve.after) == TASKS and [len(after) for after in curve.after] == [1, 2, 3]
