import copy
from collections import Counter

import pytest
import torch
from scipy import stats

from clbench.data.samples import HostSamples, Samples, StochasticSamples
from clbench.models.builtin import MLPOptions
from clbench.models.small import mlp
from clbench.strategy.base import StreamInfo
from clbench.strategy.replay import ReplayMemory, class_balanced_slots, reservoir_slots

CLASSES = 4


def make(capacity=10, balance="reservoir", seed=0):
    stream_info = StreamInfo(CLASSES, 3, "class", (1, 2, 2), torch.Generator().manual_seed(seed))
    return ReplayMemory(mlp(MLPOptions(width=3, depth=1), (1, 2, 2), CLASSES), stream_info, capacity=capacity,
                        balance=balance)


def stream(n, start=0, labels=None, seed=0):
    """Samples whose pixels spell out their number in the stream."""
    number = torch.arange(start, start + n)
    x = torch.stack([number % 256, number // 256, 0 * number, 0 * number], 1).to(torch.uint8).reshape(n, 1, 2, 2)
    y = torch.tensor(labels) if labels else torch.randint(0, CLASSES, (n,),
                                                          generator=torch.Generator().manual_seed(seed + start))
    return Samples(x, y, number % 3)


def numbers(memory):
    flat = memory.x.flatten(1).long()
    return (flat[:, 0] + 256 * flat[:, 1]).tolist()


def plain_reservoir(n, capacity, draws):
    kept = []
    for i in range(n):
        if len(kept) < capacity:
            kept.append(i)
        else:
            j = int(draws[i] * (i + 1))
            if j < capacity:
                kept[j] = i
    return kept


def plain_balanced(labels, capacity, draws):
    kept, seen, full = [], Counter(), set()
    for i, c in enumerate(labels):
        seen[c] += 1
        counts = Counter(labels[k] for k in kept)
        if len(kept) < capacity:
            kept.append(i)
        elif c not in full:
            largest = [k for k in range(CLASSES) if counts[k] == max(counts.values())]
            slots = [s for k in largest for s in range(capacity) if labels[kept[s]] == k]
            kept[slots[int(draws[i][1] * len(slots))]] = i
        elif draws[i][0] < counts[c] / seen[c]:
            slots = [s for s in range(capacity) if labels[kept[s]] == c]
            kept[slots[int(draws[i][1] * len(slots))]] = i
        if len(kept) == capacity:
            counts = Counter(labels[k] for k in kept)
            full |= {k for k in counts if counts[k] == max(counts.values())}
    return kept


@pytest.mark.parametrize("sizes", [[1] * 60, [60], [7, 3, 30, 1, 19], [10, 50]])
@pytest.mark.parametrize("balance", ["reservoir", "class"])
@pytest.mark.parametrize("capacity", [1, 10, 59, 200])
def test_filling_by_batches_equals_a_plain_loop_over_samples(sizes, balance, capacity):
    strategy = make(capacity, balance, seed=7)
    whole = Samples.concat(stream(60))
    start = 0
    for size in sizes:
        strategy.offer(whole.take(torch.arange(start, start + size)))
        start += size
        assert len(strategy.memory) == min(capacity, start)
    g = torch.Generator().manual_seed(7)
    draws = torch.cat([torch.rand(size, 2, generator=g, dtype=torch.float64) for size in sizes])
    if balance == "class":
        expected = plain_balanced(whole.y.tolist(), capacity, draws.tolist())
    else:
        expected = plain_reservoir(60, capacity, draws[:, 0].tolist())
    assert numbers(strategy.memory) == expected
    assert torch.equal(strategy.memory.y, whole.y[expected])
    assert torch.equal(strategy.memory.tasks, whole.tasks[expected])
    assert strategy.memory_seen.tolist() == torch.bincount(whole.y, minlength=CLASSES).tolist()


def test_of_several_samples_for_one_slot_the_last_stays():
    draws = torch.tensor([0.0, 0.0, 0.99, 0.0], dtype=torch.float64)
    assert reservoir_slots(memory_size=2, seen=5, capacity=2, draws=draws).tolist() == [3, -1]


@pytest.mark.slow
def test_every_sample_is_kept_with_the_same_probability():
    n, capacity, runs = 60, 12, 2000
    strategy, counts = make(capacity, seed=1), torch.zeros(n)
    parts = [stream(25, 0), stream(35, 25)]
    for _ in range(runs):
        fresh = copy.copy(strategy)
        fresh._buffers = {k: v.clone() for k, v in strategy._buffers.items()}
        for part in parts:
            fresh.offer(part)
        kept = numbers(fresh.memory)
        assert len(set(kept)) == capacity
        counts[kept] += 1
    # counts of one run are exclusive, which only shrinks the statistic: correct by n / (n - capacity)
    expected = runs * capacity / n
    statistic = float(((counts - expected) ** 2 / expected).sum()) * (n - 1) / (n - capacity)
    assert 0.005 < stats.chi2.sf(statistic, n - 1) < 0.995
    assert stats.spearmanr(counts.numpy(), range(n)).pvalue > 0.01


def test_draws_are_uniform_and_without_replacement():
    strategy = make(capacity=20, seed=2)
    strategy.offer(stream(20))
    counts = Counter()
    for _ in range(3000):
        drawn = numbers(strategy.sample(5))
        assert len(set(drawn)) == 5
        counts.update(drawn)
    assert stats.chisquare([counts[i] for i in range(20)]).pvalue > 0.01
    assert sorted(numbers(strategy.sample(50))) == list(range(20))


@pytest.mark.parametrize("balance", ["reservoir", "class"])
def test_draws_come_from_the_given_generator_only(balance):
    a, b = make(balance=balance, seed=5), make(balance=balance, seed=5)
    before = torch.get_rng_state()
    for strategy in (a, b):
        for start in range(0, 90, 30):
            strategy.offer(stream(30, start))
            strategy.sample(4)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(a.memory_x, b.memory_x)
    assert torch.equal(a.stream_info.generator.get_state(), b.stream_info.generator.get_state())


def test_shapes_and_draws_depend_on_counts_only():
    for balance in ("reservoir", "class"):
        a, b = make(balance=balance), make(balance=balance)
        a.offer(stream(30, labels=[0] * 30))
        b.offer(stream(30, labels=[0, 1, 2] * 10))
        assert {k: v.shape for k, v in a.named_buffers()} == {k: v.shape for k, v in b.named_buffers()}
        assert torch.equal(a.stream_info.generator.get_state(), b.stream_info.generator.get_state())


def test_class_balance_evens_out_classes_that_come_one_after_the_other():
    strategy = make(capacity=24, balance="class")
    for label, n in ((0, 500), (1, 40), (2, 300)):
        strategy.offer(stream(n, 0, [label] * n))
    assert torch.bincount(strategy.memory_y).tolist() == [8, 8, 8]
    strategy.offer(stream(3, 0, [3] * 3))  # fewer than an even share: all of them stay
    strategy.offer(stream(200, 0, [0] * 200))
    counts = torch.bincount(strategy.memory_y).tolist()
    assert sum(counts) == 24 and counts[3] == 3 and max(counts) - min(counts[:3]) <= 1


def test_within_a_full_class_each_sample_is_kept_with_the_same_probability():
    kept = torch.zeros(50)
    g = torch.Generator().manual_seed(3)
    labels = [0, 1] * 25
    runs = 3000
    for _ in range(runs):
        source = class_balanced_slots([], labels, [0, 0], [False, False], 10,
                                      torch.rand(50, 2, generator=g, dtype=torch.float64))
        kept[source] += 1
    assert kept.sum() == 10 * runs
    p = 5 / 25  # both classes are the largest as soon as the memory is full, 5 each
    assert ((kept / runs - p).abs() < 4 * (p * (1 - p) / runs) ** 0.5).all()


def test_samples_are_stored_as_they_come():
    strategy = make()
    strategy.double()
    strategy.offer(stream(4))
    assert strategy.memory_x.dtype == torch.uint8 and strategy.memory_x.shape == (4, 1, 2, 2)
    floats = make()
    part = stream(30)
    floats.offer(Samples(part.x.float(), part.y, part.tasks))
    floats.double().offer(Samples(part.x.float(), part.y, part.tasks))
    assert floats.memory_x.dtype == torch.float64 and len(floats.memory) == 10


def test_of_a_task_on_the_host_only_what_is_kept_is_copied(monkeypatch):
    plain, (ours, theirs) = stream(60), (make(), make())
    theirs.offer(plain)
    monkeypatch.setattr(HostSamples, "x", property(lambda _: pytest.fail("all inputs were copied")))
    ours.offer(HostSamples(plain.x, plain.y, plain.tasks))
    for name in ("memory_x", "memory_y", "memory_tasks", "memory_seen"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), name


def test_samples_that_are_drawn_anew_are_kept_as_they_were_drawn_first():
    plain, (ours, theirs) = stream(60), (make(), make())
    theirs.offer(plain)
    ours.offer(StochasticSamples(plain.x, plain.y, plain.tasks, lambda i: pytest.fail("drawn anew")))
    assert torch.equal(ours.memory_x, theirs.memory_x)


@pytest.mark.parametrize("balance", ["reservoir", "class"])
def test_state_dict_brings_everything_back(balance):
    old, new = make(balance=balance), make(balance=balance)
    old.offer(stream(40))
    new.load_state_dict(old.state_dict())
    assert new.memory_x.dtype == torch.uint8
    new.stream_info.generator.set_state(old.stream_info.generator.get_state())
    for strategy in (old, new):
        strategy.offer(stream(40, 40))
    for (name, a), (_, b) in zip(old.named_buffers(), new.named_buffers(), strict=True):
        assert torch.equal(a, b), name


def test_a_deep_copy_goes_its_own_way():
    strategy = make()
    strategy.offer(stream(20))
    before = numbers(strategy.memory)
    twin = copy.deepcopy(strategy)
    twin.offer(stream(200, 20))
    assert numbers(strategy.memory) == before
    strategy.offer(stream(200, 20))
    assert numbers(strategy.memory) == numbers(twin.memory)
