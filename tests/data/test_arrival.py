from collections import Counter
from dataclasses import replace

import pytest
import torch
from helpers.streams import permuted, raw, stochastic

from clbench.core import seeds
from clbench.core.errors import DataError
from clbench.data.arrival import arrive
from clbench.data.stream import to_stream
from clbench.experiment.arrival import Arrival
from clbench.testing.tiny import tiny_stream


def large(tasks=3, n=60, scenario="class", **extra):
    """A stream of tasks with two classes each and n samples, all of them distinct."""
    return to_stream(raw(tuple((2 * t, 2 * t + 1) for t in range(tasks)), n, **extra), scenario, "b")


def rows(samples):
    return [x.flatten().numpy().tobytes() for x in samples.x]


def home(stream):
    """The task that each input is of."""
    return {row: t for t, task in enumerate(stream.tasks) for row in rows(task.train)}


def counts(before, after):
    """[arriving task][original task]: samples, found by their inputs."""
    of = home(before)
    return [[Counter(of[row] for row in rows(task.train))[t] for t in range(len(before.tasks))] for task in after.tasks]


def arrived(stream, scenario="class", seed=0, **options):
    return arrive(stream, Arrival(**options), scenario, seed, "b")


def test_what_changes_nothing_is_the_stream_itself():
    stream = large()
    assert arrived(stream) is stream
    hidden = arrived(stream, boundaries="hidden")
    assert hidden.hidden and hidden.fingerprint == stream.fingerprint and hidden.tasks is stream.tasks
    assert not hidden.arrivals


def test_blur_moves_a_share_of_every_class_to_the_other_tasks_and_keeps_sizes():
    before = large(tasks=4, n=60)
    after = arrived(before, blur=0.2)
    found = counts(before, after)
    assert [len(t.train) for t in after.tasks] == [60] * 4
    for t in range(4):  # 6 of the 30 samples of each of its two classes, dealt out to three other tasks
        assert [found[s][t] for s in range(4)] == [48 if s == t else 4 for s in range(4)]
    for c in range(8):
        assert sum(int((t.train.y == c).sum()) for t in after.tasks) == 30
    assert sorted(r for t in after.tasks for r in rows(t.train)) == sorted(home(before))
    assert all(torch.equal(a.test.x, b.test.x) and a.classes == b.classes
               for a, b in zip(after.tasks, before.tasks, strict=True))
    assert after.tasks[1].train_classes == (2, 3, 0, 1, 4, 5, 6, 7) and set(after.tasks[1].train.tasks.tolist()) == {1}
    assert [sum(row) for row in after.arrivals] == [60] * 4 and after.arrivals[1][2] == 24


def test_labels_stay_with_their_inputs():
    before = large()
    known = {row: y for t in before.tasks for row, y in zip(rows(t.train), t.train.y.tolist(), strict=True)}
    for options in ({"blur": 0.3}, {"repeat": 0.5}, {"imbalance": 10}, {"blur": 1.0, "repeat": 1.0, "imbalance": 3}):
        after = arrived(before, **options)
        for task in after.tasks:
            assert [known[row] for row in rows(task.train)] == task.train.y.tolist()
            assert set(task.train.y.tolist()) == set(task.train_classes)


def test_full_blur_leaves_nothing_and_what_would_be_left_empty_is_refused():
    found = counts(large(), arrived(large(), blur=1.0))
    assert [found[t][t] for t in range(3)] == [0, 0, 0] and [sum(row) for row in found] == [60] * 3
    with pytest.raises(DataError, match="'b' has a single task"):
        arrived(large(tasks=1), blur=0.1)


