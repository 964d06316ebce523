import pytest
import torch
from helpers.cifar import small_cifar, stream
from safetensors.torch import save_file

from clbench.core.errors import DataError, SpecError
from clbench.core.files import default_data_dir
from clbench.core.registry import discover
from clbench.data import datasets
from clbench.data.datasets import CLASS_NAMES


@pytest.fixture(scope="module")
def registry():
    return discover()


@pytest.fixture
def laid(tmp_path, monkeypatch):
    """A data folder with sets that are CIFAR's in form but small, of random pixels."""
    return small_cifar(tmp_path, monkeypatch)


@pytest.mark.parametrize(("name", "options", "sizes"), [
    ("split-cifar10", {}, [2] * 5), ("split-cifar100", {}, [10] * 10), ("split-cifar100", {"tasks": 20}, [5] * 20),
    ("split-cifar100", {"tasks": 5, "held_out": 50}, [10] * 5), ("split-cifar100-b50", {}, [50, *[10] * 5]),
])
def test_the_tasks_and_their_images(registry, laid, name, options, sizes):
    found = stream(registry, name, laid, **options)
    assert [len(t.classes) for t in found.tasks] == sizes and found.classes == sum(sizes)
    assert found.input_shape == (3, 32, 32) and found.augment is not None
    train, _ = datasets.cifar("CIFAR10" if name == "split-cifar10" else "CIFAR100", laid)
    task = found.tasks[1]
    begin = sizes[0]
    wanted = [train.x[train.y == c] for c in range(begin, begin + sizes[1])]  # Avalanche takes class by class
    assert found.notes == () and torch.equal(task.train.x, torch.cat(wanted)) and task.train.x.dtype == torch.uint8
    assert sum(len(t.train) for t in found.tasks) == int((train.y < sum(sizes)).sum())


def test_the_second_time_comes_from_the_cache_with_its_augmentation(registry, laid, monkeypatch):
    first = stream(registry, "split-cifar10", laid)
    with monkeypatch.context() as patch:
        patch.setattr("clbench.data.avalanche.build.build_raw", None)
        again = stream(registry, "split-cifar10", laid)
    assert again.fingerprint == first.fingerprint and again.augment is first.augment
    assert stream(registry, "split-cifar10", laid, augment=False).augment is None


def test_normalization(registry, laid):
    x = torch.full((1, 3, 32, 32), 255, dtype=torch.uint8)
    for normalize, mean, std in (("none", [0] * 3, [1] * 3), ("dataset", *datasets.STATISTICS["CIFAR10"]),
                                 ("imagenet", *datasets.STATISTICS["ImageNet"])):
        prepare = stream(registry, "split-cifar10", laid, normalize=normalize).prepare
        torch.testing.assert_close(prepare(x)[0, :, 0, 0], (1 - torch.tensor(mean)) / torch.tensor(std))


def test_few_images_per_class_are_the_first_ones(registry, laid):
    found = stream(registry, "split-cifar10", laid, train_per_class=3, test_per_class=2)
    assert [len(t.train) for t in found.tasks] == [6] * 5 and [len(t.test) for t in found.tasks] == [4] * 5
    train, _ = datasets.cifar("CIFAR10", laid)
    assert torch.equal(found.tasks[0].train.x[found.tasks[0].train.y == 0], train.x[train.y == 0][:3])


def test_held_out_classes_are_the_same_for_every_seed(registry, laid):
    orders = [stream(registry, "split-cifar100", laid, "class", seed, held_out=50, tasks=5, class_order="seed")
              for seed in (0, 1)]
    assert orders[0].fingerprint != orders[1].fingerprint
    assert [found.classes for found in orders] == [50, 50]
    assert sum(len(t.train) for t in orders[0].tasks) == sum(len(t.train) for t in orders[1].tasks) == 200


def test_the_held_out_classes_make_a_stream_of_their_own(registry, laid):
    found = stream(registry, "split-cifar100", laid, "class", held_out=30, tasks=1, part="held-out")
    train, _ = datasets.cifar("CIFAR100", laid)
    assert found.classes == 30
    assert torch.equal(found.tasks[0].train.x, torch.cat([train.x[train.y == c] for c in range(70, 100)]))
    assert found.tasks[0].train.y.tolist() == [c for c in range(30) for _ in range(4)]
    with pytest.raises(SpecError, match="part = held-out needs held_out"):
        stream(registry, "split-cifar100", laid, part="held-out")


