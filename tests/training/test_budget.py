import re
from types import SimpleNamespace

import pytest

from clbench.core.errors import PluginError, SpecError
from clbench.core.hookspecs import StrategyInfo
from clbench.experiment.spec import Recipe
from clbench.strategy.base import Strategy
from clbench.testing.tiny import bench
from clbench.training.budget import FEW, describe_task_steps, phases_of

HINT = ": few; --epochs N or --iterations N gives more"


@pytest.mark.parametrize(("recipe", "samples", "words"), [
    ({}, [96, 120], f"10 optimizer steps a task (96 to 120 samples, batch 128, 10 epochs){HINT}"),
    ({"epochs": 1}, [96], f"1 optimizer step a task (96 samples, batch 128, 1 epoch){HINT}"),
    ({"iterations": FEW}, [96], f"{FEW} optimizer steps a task (96 samples, batch 128, {FEW} iterations)"),
    ({"iterations": FEW - 1}, [96], f"{FEW - 1} optimizer steps a task (96 samples, batch 128, {FEW - 1} iterations)"
                                    f"{HINT}"),
    ({}, [800, 5000], "70 to 400 optimizer steps a task (800 to 5,000 samples, batch 128, 10 epochs)"),
    ({}, [300, 5000], f"30 to 400 optimizer steps a task (300 to 5,000 samples, batch 128, 10 epochs){HINT}"),
])
def test_the_steps_of_a_task_are_told_in_words(recipe, samples, words):
    assert describe_task_steps(Recipe(**recipe), samples) == words


@pytest.mark.parametrize(("shares", "steps", "parts"), [
    (2, 5, [2, 3]), ((160, 20), 18, [16, 2]), ((160, 20), 3, [2, 1]), ((1, 99), 3, [1, 2]), ((9, 1, 1, 1), 4, [1] * 4),
    ((1, 1, 98), 3, [1] * 3), ((1,), 1, [1]),
])
def test_each_phase_has_its_share_of_the_steps_and_at_least_one(shares, steps, parts):
    strategy = SimpleNamespace(phases=lambda task: shares)
    assert [phase.steps for phase in phases_of(strategy, None, Recipe(), steps)] == parts


@pytest.mark.parametrize("phases", [None, -1, "2", 1.0, (0.0, 0.0), (float("nan"), 1), (-1, 2), (float("inf"), 1)])
def test_what_is_no_number_of_phases_is_refused_and_not_trained_without_steps(phases):
    b = bench(StrategyInfo("bad", type("Mine", (Strategy,), {"phases": lambda self, task: phases}), ""), {}, "task")
    with pytest.raises(PluginError, match=re.escape(f"`phases` of Mine returned {phases!r}; it must")):
        b.learn(0)


def test_fewer_steps_than_phases_are_refused():
    with pytest.raises(SpecError, match="1 steps cannot be split into 2 phases"):
        phases_of(SimpleNamespace(phases=lambda task: 2), SimpleNamespace(index=0), Recipe(), 1)
