import itertools
import sys
from types import SimpleNamespace

import pytest
import torch
from helpers.with_teacher import WithTeacher
from torch import nn

from clbench.core.hookspecs import StrategyInfo
from clbench.strategy.base import Strategy
from clbench.testing.tiny import RECIPE, bench
from clbench.training.callbacks.curve import CurveCallback
from clbench.training.costs import Clock, PeakMemory, measure, role
from clbench.training.loop import TrainingLoop


class Keeps(Strategy):
    roles = (("memory_*", "replay"), ("extra.*", "heads"))

    def __init__(self, model, stream_info, options):
        super().__init__(model, stream_info, options)
        self.register_buffer("memory_x", torch.zeros(7, 1, 8, 8, dtype=torch.uint8))
        self.register_buffer("memory_y", torch.zeros(7, dtype=torch.int64))
        self.register_buffer("scratch", torch.zeros(100), persistent=False)
        self.extra = nn.Linear(3, 2)
        self.alias = self.extra


def test_what_is_kept_is_counted_by_role_and_once():
    b = bench(StrategyInfo("keeps", Keeps, ""), {}, "task")
    kept = measure(b.strategy)
    body = sum(p.numel() for p in b.strategy.model.parameters())
    assert kept.parameters == {"base": body, "heads": 8}
    assert kept.bytes == {"base": 4 * body, "heads": 32, "replay": 7 * 64 + 7 * 8}
    assert kept.replay_samples == 7
    assert role(b.strategy, "memory_x") == "replay"
    assert role(b.strategy, "model.head.weight") == "base"


class Renames(WithTeacher):
    roles = (("teacher.weight", "matrix"), ("memory_seen", "totals"))


class Mixed(Keeps, Renames):
    def __init__(self, model, stream_info, options):
        WithTeacher.__init__(self, model, stream_info, options)


def test_a_class_adds_to_the_roles_of_its_bases():
    b = bench(StrategyInfo("with-teacher", WithTeacher, ""), {}, "class")
    b.learn(0)
    kept = measure(b.strategy)
    model = 4 * sum(p.numel() for p in b.strategy.model.parameters())
    # ten images of 64 bytes with label and task (int64); of the six classes a count (int64) and a mark (bool)
    assert kept.bytes == {"base": model, "teacher": 32, "replay": 10 * (64 + 8 + 8), "counters": 6 * (8 + 1)}
    assert kept.replay_samples == 10
    b.strategy.register_buffer("validation_x", torch.zeros(3, 64))
    b.strategy.roles = (("validation_*", "replay"), ("bank.*", "replay"), *b.strategy.roles)
    assert measure(b.strategy).replay_samples == 13
    b.strategy.bank = nn.Module()
    for name in ("x", "y", "tasks"):
        b.strategy.bank.register_buffer(name, torch.zeros(4))
    assert measure(b.strategy).replay_samples == 17
    for name in ("old_x", "old_y"):
        b.strategy.bank.register_buffer(name, torch.zeros(2))
    assert measure(b.strategy).replay_samples == 19


def test_the_roles_of_a_class_come_before_those_of_its_bases():
    strategy = bench(StrategyInfo("renames", Renames, ""), {}, "class").strategy
    names = ("teacher.weight", "teacher.bias", "memory_seen", "memory_full", "memory_x")
    assert [role(strategy, name) for name in names] == ["matrix", "teacher", "totals", "counters", "replay"]
    # of two bases the first one's come first: `Keeps` has "memory_*" for replay, so its pattern takes the counters
    strategy = bench(StrategyInfo("mixed", Mixed, ""), {}, "class").strategy
    assert [role(strategy, name) for name in names] == ["matrix", "teacher", "replay", "replay", "replay"]
    strategy.roles = (("memory_x", "images"),)  # of one object
    assert [role(strategy, name) for name in ("memory_x", "memory_y")] == ["images", "replay"]


def test_seeds_of_a_stack_share_its_time(monkeypatch):
    ticks = itertools.count()
    monkeypatch.setattr(Clock, "now", classmethod(lambda cls: cls(t := float(next(ticks)), 10 * t)))
    replicas = [bench(StrategyInfo("naive", Strategy, ""), {}, "class", seed).replica for seed in (0, 1)]
    TrainingLoop(replicas, RECIPE).train_task(0)  # four looks at the clock
    for times in (replica.timings for replica in replicas):
        assert (times.train, times.consolidate) == ([0.5], [1.0])
        assert (times.train_cpu, times.consolidate_cpu) == ([5.0], [10.0])


def test_evaluations_between_steps_are_no_training():
    replicas = [bench(StrategyInfo("naive", Strategy, ""), {}, "class", seed).replica for seed in (0, 1)]
    for replica in replicas:
        replica.timings.train.append(5.0)
        replica.timings.train_cpu.append(7.0)
    curve = CurveCallback(1, 10)
    curve.spent = Clock(4.0, 6.0)
    curve.on_trained(SimpleNamespace(replicas=replicas), [])
    assert [(t.train, t.curve, t.train_cpu, t.curve_cpu) for t in (r.timings for r in replicas)] == [
        ([3.0], [2.0], [4.0], [3.0])] * 2


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory_is_in_bytes():
    memory, block = PeakMemory(torch.device("cpu")), torch.ones(50_000_000, dtype=torch.uint8)
    peak = memory.host()
    assert peak is None or len(block) < peak < 10**12
