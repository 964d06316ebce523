import math
import re
from pathlib import Path

import pytest
import torch

from clbench.core.entry_points import resolve
from clbench.core.hookspecs import StrategyInfo
from clbench.core.registry import discover
from clbench.data.arrival import arrive
from clbench.experiment.arrival import Arrival
from clbench.strategy.base import Strategy
from clbench.strategy.per_task import PerTaskStrategy
from clbench.testing import NonConforming, bench, check, tiny_stream
from clbench.training.evaluation import evaluate

REGISTRY = discover()
OURS = {name: info for name, info in REGISTRY.strategies.items()
        if REGISTRY.origins["method", name].distribution == "clbench" and not info.unavailable}
FREE = sorted(name for name, info in OURS.items() if info.task_free)
SLOW = {"l2p", "a-gem", "der", "mir", "simplecil"}  # their kin are checked every time
MOVED = sorted(name for name, info in OURS.items() if not info.parts_per_task and not name.startswith("avalanche:"))
SMALL = {"bic": {"capacity": 60}, "icarl": {"capacity": 60}, "wa": {"capacity": 60}, "lucir": {"capacity": 60},
         "podnet": {"capacity": 60}, "dynamic-er": {"capacity": 60}}
PAGE = Path(__file__).parents[2] / "docs" / "task-free-streams.md"


def free_options(name):
    """Options that need no boundaries."""
    fields = OURS[name].options.model_fields
    return {**({"base": "random"} if "base" in fields else {}),
            **({"outputs": "seen"} if name == "l2p" else {}), **({"capacity": 20} if "capacity" in fields else {}),
            **({"replay": 0.5} if "replay" in fields else {})}


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in FREE])
def test_no_boundary_reaches_a_method_that_is_task_free(name):
    check(name, "task-free", free_options(name))


class CountsRows(Strategy):
    """Learns of each evaluation, and so of each boundary."""

    def __init__(self, model, stream_info, options):
        super().__init__(model, stream_info, options)
        self.register_buffer("rows", torch.zeros(()))

    def train(self, mode=True):
        if not mode and hasattr(self, "rows"):
            self.rows += 1
        return super().train(mode)


class LooksAtTasks(Strategy):
    """Would train otherwise if it were told tasks; draws when a phase begins."""

    def before_phase(self, task, phase):
        torch.rand(3, generator=self.stream_info.generator)

    def loss(self, batch):
        return super().loss(batch) * (1 + batch.tasks.float().mean() + batch.task)


def test_the_check_catches_a_boundary_that_is_heard_and_passes_who_hears_none():
    with pytest.raises(NonConforming, match=r"boundaries after \[44, 72\] samples instead of \[24, 48, 72\]: rows is"):
        check(StrategyInfo("bad", CountsRows, "", task_free=True), "task-free")
    check(StrategyInfo("good", LooksAtTasks, "", task_free=True), "task-free")
    check(StrategyInfo("undeclared", CountsRows, ""), "task-free")  # nothing is claimed


def test_parts_for_each_task_are_declared():
    found = {name for name, info in OURS.items() if not name.startswith("avalanche:")
             and issubclass(resolve(info.strategy, name), PerTaskStrategy)}
    declared = {name for name, info in OURS.items() if info.parts_per_task}
    assert found <= declared and len(found) > 5
    assert not any(info.task_free and info.parts_per_task for info in OURS.values())


@pytest.mark.parametrize("name", MOVED)
def test_every_other_method_learns_from_a_blurred_stream(name):
    for scenario in ("class", "domain")[:2 if name in ("er", "icarl") else 1]:
        stream = arrive(tiny_stream(scenario), Arrival(blur=0.5), scenario, 0, "tiny")
        b = bench(OURS[name], SMALL.get(name, {}), scenario, stream=stream)
        for index in range(3):
            task = b.learn(index)
            assert set(task.train.y.tolist()) == set(task.classes)
            row = evaluate(b.strategy, stream, scenario, index + 1)
            assert all(math.isfinite(a) for a in row.accuracy)
            with torch.no_grad():  # every class that has arrived, in whatever task, can be answered
                logits = b.strategy.eval()(stream.prepare(stream.tasks[0].test.x))
            assert torch.isfinite(logits[:, stream.arrived(index + 1)]).all()
            assert stream.arrived(1) == list(range(stream.classes))


def test_the_page_names_the_methods():
    text = PAGE.read_text()
    table = text.split("<!-- task-free: checked by a test -->")[1].split("\n\n")[0]
    assert sorted(re.findall(r"^\| `(.+?)` \|", table, re.M)) == FREE
    parts = text.split("<!-- parts per task: checked by a test -->")[1].split(".\n\n")[0]
    assert sorted(re.findall("`(.+?)`", parts)) == sorted(n for n, i in OURS.items() if i.parts_per_task)
