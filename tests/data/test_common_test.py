"""Streams whose tasks share one test set: how they are stated, read, stored and refused."""

from dataclasses import replace

import pytest
import torch
from helpers.streams import raw

from clbench.core import options as opt
from clbench.core.errors import DataError, SpecError
from clbench.core.hookspecs import BenchmarkInfo
from clbench.core.registry import discover
from clbench.data import stream, stream_cache
from clbench.data.avalanche.build import build_raw
from clbench.data.raw import hold_out
from clbench.data.stream import load_stream, to_stream
from clbench.experiment.trial import Resolved

CLASSES, INSTANCES = ((3, 0), (2, 1)), ((0, 1), (0, 1))


def with_one_test(orders=CLASSES, **extra):
    """Return a raw stream of tasks with 8 training samples each, and one test set of 8 samples of all classes."""
    whole = raw(orders, **extra)
    labels = torch.tensor(sorted({label for order in orders for label in order}))
    test = replace(whole.test[0], y=labels[torch.arange(8) % len(labels)], rows=torch.arange(8) + 40)
    return replace(whole, test=(test,))


def pointers(built):
    return {task.test.x.data_ptr() for task in built.tasks}


def test_one_test_set_of_several_tasks_is_common_and_that_of_a_single_task_is_not():
    assert with_one_test().common_test and not raw().common_test
    assert not raw(((0, 1),)).common_test
    assert to_stream(with_one_test(), "class", "b").common_test and not to_stream(raw(), "class", "b").common_test


@pytest.mark.parametrize("budget", [0, 2**30])
def test_the_test_samples_exist_once(budget, monkeypatch):
    monkeypatch.setattr(stream, "TEST_BYTES", budget)
    source = with_one_test()
    built = to_stream(source, "class", "b")
    assert pointers(built) == {source.test[0].x.data_ptr()}
    moved = built.to("meta")
    assert len({id(task.test.x) for task in moved.tasks}) == 1
    tests = built.tests
    assert tests.sizes == (8,) and len(tests.x) == len(tests.y) == 8
    assert (tests.x.data_ptr() in pointers(built)) == (budget == 0)  # inputs that are made while testing are the stored


def test_labels_become_the_outputs_that_the_tasks_give_their_classes():
    by_class = to_stream(with_one_test(), "class", "b")
    assert by_class.tests.y.tolist() == [0, 1, 2, 3] * 2
    other_order = to_stream(with_one_test(((5, 3), (2, 9))), "class", "b")
    assert other_order.tests.y.tolist() == [2, 1, 0, 3] * 2  # labels 2 3 5 9
    assert to_stream(with_one_test(INSTANCES), "domain", "b").tests.y.tolist() == [0, 1] * 4
    in_pairs = to_stream(with_one_test(), "domain", "b")  # 3 and 2 are output 0, 0 and 1 are output 1
    assert in_pairs.tests.y.tolist() == [1, 1, 0, 0] * 2 and in_pairs.tests.tasks.tolist() == [0] * 8


def test_classes_that_return_later_are_common_too():
    built = to_stream(with_one_test(((0, 1), (1, 2))), "class", "b")
    assert built.tests.y.tolist() == [0, 1, 2, 0, 1, 2, 0, 1]


@pytest.mark.parametrize(("orders", "scenario", "other"), [
    (CLASSES, "task", "class"), (INSTANCES, "task", "domain"), (INSTANCES, "class", "domain")])
def test_a_scenario_that_needs_the_task_of_test_samples_is_refused(orders, scenario, other):
    with pytest.raises(SpecError, match=f"^benchmark 'b' has one test set for all tasks, and scenario {scenario} needs "
                                        f"to know the task of each test sample; choose scenario {other}$"):
        to_stream(with_one_test(orders), scenario, "b")


def test_test_classes_that_no_task_trains_are_an_error():
    source = with_one_test()
    source.test[0].y[0] = 7
    with pytest.raises(DataError, match="benchmark 'b': the test set has classes that no training experience has: 7"):
        to_stream(source, "class", "b")


def test_streams_without_classes_have_a_test_set_for_each_task():
    numbers = replace(with_one_test(), objective="regression")
    with pytest.raises(SpecError, match="which only a benchmark with classes can have"):
        to_stream(numbers, "domain", "b")


def test_validation_holds_samples_of_each_task_out():
    held = hold_out(with_one_test(), 0.25, 0, "b")
    assert not held.common_test and [len(split.y) for split in held.test] == [2, 2]
    built = to_stream(held, "class", "b")
    assert not built.common_test and built.tests.tasks.tolist() == [0, 0, 1, 1]


def test_another_order_of_test_labels_is_another_stream():
    source, other = with_one_test(), with_one_test()
    other.test[0].y.copy_(other.test[0].y.flip(0))
    assert to_stream(source, "class", "b").fingerprint != to_stream(other, "class", "b").fingerprint


def test_a_cached_stream_keeps_its_one_test_set(tmp_path):
    registry = discover()
    named = Resolved(name="split-mnist-5k", options=opt.validate(
        registry.benchmark("split-mnist-5k").options, {}, "split-mnist-5k", "").model_dump())
    source = with_one_test()

    def never():
        raise AssertionError("built though cached")

    for build in (lambda: source, never):
        found = stream_cache.read_or_build(named, 0, tmp_path, registry, build)
        assert found.common_test and len(found.test) == 1 and found.digest == source.digest
        assert torch.equal(found.test[0].x, source.test[0].x) and torch.equal(found.test[0].rows, source.test[0].rows)


def of_avalanche(build):
    return build_raw(BenchmarkInfo("b", lambda options, data_dir, seed: build(), "a test"), {}, None, 0)


def test_a_benchmark_of_avalanche_with_one_test_experience_has_a_common_test():
    from helpers.tiny_benchmarks import one_test

    found = of_avalanche(one_test)
    assert found.common_test and found.orders == ((0, 1), (2, 3), (4, 5))
    assert found.test[0].y.tolist() == [label for label in range(6) for _ in range(label + 1)]
    assert found.test[0].rows.tolist() == list(range(21))  # in the data set under the test experience


def test_new_instances_of_avalanche_have_a_common_test():
    def new_instances():
        from avalanche.benchmarks import ni_benchmark
        from torch.utils.data import TensorDataset

        parts = [TensorDataset(torch.rand(n, 3), torch.arange(n) % 4) for n in (24, 8)]
        return ni_benchmark(*parts, n_experiences=3, task_labels=False, seed=0)

    built = to_stream(of_avalanche(new_instances), "domain", "b")
    assert built.common_test and len(built.tasks) == 3 and built.tests.sizes == (8,) and built.classes == 4


def test_a_scenario_is_refused_with_a_validation_split_too(tmp_path):
    benchmark = Resolved(name="helpers.tiny_benchmarks:one_test")
    assert load_stream(benchmark, "class", 0, tmp_path, discover(), validation=0.2).common_test is False
    with pytest.raises(SpecError, match="choose scenario class"):
        load_stream(benchmark, "task", 0, tmp_path, discover(), validation=0.2)