def test_repeat_shares_a_class_out_among_the_tasks_that_have_it():
    before = large(tasks=3, n=60)
    found = counts(before, arrived(before, repeat=1.0))
    assert found == [[20, 0, 0], [20, 30, 0], [20, 30, 60]]
    some = [arrived(large(tasks=6), seed=s, repeat=0.5) for s in range(20)]
    returns = [sum(1 for t, row in enumerate(s.arrivals) for c, n in enumerate(row) if n and t > c // 2) for s in some]
    assert 11 < sum(returns) / 20 < 19  # 30 chances, probability 1/2; the mean of 20 is off by 3 less than once in 1000
    for stream in some:
        for c in range(12):  # shared out equally, but for what does not divide
            own = [row[c] for row in stream.arrivals if row[c]]
            assert sum(own) == 30 and max(own) - min(own) <= 1


def test_the_long_tail_is_exponential_over_classes_in_random_order():
    before = large(tasks=3, n=200)
    after = arrived(before, imbalance=10.0)
    kept = sorted((n for row in after.arrivals for n in row if n), reverse=True)
    assert kept == [round(100 * 10 ** (-k / 5)) for k in range(6)] and kept[0] == 10 * kept[-1]
    assert [t.train_classes for t in after.tasks] == [t.classes for t in before.tasks]
    orders = {tuple(map(tuple, arrived(before, seed=s, imbalance=10.0).arrivals)) for s in range(4)}
    assert len(orders) == 4
    assert min(n for row in arrived(large(n=8), imbalance=1e6).arrivals for n in row if n) == 1


def test_draws_depend_on_the_seed_alone():
    first, again, other = (arrived(large(), seed=s, blur=0.3) for s in (0, 0, 1))
    assert first.fingerprint == again.fingerprint and torch.equal(first.tasks[0].train.x, again.tasks[0].train.x)
    assert first.fingerprint != other.fingerprint != large().fingerprint
    with seeds.scope(5):
        assert arrived(large(), blur=0.3).fingerprint == first.fingerprint


def test_shared_outputs_keep_their_meaning_in_every_task():
    before = large(scenario="domain", class_names=tuple("abcdef"))
    after = arrived(before, "domain", blur=0.5)
    known = {row: y for t in before.tasks for row, y in zip(rows(t.train), t.train.y.tolist(), strict=True)}
    for t, task in enumerate(after.tasks):
        assert task.train_classes == (0, 1) and task.train_class_names == ()  # output 0 is three classes now
        assert [known[row] for row in rows(task.train)] == task.train.y.tolist()
        assert list(after.arrivals[t]) == [30 if s == t else 15 for s in range(3)]
    assert arrived(before, "domain", imbalance=4.0).tasks[1].train_class_names == ("c", "d")


def test_names_go_with_their_classes():
    after = arrived(large(class_names=tuple("abcdef")), blur=0.5)
    assert after.tasks[1].train_classes == (2, 3, 0, 1, 4, 5) and "".join(after.tasks[1].train_class_names) == "cdabef"


def test_permuted_inputs_keep_the_permutation_of_their_own_task():
    before = to_stream(permuted(3, 30)[0], "domain", "b")
    found = counts(before, arrived(before, "domain", blur=0.4))
    assert [found[t][t] for t in range(3)] == [18] * 3


def test_random_transforms_are_still_drawn_for_each_sample():
    before = stochastic("class")
    after = arrived(before, blur=0.5)
    train = after.tasks[0].train
    assert train.is_stochastic and not torch.equal(train.take(torch.arange(24)).x, train.take(torch.arange(24)).x)
    # Each bar is brighter than any noise, and says which class an input is of.
    bars = train.take(torch.arange(24)).x.float().mean((1, 3)).argmax(1)
    assert torch.equal(bars, train.y)


def test_classes_that_return_already_are_one_class():
    stream = to_stream(raw(((0, 1), (1, 2)), 40), "class", "b")
    after = arrived(stream, imbalance=8.0)
    ratios = {c: [row[c] for row in after.arrivals if row[c]] for c in range(3)}
    assert ratios[1][0] == ratios[1][1]  # thinned alike in both
    assert sorted(v[0] for v in ratios.values()) == [round(20 / 8), round(20 / 8 ** 0.5), 20]


def test_outputs_offered_are_those_that_have_arrived():
    after = arrived(large(tasks=4), blur=0.3)
    assert after.arrived(1) == list(range(8)) and large(tasks=4).arrived(2) == [0, 1, 2, 3]
    assert tiny_stream("class").arrived(0) == []
    assert replace(after, hidden=True).tasks_for_strategy == 1
