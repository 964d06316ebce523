"""Orders of classes as papers have them, explicit lists, and tasks of given sizes."""

import pytest
import torch
from helpers.cifar import small_cifar, stream
from pydantic import ValidationError

from clbench.core.errors import DataError, SpecError
from clbench.core.registry import discover
from clbench.data.common_options import ClassOptions, order_classes
from clbench.data.datasets import CLASS_NAMES
from clbench.data.own.dividing import divide
from clbench.data.own.samples import Labeled
from clbench.data.own_options import OwnOptions

# The first classes of the orders of PILOT, APER, EASE, MOS and RanPAC (NumPy, seed 1993), SLCA (NumPy, 1996 and 1997)
# and CODA (Python). They are from the authors' logs and code, and not from this implementation.
FIRST = {
    ("numpy:1993", 100): [68, 56, 78, 8, 23, 84, 90, 65, 74, 76],
    ("numpy:1993", 196): [59, 134, 162, 9, 42, 72, 118, 99, 109, 79],
    ("numpy:1993", 200): [168, 136, 51, 9, 183, 101, 171, 99, 42, 159],
    ("numpy:1993", 300): [169, 221, 146, 296, 92, 229, 49, 70, 126, 77],
    ("numpy:1996", 200): [92, 182, 15, 79, 26, 173, 109, 188],
    ("numpy:1997", 200): [76, 153, 53, 4, 197, 152, 176, 43],
    ("python:1", 200): [33, 146, 79, 19, 23, 131, 12, 187],
    ("python:2", 200): [51, 94, 55, 35, 170, 177, 20, 85],
    ("python:1", 100): [53, 37, 65, 51, 4, 20, 38, 9],
    ("natural", 100): [0, 1, 2, 3, 4, 5, 6, 7, 8, 9],
}


@pytest.fixture(scope="module")
def registry():
    return discover()


@pytest.fixture
def laid(tmp_path, monkeypatch):
    return small_cifar(tmp_path, monkeypatch)


def own(names, each=10):
    return Labeled([name for name in names for _ in range(each)])


def classes_of(found):
    return [task.class_names for task in found.tasks]


@pytest.mark.parametrize(("order", "count"), FIRST)
def test_orders_begin_as_the_authors_logs_do(order, count):
    first = FIRST[order, count]
    for seed in (0, 5):  # of the trial, which does not matter
        found = order_classes(ClassOptions(class_order=order), seed, count)
        assert found[:len(first)] == first and sorted(found) == list(range(count))
    division = divide(own(map(str, range(count))), None, OwnOptions(tasks=2, class_order=order), 3, "x")
    assert [int(division.classes[c]) for c in division.orders[0][:len(first)]] == first


@pytest.mark.parametrize("order", ["numpy:1993", "python:1"])
def test_built_in_benchmarks_use_the_order_for_every_seed(registry, laid, order):
    first = FIRST[order, 100][:5]
    streams = [stream(registry, "split-cifar100", laid, "class", seed, tasks=20, class_order=order) for seed in (0, 1)]
    for found in streams:
        assert set(classes_of(found)[0]) == {CLASS_NAMES["CIFAR100"][c] for c in first}
    assert streams[0].fingerprint == streams[1].fingerprint


def test_built_in_classes_are_listed_by_name_or_by_number(registry, laid):
    numbers = [3, 1, 0, 2, *range(4, 10)]
    names = [CLASS_NAMES["CIFAR10"][c] for c in numbers]
    found = [stream(registry, "split-cifar10", laid, "class", classes_in_order=listed)
             for listed in ("+".join(map(str, numbers)), numbers, "+".join(names))]
    assert set(classes_of(found[0])[0]) == set(names[:2]) and set(classes_of(found[0])[1]) == set(names[2:4])
    assert len({one.fingerprint for one in found}) == 1
    with pytest.raises(DataError, match="classes_in_order: lion is no class; name every class once, by number from 0 "
                                        "or as airplane"):
        stream(registry, "split-cifar10", laid, classes_in_order=["lion", *names[1:]])
    with pytest.raises(SpecError, match="classes_in_order should list each of the 10 classes once"):
        stream(registry, "split-cifar10", laid, classes_in_order=names[:9])