def test_tasks_must_divide_the_classes_that_are_left(registry, laid):
    with pytest.raises(SpecError, match=r"split-cifar100: tasks should divide the 50 classes"):
        stream(registry, "split-cifar100", laid, held_out=50, tasks=20)


def test_absent_and_damaged_files_say_what_to_do(tmp_path, monkeypatch):
    import torchvision.datasets

    def unreachable(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(torchvision.datasets, "CIFAR100", unreachable)
    with pytest.raises(DataError, match=r"CIFAR100 is not in .*cifar100.safetensors and could not be downloaded \(no "
                                        r"route"):
        datasets.cifar("CIFAR100", tmp_path)
    datasets.cifar_file("CIFAR100", tmp_path).write_bytes(b"not it")
    with pytest.raises(DataError, match="cannot be read"):
        datasets.cifar("CIFAR100", tmp_path)
    save_file({f"{p}_{c}": torch.zeros(3) for p in ("train", "test") for c in "xy"},
              datasets.cifar_file("CIFAR100", tmp_path))
    with pytest.raises(DataError, match="expected 50000 images"):
        datasets.cifar("CIFAR100", tmp_path)


def test_torchvisions_data_are_kept_as_one_file(tmp_path, monkeypatch):
    import torchvision.datasets

    class Fake:
        def __init__(self, root, train, download):
            assert download
            count = 6 if train else 4
            self.data = torch.randint(0, 256, (count, 32, 32, 3), dtype=torch.uint8).numpy()
            self.targets = list(range(count))

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", Fake)
    monkeypatch.setattr(datasets, "CIFAR_SIZES", (6, 4))
    train, test = datasets.cifar("CIFAR10", tmp_path)
    assert train.x.shape == (6, 3, 32, 32) and test.y.tolist() == [0, 1, 2, 3]
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", None)
    assert torch.equal(datasets.cifar("CIFAR10", tmp_path)[0].x, train.x)
    assert [p.name for p in tmp_path.iterdir()] == ["cifar10.safetensors"]


def test_the_real_data_set(registry):
    if not datasets.cifar_file("CIFAR100", default_data_dir()).is_file():
        pytest.skip("CIFAR-100 is not laid in the data folder (CLBENCH_DATA)")
    train, test = datasets.cifar("CIFAR100", default_data_dir())
    assert torch.bincount(train.y).tolist() == [500] * 100 and torch.bincount(test.y).tolist() == [100] * 100
    mean, std = datasets.STATISTICS["CIFAR100"]
    pixels = train.x.double() / 255
    torch.testing.assert_close(pixels.mean((0, 2, 3)), torch.tensor(mean).double(), atol=5e-5, rtol=0)
    torch.testing.assert_close(pixels.std((0, 2, 3)), torch.tensor(std).double(), atol=5e-5, rtol=0)


def names(found):
    return [task.class_names for task in found.tasks]


@pytest.mark.parametrize(("name", "options", "first", "last"), [
    ("split-cifar10", {}, ("airplane", "automobile"), ("ship", "truck")),
    ("split-cifar100", {"tasks": 50}, ("apple", "aquarium fish"), ("woman", "worm")),
    ("split-cifar100", {"tasks": 2, "held_out": 4, "part": "held-out"}, ("willow tree", "wolf"), ("woman", "worm")),
])
def test_built_in_benchmarks_know_their_classes(registry, laid, name, options, first, last):
    found = names(stream(registry, name, laid, **options))
    assert (found[0], found[-1]) == (first, last)
    assert names(stream(registry, name, laid, **options)) == found  # from the cache


def test_names_follow_an_order_by_seed(registry, laid):
    found = stream(registry, "split-cifar10", laid, seed=1, class_order="seed")
    assert all(CLASS_NAMES["CIFAR10"][c] == name for task in found.tasks
               for c, name in zip(task.classes, task.class_names, strict=True))
    assert found.tasks[0].classes != (0, 1)
