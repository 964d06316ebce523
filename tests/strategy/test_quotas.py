"""Memories with so many samples of each class (`per_class`), or of each class in each task (`quota`)."""

from collections import Counter

import pytest
import torch
from clbench_agem import AGEMOptions
from clbench_agem.strategy import AGEM
from clbench_bic import BiCOptions
from clbench_bic.strategy import BiC
from clbench_er import EROptions
from clbench_er.strategy import ER
from clbench_icarl import ICaRLOptions
from clbench_icarl.strategy import ICaRL
from helpers.methods import activate, deep_model, make, move, task
from scipy import stats

from clbench.core.errors import SpecError
from clbench.core.options import label, validate
from clbench.core.registry import discover
from clbench.data.samples import Samples
from clbench.models.builtin import MLPOptions
from clbench.models.small import mlp
from clbench.report.analysis.readable import as_ids, fill_display_name
from clbench.strategy.base import StreamInfo, Task

CLASSES, TASKS = 4, 3


def memory(options, seed=0, cls=ER, scenario="class"):
    stream_info = StreamInfo(CLASSES, TASKS, scenario, (1, 2, 2), torch.Generator().manual_seed(seed))
    return cls(mlp(MLPOptions(width=3, depth=1), (1, 2, 2), CLASSES), stream_info, options)


