import copy
import os
import pickle
import sys
import textwrap
from types import SimpleNamespace

import pytest
import torch
from helpers.streams import permuted, raw
from torchvision.transforms import Normalize

from clbench.core.errors import DataError
from clbench.core.hookspecs import BenchmarkInfo, hookimpl
from clbench.core.registry import discover
from clbench.data.prepare import Prepare
from clbench.data.samples import Samples
from clbench.data.stream import load_stream, to_stream
from clbench.experiment.trial import Resolved


def test_prepare_gives_what_to_tensor_and_normalize_give():
    x = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    assert torch.equal(Prepare()(x), x.float() / 255) and Prepare()(x).dtype == torch.float32
    for mean, std in (((0.1307,), (0.3081,)), ((0.5, 0.4, 0.3), (0.2, 0.25, 0.3))):
        images = x.expand(2, len(mean), 16, 16)
        expected = Normalize(mean, std)(images.float() / 255)
        assert torch.allclose(Prepare(mean, std)(images), expected, rtol=0, atol=1e-6)


def test_prepare_leaves_its_input_alone_and_floats_as_they_are():
    x = torch.rand(2, 3, 4, 4)
    before = x.clone()
    assert torch.equal(Prepare()(x), x)
    Prepare((0.5,), (0.5,))(x)
    assert torch.equal(x, before)


def test_prepare_can_be_pickled_and_mapped_over_stacks():
    prepare = pickle.loads(pickle.dumps(Prepare((0.1, 0.2), (0.3, 0.4))))
    x = torch.randint(0, 256, (3, 5, 2, 4, 4), dtype=torch.uint8)
    assert torch.equal(torch.func.vmap(prepare)(x), torch.stack([prepare(part) for part in x]))


def test_a_stream_holds_outputs_tasks_and_shape():
    stream = to_stream(raw(((3, 0), (2, 1))), "domain", "b")
    assert [task.classes for task in stream.tasks] == [(0, 1), (0, 1)] and stream.classes == 2
    assert stream.input_shape == (1, 3, 3)
    assert stream.tasks[0].train.y.tolist() == [0, 1] * 4 and stream.tasks[1].test.tasks.tolist() == [1] * 8
    assert to_stream(raw(((3, 0), (2, 1))), "class", "b").tasks[0].train.y.tolist() == [3, 0] * 4


def test_the_fingerprint_tells_apart_whatever_differs():
    other = raw()
    other.test[1].x[0, 0, 0, 0] ^= 1
    relabeled = raw()
    relabeled.train[0].y[0] = 1
    streams = [to_stream(raw(), "class", "b"), to_stream(raw(), "domain", "b"), to_stream(other, "class", "b"),
               to_stream(relabeled, "class", "b"), to_stream(raw(mean=(0.5,), std=(0.5,)), "class", "b")]
    assert len({s.fingerprint for s in streams}) == len(streams)
    assert to_stream(raw(), "class", "b").fingerprint == streams[0].fingerprint


def test_test_classes_that_were_never_trained_are_an_error():
    wrong = raw()
    wrong.test[1].y[0] = 0
    with pytest.raises(DataError, match="task 2's test experience has classes that its training experience has not: 0"):
        to_stream(wrong, "class", "b")


def test_permuted_tasks_share_one_store_and_permute_when_used():
    source, orders = permuted()
    stream = to_stream(source, "task", "b")
    for t, task in enumerate(stream.tasks):
        own = torch.arange(9) if t == 0 else orders[t]
        for part, first in ((task.train, source.train[0].x), (task.test, source.test[0].x)):
            expected = torch.stack([image.flatten()[own].view(1, 3, 3) for image in first])
            assert torch.equal(part.x, expected) and len(part) == 8
            taken = part.take(torch.tensor([2, 5]))
            assert type(taken) is Samples and torch.equal(taken.x, expected[[2, 5]])
            assert torch.equal(Samples.concat(part, taken).x, torch.cat([expected, expected[[2, 5]]]))
    assert stream.tasks[1].train.base is stream.tasks[2].train.base
    assert stream.classes == 6


def test_only_one_permuted_training_set_is_held_at_a_time():
    stream = to_stream(permuted()[0], "domain", "b")
    second, third = stream.tasks[1].train, stream.tasks[2].train
    assert second.x is second.x
    kept = second.x
    assert third.x is third.x and second.cache.x is third.x
    assert torch.equal(second.x, kept) and second.x is not kept


@pytest.mark.parametrize("change", [lambda s: s.to("cpu"), copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))])
def test_moving_and_copying_keep_samples_and_sharing(change):
    stream = to_stream(permuted()[0], "domain", "b")
    moved = change(stream)
    assert all(torch.equal(a.train.x, b.train.x) and torch.equal(a.test.y, b.test.y)
               for a, b in zip(stream.tasks, moved.tasks, strict=True))
    assert moved.tasks[1].train.base is moved.tasks[2].train.base
    assert moved.tasks[1].train.cache is moved.tasks[2].train.cache