@pytest.mark.parametrize(("name", "sizes"), [("split-cifar100", [16, 20, 64]), ("split-mnist-5k", [5, 3, 2])])
def test_tasks_of_given_sizes(registry, laid, name, sizes):
    found = stream(registry, name, laid, "class", task_sizes="+".join(map(str, sizes)), class_order="numpy:1993")
    order = order_classes(ClassOptions(class_order="numpy:1993"), 0, sum(sizes))
    assert [len(task.classes) for task in found.tasks] == sizes
    whole = stream(registry, name, laid, "class", tasks=1)
    for task, begin in zip(found.tasks, (0, sizes[0], sum(sizes[:2])), strict=True):
        wanted = [whole.tasks[0].train.x[whole.tasks[0].train.y == c] for c in sorted(order[begin:begin + 3])]
        images = {x.numpy().tobytes() for x in task.train.x}
        assert {x.numpy().tobytes() for x in torch.cat(wanted)} <= images


def test_own_tasks_of_given_sizes():
    found = divide(own("abcdef"), None, OwnOptions(task_sizes="1+3+2", classes_in_order="f+a+e+b+d+c"), 0, "x")
    assert [[found.classes[c] for c in order] for order in found.orders] == [["f"], ["a", "e", "b"], ["d", "c"]]
    assert not any("evenly" in note for note in found.notes)
    named = Labeled(["a", "b", "c"] * 20, ["n", "s"] * 30)
    assert divide(named, None, OwnOptions(task_sizes=[2, 1]), 0, "x").orders == ((0, 1), (2,))
    with pytest.raises(DataError, match="x has 6 classes, and task_sizes sum to 5"):
        divide(own("abcdef"), None, OwnOptions(task_sizes=[2, 3]), 0, "x")


def test_names_are_sorted_by_size_or_as_text():
    numbers = own(["10", "9", "100", "1"])
    assert divide(numbers, None, OwnOptions(tasks=2), 0, "x").classes == ("1", "9", "10", "100")
    as_text = divide(numbers, None, OwnOptions(tasks=2, class_names_by="text", class_order="numpy:1993"), 0, "x")
    assert as_text.classes == ("1", "10", "100", "9")
    import numpy as np

    assert [c for order in as_text.orders for c in order] == np.random.RandomState(1993).permutation(4).tolist()


@pytest.mark.parametrize(("options", "message"), [
    ({"tasks": 5, "task_sizes": [5, 5]}, "give tasks or task_sizes, not both"),
    ({"task_sizes": [5, 4]}, "task_sizes should sum to the 10 classes, got 9"),
    ({"task_sizes": [10, 0]}, "every task needs at least one class"),
    ({"class_order": "random"}, "should be natural, seed, numpy:N or python:N, where N is a number, got 'random'"),
    ({"class_order": "numpy:-1"}, "got 'numpy:-1'"), ({"class_order": "numpy:4294967296"}, r"below 2\^32"),
    ({"class_order": "python:1", "classes_in_order": [*range(10)]}, "class_order = python:1, not both"),
])
def test_what_does_not_go_together_is_refused(options, message):
    for kind in (ClassOptions, OwnOptions):
        if kind is OwnOptions and "sum to" in message:
            continue
        with pytest.raises(ValidationError, match=message):
            kind(**options)


def test_new_options_are_left_out_of_keys_while_they_are_not_used():
    assert set(ClassOptions().model_dump()) == {"tasks", "class_order"}
    assert set(OwnOptions().model_dump()) == {"tasks", "class_order", "classes_in_order", "held_out"}
    for options in (ClassOptions(task_sizes=[4, 6]), OwnOptions(task_sizes=[4, 6], class_names_by="text")):
        written = options.model_dump()
        assert "tasks" not in written and type(options).stored(written) == options