def stream(n, tasks=1):
    """Samples whose pixels are their number in the stream, in tasks one after the other."""
    number = torch.arange(n)
    x = torch.stack([number % 256, number // 256, 0 * number, 0 * number], 1).to(torch.uint8).reshape(n, 1, 2, 2)
    y = torch.randint(0, CLASSES, (n,), generator=torch.Generator().manual_seed(1))
    return Samples(x, y, number * tasks // n)


def numbers(samples):
    flat = samples.x.flatten(1).long()
    return (flat[:, 0] + 256 * flat[:, 1]).tolist()


def plain_reservoirs(groups, quota, draws):
    """Algorithm R in each group, in dictionaries; slots in the order in which they were first filled."""
    kept, seen = [], Counter()
    for i, group in enumerate(groups):
        seen[group] += 1
        own = [slot for slot, (other, _) in enumerate(kept) if other == group]
        if len(own) < quota:
            kept.append((group, i))
        elif (j := int(draws[i] * seen[group])) < quota:
            kept[own[j]] = (group, i)
    return [i for _, i in kept]


@pytest.mark.parametrize("sizes", [[90], [1] * 90, [7, 40, 3, 40]])
@pytest.mark.parametrize("quota", ["class", "class-and-task"])
@pytest.mark.parametrize("per_class", [1, 5, 40])
def test_each_group_has_a_reservoir_of_its_own(sizes, quota, per_class):
    strategy, whole, start = memory(EROptions(per_class=per_class, quota=quota), seed=7), stream(90, TASKS), 0
    for size in sizes:
        strategy.offer(whole.take(torch.arange(start, start + size)))
        start += size
    g = torch.Generator().manual_seed(7)
    draws = torch.cat([torch.rand(size, 2, generator=g, dtype=torch.float64) for size in sizes])[:, 0].tolist()
    groups = [(y, t if quota == "class-and-task" else 0) for y, t in zip(whole.y.tolist(), whole.tasks.tolist(),
                                                                          strict=True)]
    expected = plain_reservoirs(groups, per_class, draws)
    assert numbers(strategy.memory) == expected
    assert torch.equal(strategy.memory.y, whole.y[expected]) and torch.equal(strategy.memory.tasks,
                                                                             whole.tasks[expected])
    held = Counter(groups[i] for i in expected)
    assert held == {group: min(per_class, count) for group, count in Counter(groups).items()}


def test_every_sample_of_a_class_is_stored_with_the_same_probability():
    whole, times = stream(40), Counter()
    for seed in range(600):
        strategy = memory(EROptions(per_class=3), seed)
        strategy.offer(whole)
        times.update(numbers(strategy.memory))
    for c in range(CLASSES):
        rows = [i for i in range(40) if whole.y[i] == c]
        observed = [times[i] for i in rows]
        assert sum(observed) == 3 * 600
        assert stats.chisquare(observed).pvalue > 1e-4


def test_the_memory_of_a_gem_has_25_samples_of_each_class_in_each_task():
    # Chaudhry et al.: after t tasks 25 random samples of each class and task, here of 4 classes.
    strategy = memory(AGEMOptions(per_class=25, quota="class-and-task"), cls=AGEM, scenario="domain")
    for index in range(TASKS):
        part = Samples(*(getattr(stream(400), name) for name in ("x", "y")), torch.full((400,), index))
        strategy.after_task(Task(index, tuple(range(CLASSES)), part))
        counts = Counter(zip(strategy.memory_y.tolist(), strategy.memory_tasks.tolist(), strict=True))
        assert counts == {(c, t): 25 for c in range(CLASSES) for t in range(index + 1)}


def test_a_reloaded_memory_goes_on_as_it_would_have():
    whole, options = stream(80, 2), EROptions(per_class=4, quota="class-and-task")
    straight, resumed, fresh = (memory(options, seed=3) for _ in range(3))
    first, second = whole.take(torch.arange(50)), whole.take(torch.arange(50, 80))
    straight.offer(first)
    resumed.offer(first)
    fresh.load_state_dict(resumed.state_dict())
    fresh.stream_info.generator.set_state(resumed.stream_info.generator.get_state())
    straight.offer(second)
    fresh.offer(second)
    assert numbers(fresh.memory) == numbers(straight.memory)


def learned(cls, options, tasks, scenario="class", returning=False):
    """Return a method after so many tasks; of classes 0 and 1 in each if they return."""
    strategy = make(cls, options, scenario, deep_model)
    for index in range(tasks):
        activate(strategy, 0 if returning else index)
        part = task(0 if returning else index)
        if returning:
            part = Task(index, part.classes, Samples(part.train.x + index, part.train.y, part.train.tasks + index))
        strategy.before_task(part)
        move(strategy, index)
        strategy.after_task(part)
    return strategy


def counted(strategy):
    return Counter(zip(strategy.memory_y.tolist(), strategy.memory_tasks.tolist(), strict=True))


def test_exemplars_of_a_class_are_as_many_from_the_beginning_on():
    one, three = (learned(ICaRL, ICaRLOptions(per_class=4), tasks) for tasks in (1, 3))
    assert counted(one) == {(0, 0): 4, (1, 0): 4}
    assert counted(three) == {(c, c // 2): 4 for c in range(6)}
    shared = learned(ICaRL, ICaRLOptions(capacity=8), 1)  # 4 of each class too
    assert torch.equal(one.memory_x, shared.memory_x)


@pytest.mark.parametrize(("quota", "expected"), [
    ("class", {(c, t): 2 for c in (0, 1) for t in range(3)}),
    ("class-and-task", {(c, t): 6 for c in (0, 1) for t in range(3)})])
def test_sets_of_a_class_that_returns_share_its_quota_or_have_one_each(quota, expected):
    strategy = learned(ICaRL, ICaRLOptions(per_class=6, quota=quota), 3, returning=True)
    assert counted(strategy) == expected


def test_a_class_that_does_not_return_keeps_its_whole_quota():
    strategy = make(ICaRL, ICaRLOptions(per_class=6), "class", deep_model)
    for index, part in enumerate((task(0), task(1), task(0))):
        activate(strategy, 1)
        strategy.before_task(part)
        strategy.after_task(Task(index, part.classes, part.train))
    assert Counter(strategy.memory_y.tolist()) == {0: 6, 1: 6, 2: 6, 3: 6}


def test_exemplars_and_validation_samples_of_bic_share_the_quota():
    strategy = learned(BiC, BiCOptions(per_class=5, validation=0.2), 3)
    assert counted(strategy) == {(c, c // 2): 4 for c in range(6)}
    assert Counter(strategy.validation_y.tolist()) == dict.fromkeys(range(6), 1)


def test_a_quota_that_holds_too_few_is_refused():
    with pytest.raises(SpecError, match=r"bic: per_class = 1 cannot hold 2 samples of each class .* at least 2"):
        make(BiC, BiCOptions(per_class=1), "class", deep_model)
    with pytest.raises(SpecError, match=r"per_class = 2 cannot hold an exemplar .* at least 3, or quota = class-and"):
        make(ICaRL, ICaRLOptions(per_class=2), "domain", deep_model)
    make(ICaRL, ICaRLOptions(per_class=2, quota="class-and-task"), "domain", deep_model)
    stream_info = StreamInfo(0, TASKS, "task", (3,), torch.Generator(), objective="causal-lm")
    with pytest.raises(SpecError, match="per_class = 3 counts the samples of each class, and this benchmark does not"):
        ER(deep_model(), stream_info, EROptions(per_class=3))


@pytest.mark.parametrize(("options", "message"), [
    ({"per_class": 5, "capacity": 100}, "give per_class or capacity, not both"),
    ({"per_class": 5, "balance": "class"}, "give per_class or balance, not both"),
    ({"quota": "class-and-task"}, "quota has an effect only with per_class")])
def test_what_does_not_go_together_is_refused(options, message):
    with pytest.raises(SpecError, match=message):
        validate(EROptions, options, "er", "clbench methods")


def test_keys_labels_and_display_names():
    for options in (EROptions(), AGEMOptions(), ICaRLOptions(), BiCOptions()):
        assert not {"per_class", "quota", "weights", "temperature"} & (set(options.model_dump()) - {"temperature"})
    assert "temperature" not in ICaRLOptions().model_dump()
    given = EROptions(per_class=20)
    assert EROptions.stored(given.model_dump()) == given
    assert label("er", given) == "er:per_class=20"
    assert fill_display_name("ER ({capacity})", given.model_dump()) == "ER (per_class=20)"
    assert as_ids("ER (per_class=20, outputs=own)", discover()) == "er:per_class=20:outputs=own"
    assert "class-and-task counts the samples of each task" in EROptions(per_class=2, quota="class-and-task"
                                                                         ).needs_boundaries
    assert not EROptions(per_class=2).needs_boundaries