MODULE = """
    import random
    import torch
    from avalanche.benchmarks import benchmark_from_datasets, nc_benchmark
    from avalanche.benchmarks.utils import make_avalanche_dataset
    from torch.utils.data import TensorDataset

    def data(n, classes=4, size=3):
        return TensorDataset(torch.rand(n, size), torch.arange(n) % classes)

    def good():
        print("chatter")
        return nc_benchmark(data(40), data(16), 2, task_labels=False, seed=None)

    def uneven():
        return nc_benchmark(data(40), data(16), 2, task_labels=False, per_exp_classes={0: 3, 1: 1}, shuffle=False)

    def raises():
        raise ValueError("two\\nlines")

    def returns_a_list():
        return [1]

    def needs_an_argument(path):
        return good()

    def parts(train, test):
        return benchmark_from_datasets(train=[make_avalanche_dataset(d) for d in train],
                                       test=[make_avalanche_dataset(d) for d in test])

    def empty():
        return parts([data(8), TensorDataset(torch.zeros(0, 3), torch.zeros(0).long())], [data(8), data(8)])

    def fewer_tests():
        return parts([data(8), data(8), data(8)], [data(8), data(8)])

    def other_shape():
        return parts([data(8), data(8, size=5)], [data(8), data(8)])

    def nothing():
        return parts([], [])

    constant = 3
"""


@pytest.fixture
def custom(tmp_path, monkeypatch):
    name = "custom_benchmarks_of_a_test"
    (tmp_path / f"{name}.py").write_text(textwrap.dedent(MODULE))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, name, raising=False)
    registry = discover()

    def load(function, scenario="class", seed=0):
        return load_stream(Resolved(name=f"{name}:{function}"), scenario, seed, tmp_path / "data", registry)

    yield load
    sys.modules.pop(name, None)
    assert not (tmp_path / "data").exists()  # custom benchmarks leave nothing behind


def test_a_function_of_the_current_directory_is_a_benchmark(custom, capsys):
    state = torch.random.get_rng_state()
    stream = custom("good")
    assert stream.classes == 4 and [len(t.train) for t in stream.tasks] == [20, 20] and stream.input_shape == (3,)
    assert stream.notes == ()
    assert capsys.readouterr().out == ""
    assert os.getcwd() not in sys.path and torch.equal(torch.random.get_rng_state(), state)


def test_a_function_without_a_seed_gives_every_trial_the_same_stream(custom):
    assert custom("good").fingerprint == custom("good", seed=5).fingerprint


def test_tasks_of_unequal_size_fit_class_but_not_domain(custom):
    assert [t.classes for t in custom("uneven").tasks] == [(0, 1, 2), (3,)]
    with pytest.raises(DataError, match="as many classes in every task, here 3, 1"):
        custom("uneven", "domain")


@pytest.mark.parametrize(("function", "message"), [
    ("raises", "failed: ValueError: two lines"),
    ("returns_a_list", "returned list, expected an Avalanche benchmark"),
    ("needs_an_argument", "failed: TypeError: .*missing 1 required positional argument: 'path'"),
    ("empty", "task 2's training experience has no samples"),
    ("fewer_tests", "3 training experiences and 2 test experiences; give each task one of each, or all tasks one"),
    ("other_shape", r"task 2's training experience has inputs torch.float32 \[5\], the first task has"),
    ("nothing", "has no experiences"),
    ("constant", "'constant' is a int, not a function"),
    ("absent", "has no 'absent'"),
])
def test_bad_functions_are_one_line_that_names_them(custom, function, message):
    with pytest.raises(DataError, match=message) as caught:
        custom(function)
    assert "\n" not in str(caught.value) and f"benchmark 'custom_benchmarks_of_a_test:{function}'" in str(caught.value)


def test_an_unknown_module_is_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"no module 'absent_module' in .*, and none is installed"):
        load_stream(Resolved(name="absent_module:f"), "task", 0, tmp_path, discover())


def test_a_benchmark_of_a_plugin_gets_its_options_folder_and_seed(tmp_path):
    calls = []

    def build(options, data_dir, seed):
        calls.append((data_dir, seed))
        from avalanche.benchmarks import nc_benchmark
        from torch.utils.data import TensorDataset

        data = TensorDataset(torch.zeros(8, 2), torch.arange(8) % 2)
        return nc_benchmark(data, data, 2, task_labels=False, shuffle=False)

    plugin = SimpleNamespace(clbench_benchmarks=hookimpl(lambda: [BenchmarkInfo("mine", build, "mine", seeded=True),
                                                                  BenchmarkInfo("fixed", build, "fixed")]))
    registry = discover([plugin])
    for name in ("mine", "fixed"):
        load_stream(Resolved(name=name), "task", 7, tmp_path, registry)
    assert calls == [(tmp_path, 7), (tmp_path, 0)]
