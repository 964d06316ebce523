"""Names of classes from a data set to the tasks of a stream."""

import pytest
from helpers.streams import raw
from helpers.tiny_benchmarks import flipping
from safetensors import safe_open

from clbench.core.artifacts import save_tensors
from clbench.core.errors import DataError
from clbench.data import stream_cache
from clbench.data.avalanche.benchmarks import LAYOUT, Layout
from clbench.data.avalanche.build import as_raw, import_avalanche
from clbench.data.contents import Contents
from clbench.data.datasets import CLASS_NAMES
from clbench.data.raw import hold_out
from clbench.data.stream import to_stream
from clbench.execution.trial_record import describe
from clbench.training.replica import Replica

ANIMALS = ("cat", "dog", "hen", "cow")


def of_tasks(found):
    return [task.class_names for task in found.tasks]


@pytest.mark.parametrize(("orders", "scenario", "outputs", "names"), [
    (((3, 0), (2, 1)), "task", [(3, 0), (2, 1)], [("cow", "cat"), ("hen", "dog")]),
    (((3, 0), (2, 1)), "class", [(3, 0), (2, 1)], [("cow", "cat"), ("hen", "dog")]),
    (((3, 0), (2, 1)), "domain", [(0, 1), (0, 1)], [("cow", "cat"), ("hen", "dog")]),
    (((0, 1), (0, 1)), "domain", [(0, 1), (0, 1)], [("cat", "dog"), ("cat", "dog")]),
    (((0, 1), (0, 1)), "task", [(0, 1), (2, 3)], [("cat", "dog"), ("cat", "dog")]),
    (((3, 1),), "class", [(1, 0)], [("cow", "dog")]),
])
def test_a_name_stands_beside_the_output_of_its_class(orders, scenario, outputs, names):
    found = to_stream(raw(orders, class_names=ANIMALS), scenario, "animals")
    if orders == ((3, 1),):
        outputs = [tuple(found.tasks[0].classes)]  # which of two outputs is not the matter here
    assert [task.classes for task in found.tasks] == outputs and of_tasks(found) == names
    assert of_tasks(found.to("cpu")) == names
    facts = describe(found)
    assert facts.class_names == [list(part) for part in names]
    assert [Replica(None, found, 0).task(i).class_names for i in range(len(names))] == names


def test_names_change_neither_hash_nor_fingerprint():
    named, plain = raw(class_names=ANIMALS), raw()
    assert named.digest == plain.digest
    assert to_stream(named, "task", "").fingerprint == to_stream(plain, "task", "").fingerprint
    assert of_tasks(to_stream(plain, "task", "")) == [(), ()]
    assert describe(to_stream(plain, "task", "")).class_names == []


def test_names_outlive_the_cache_and_a_validation_split(tmp_path):
    path = tmp_path / "stream.safetensors"
    stream_cache.write_stream(path, raw(class_names=ANIMALS), {})
    found = stream_cache.read_stream(path, Contents({}))
    assert found.class_names == ANIMALS
    assert hold_out(found, 0.5, 0, "animals").class_names == ANIMALS
    with safe_open(path, "pt") as file:  # a file of before, without names, is built again
        facts = file.metadata()["clbench"].replace('"class_names"', '"another"')
    save_tensors(path, found.tensors(), {"clbench": facts})
    with pytest.raises(stream_cache.Unusable, match="class_names"):
        stream_cache.read_stream(path, Contents({}))


def test_the_lists_are_the_data_sets_own():
    datasets = pytest.importorskip("torchvision.datasets")
    assert [name.lower() for name in CLASS_NAMES["FashionMNIST"]] == [n.lower() for n in datasets.FashionMNIST.classes]
    assert [len(set(names)) for names in CLASS_NAMES.values()] == [10, 10, 100]
    assert list(CLASS_NAMES["CIFAR100"]) == sorted(CLASS_NAMES["CIFAR100"])  # labels are in alphabetical order


def test_a_class_without_a_name_is_an_error():
    import_avalanche()
    benchmark = flipping()
    setattr(benchmark, LAYOUT, Layout(class_names=("a", "b", "c")))
    with pytest.raises(DataError, match="names 3 classes, and there is a class 3"):
        as_raw(benchmark, "benchmark 'x'")
    setattr(benchmark, LAYOUT, Layout(class_names=ANIMALS))
    assert as_raw(benchmark, "benchmark 'x'").class_names == ANIMALS
