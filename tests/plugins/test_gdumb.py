from collections import Counter

import pytest
import torch
from clbench_gdumb import GDumbOptions
from clbench_gdumb.strategy import GDumb, greedy_slots
from helpers.methods import FEATURES, deep_model, make, move, task
from helpers.training import loop

from clbench.core.errors import SpecError
from clbench.core.options import validate
from clbench.core.registry import discover
from clbench.data.samples import Samples
from clbench.strategy.base import Task
from clbench.strategy.granted import PhaseSpec
from clbench.testing import tiny
from clbench.testing.tiny import bench
from clbench.training.costs import measure


def sampled(stream, capacity, draws):
    """Algorithm 1 as it is written down: sets by class, a random member of the largest goes."""
    sets, total, met = {}, 0, set()
    for i, (y, draw) in enumerate(zip(stream, draws.tolist(), strict=True)):
        met.add(y)
        sets.setdefault(y, [])
        if len(sets[y]) < capacity / len(met):
            if total >= capacity:
                largest = max(sets, key=lambda c: len(sets[c]))
                sets[largest].pop(int(draw * len(sets[largest])))
                total -= 1
            sets[y].append(i)
            total += 1
    return {y: sorted(members) for y, members in sets.items() if members}


@pytest.mark.parametrize("capacity", [1, 3, 7, 12, 40])
@pytest.mark.parametrize("seed", range(3))
def test_the_sampler_is_the_papers(capacity, seed):
    g = torch.Generator().manual_seed(seed)
    stream = [(0, int(y)) for y in torch.multinomial(torch.tensor([5.0, 1.0, 2.0, 0.3]), 60, True, generator=g)]
    draws = torch.rand(60, generator=g, dtype=torch.float64)
    source = greedy_slots([], stream, capacity, draws)
    found = {}
    for i in sorted(source.tolist()):
        found.setdefault(stream[i], []).append(i)
    assert found == sampled(stream, capacity, draws)


def test_the_sampler_goes_on_where_it_stopped():
    g = torch.Generator().manual_seed(0)
    stream = [(0, int(y)) for y in torch.randint(0, 5, (50,), generator=g)]
    draws = torch.rand(50, generator=g, dtype=torch.float64)
    first = greedy_slots([], stream[:20], 9, draws[:20])
    then = greedy_slots([stream[i] for i in first.tolist()], stream[20:], 9, draws[20:])
    assert len(then) == 9
    kept = Counter(stream[20 + i] if i >= 0 else stream[first[slot]] for slot, i in enumerate(then.tolist()))
    assert max(kept.values()) - min(kept.values()) <= 1 and len(kept) == 5


def test_classes_share_the_memory_and_the_first_ones_stay():
    strategy = make(GDumb, GDumbOptions(capacity=12), "class")
    for index, expected in enumerate([6, 3, 2]):
        before = {tuple(x) for x in strategy.memory_x.tolist()}
        strategy.before_task(task(index))
        counts = strategy.memory_y.bincount(minlength=6)
        assert counts[:2 * index + 2].tolist() == [expected] * (2 * index + 2)
        old = {tuple(x) for x, y in zip(strategy.memory_x.tolist(), strategy.memory_y.tolist(), strict=True)
               if y < 2 * index}
        assert old <= before
        for x, y, t in zip(strategy.memory_x, strategy.memory_y, strategy.memory_tasks, strict=True):
            source = task(int(t)).train
            assert int(y) == int(source.y[(source.x == x).all(1)])  # a sample of the stream, with its label and task


def test_where_tasks_share_their_classes_each_has_its_part():
    def shared(index):
        x = torch.randn(20, FEATURES, generator=torch.Generator().manual_seed(index), dtype=torch.float64)
        return Task(index, (0, 1), Samples(x, torch.arange(20) % 2, torch.full((20,), index)))

    strategy = make(GDumb, GDumbOptions(capacity=12), "domain")
    for index in range(3):
        strategy.before_task(shared(index))
    assert Counter(zip(strategy.memory_tasks.tolist(), strategy.memory_y.tolist(), strict=True)) == {
        (t, y): 2 for t in range(3) for y in range(2)}


def test_nothing_of_the_network_survives_a_task():
    strategy = make(GDumb, GDumbOptions(capacity=12), "class", deep_model)
    start = {n: p.detach().clone() for n, p in strategy.named_parameters()}
    for index in range(3):
        strategy.before_task(task(index))
        for name, p in strategy.named_parameters():
            assert torch.equal(p, start[name])
            assert p.data_ptr() != strategy.get_buffer(f"start__{name[6:].replace('.', '__')}").data_ptr()
        move(strategy, index)
        assert not any(torch.equal(p, start[name]) for name, p in strategy.named_parameters())
    assert "memory_x" in strategy.state_dict() and not any("start" in n for n in strategy.state_dict())


def test_running_statistics_begin_anew_too():
    b = bench(discover().strategy("gdumb"), {"capacity": 12}, "class", model="resnet20")
    start = {n: t.clone() for n, t in b.strategy.model.state_dict().items()}
    b.learn(0)
    now = b.strategy.model.state_dict()
    assert not any(torch.equal(now[n], start[n]) for n in now if "running_mean" in n)
    b.replica.begin(1)
    assert all(torch.equal(t, start[n]) for n, t in b.strategy.model.state_dict().items())


@pytest.mark.parametrize("other", [0, 1])
def test_what_is_learned_depends_on_the_memory_alone(other):
    """The tasks before the last are trained for long or hardly at all: the last network is the same."""
    ends = []
    for scale in (1.0, 50.0):
        b = bench(discover().strategy("gdumb"), {"capacity": 12}, "class", seed=other)
        for index in range(3):
            task_ = b.replica.begin(index)
            if index < 2:
                for p in b.strategy.parameters():
                    p.data += scale
                b.replica.finish(task_)
        with b.replica.seed_training(2):
            loop([b.strategy], tiny.RECIPE, [other]).take_task_steps([task_])
        ends.append(b.strategy.state_dict())
    assert all(torch.equal(ends[0][n], ends[1][n]) for n in ends[0])


def test_batches_are_of_the_memory_and_steps_those_of_the_task(monkeypatch):
    b = bench(discover().strategy("gdumb"), {"capacity": 6}, "class")
    b.learn(0)
    seen, loss = [], b.strategy.loss
    monkeypatch.setattr(b.strategy, "loss", lambda batch: seen.append(batch) or loss(batch))
    b.learn(1)
    steps = 2 * 24 // 8  # two epochs of the task
    assert len(seen) == steps and {len(batch.y) for batch in seen} == {6}
    assert {int(y) for batch in seen for y in batch.y} == set(b.strategy.memory_y.tolist())


def test_the_memory_is_counted_and_the_start_is_not():
    strategy = make(GDumb, GDumbOptions(capacity=7), "class")
    strategy.before_task(task(0))
    found = measure(strategy)
    assert found.replay_samples == 7 and set(found.bytes) == {"base", "replay"}
    assert found.bytes["base"] == sum(p.numel() for p in strategy.parameters()) * 8


def test_only_what_the_method_is_can_be_chosen():
    with pytest.raises(SpecError, match="the loss fixes outputs = seen"):
        validate(GDumbOptions, {"outputs": "own"}, "gdumb", "clbench methods")
    with pytest.raises(SpecError, match=r"gdumb\.capacity"):
        validate(GDumbOptions, {"capacity": 0}, "gdumb", "clbench methods")
    assert make(GDumb, GDumbOptions(), "class").phase_samples(task(0), PhaseSpec(0)) is not None
