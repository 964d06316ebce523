import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset
from torchvision import transforms as T

from clbench.core.errors import DataError
from clbench.data.avalanche import tensors
from clbench.data.avalanche.build import import_avalanche
from clbench.data.avalanche.tensors import materialise
from clbench.data.avalanche.whole import ToBytes


@pytest.fixture(autouse=True, scope="module")
def avalanche():
    import_avalanche()


def pixels(n=60, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 256, (n, 1, 6, 6), generator=generator, dtype=torch.uint8)
    return TensorDataset(x, torch.arange(n) % 6)


class Targeted(Dataset):
    def __init__(self, inner):
        self.inner = inner
        self.targets = [int(inner[i][1]) for i in range(len(inner))]

    def __len__(self):
        return len(self.inner)

    def __getitem__(self, index):
        return self.inner[index]


class Pictures(Dataset):
    def __init__(self, mode="L", sizes=(6, 6)):
        self.targets = [i % 3 for i in range(12)]
        self.mode, self.sizes = mode, sizes

    def __len__(self):
        return 12

    def __getitem__(self, index):
        shape = (self.sizes[index % 2], 5, 3)[:3 if self.mode == "RGB" else 2]
        return Image.fromarray(np.random.default_rng(index).integers(0, 256, shape, dtype=np.uint8)), index % 3


def mnist(cls, n=40, **transforms):
    data = cls.__new__(cls)
    generator = torch.Generator().manual_seed(2)
    data.data = torch.randint(0, 256, (n, 28, 28), generator=generator, dtype=torch.uint8)
    data.targets = torch.arange(n) % 4
    data.transform, data.target_transform = transforms.get("x"), transforms.get("y")
    return data


def cifar(n=12):
    from torchvision.datasets import CIFAR10

    data = CIFAR10.__new__(CIFAR10)
    data.data = np.random.default_rng(0).integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)
    data.targets = [i % 3 for i in range(n)]
    data.transform, data.target_transform = T.ToTensor(), None
    return data


def one_by_one(data):
    items = [data[i] for i in range(len(data))]
    return torch.stack([torch.as_tensor(item[0]) for item in items]), torch.tensor([int(item[1]) for item in items])


def assert_identical(dataset, group="train", note=None):
    read = materialise(dataset, group, "here")
    x, y = one_by_one(getattr(dataset, group)() if hasattr(dataset, group) else dataset)
    assert read.x.dtype == x.dtype and torch.equal(read.x, x) and torch.equal(read.y, y)
    assert (read.note is None) if note is None else (note in read.note)
    return read


def datasets(benchmark):
    return [(e.dataset, group) for stream, group in ((benchmark.train_stream, "train"), (benchmark.test_stream, "eval"))
            for e in stream]


def test_a_split_of_tensors_is_read_as_a_whole():
    from avalanche.benchmarks import nc_benchmark

    for part, group in datasets(nc_benchmark(pixels(), pixels(30, 1), 3, task_labels=False, seed=1)):
        assert_identical(part, group)


def test_labels_are_those_of_the_items_not_of_the_targets():
    from avalanche.benchmarks import nc_benchmark

    benchmark = nc_benchmark(pixels(), pixels(30, 1), 3, task_labels=True, seed=1, shuffle=True,
                             class_ids_from_zero_in_each_exp=True)
    for part, group in datasets(benchmark):
        assert_identical(part, group)
    shifted = mnist(_tensor_mnist(), y=lambda y: y + 3)
    assert set(materialise(shifted, "train", "here").y.tolist()) == {3, 4, 5, 6}


def test_new_instances_are_read_as_a_whole():
    from avalanche.benchmarks import ni_benchmark

    for part, group in datasets(ni_benchmark(pixels(), pixels(30, 1), 4, seed=3)):
        assert_identical(part, group)


def test_each_group_gets_its_own_transforms():
    from avalanche.benchmarks import nc_benchmark

    benchmark = nc_benchmark(mnist(_tensor_mnist()), mnist(_tensor_mnist()), 2, task_labels=False,
                             train_transform=T.Compose([T.Pad(2), T.Normalize((0.1307,), (0.3081,))]),
                             eval_transform=ToBytes())
    read = [assert_identical(part, group) for part, group in datasets(benchmark)]
    assert [r.x.dtype for r in read] == [torch.float32] * 2 + [torch.uint8] * 2
    assert read[0].x.shape[1:] == (1, 32, 32)
    part = next(iter(benchmark.train_stream)).dataset
    assert assert_identical(part, "eval").x.dtype == torch.uint8


def test_frozen_permutations_and_fixed_rotations_are_batched():
    from avalanche.benchmarks.classic.cmnist import PixelsPermutation
    from avalanche.benchmarks.utils import DefaultTransformGroups, make_avalanche_dataset

    for transform in (PixelsPermutation(torch.randperm(36)), T.RandomRotation((40, 40))):
        frozen = make_avalanche_dataset(pixels(),
                                        frozen_transform_groups=DefaultTransformGroups((transform, None)))
        assert_identical(frozen)
        assert_identical(frozen.subset([3, 50, 7, 7]).concat(frozen))


def test_subsets_and_concatenations_of_torch_and_avalanche_are_followed():
    from avalanche.benchmarks.utils import make_avalanche_dataset

    inner = ConcatDataset([Subset(pixels(), [5, 3, 59]), pixels(8, 4), pixels(9, 5)])
    assert_identical(make_avalanche_dataset(Subset(inner, [19, 0, 2, 1, 5, 5, 3, 18])))
    one, two = make_avalanche_dataset(pixels()), make_avalanche_dataset(pixels(20, 6))
    assert_identical((one + two).subset([70, 1, 65, 2, 2]))


def test_chunks_join_in_order(monkeypatch):
    monkeypatch.setattr(tensors, "CHUNK", 7)
    assert_identical(pixels())


def test_torchvision_pictures_become_what_their_items_are():
    from torchvision.datasets import MNIST

    assert_identical(mnist(MNIST, x=T.ToTensor()))
    assert_identical(mnist(MNIST, x=T.Compose([T.PILToTensor(), T.CenterCrop(20)])))
    assert_identical(cifar())
    raw = materialise(mnist(MNIST), "train", "here")
    assert raw.note is None and torch.equal(raw.x[:, 0], mnist(MNIST).data)


@pytest.mark.parametrize(("mode", "shape"), [("L", (1, 6, 5)), ("RGB", (3, 6, 5))])
def test_pictures_of_an_unknown_data_set_are_stored_as_bytes(mode, shape):
    read = materialise(Pictures(mode), "train", "here")
    assert read.x.dtype == torch.uint8 and read.x.shape == (12, *shape) and "item by item" in read.note
    assert torch.equal(read.x.float() / 255, torch.stack([T.ToTensor()(Pictures(mode)[i][0]) for i in range(12)]))


def test_an_unknown_data_set_is_read_item_by_item():
    assert_identical(Targeted(pixels()), note="data set Targeted")


def test_an_unknown_transform_is_read_item_by_item():
    from avalanche.benchmarks import nc_benchmark

    benchmark = nc_benchmark(pixels(), pixels(30, 1), 3, task_labels=False, train_transform=T.Lambda(lambda x: x - 1))
    assert_identical(next(iter(benchmark.train_stream)).dataset, note="transform Lambda")


def test_a_transform_that_differs_on_a_batch_is_found_out():
    from avalanche.benchmarks.utils import DefaultTransformGroups, make_avalanche_dataset

    class Centered:
        clbench_batched = True

        def __call__(self, x):
            return x.float() - x.float().mean()

    data = make_avalanche_dataset(pixels(), frozen_transform_groups=DefaultTransformGroups((Centered(), None)))
    assert_identical(data, note="differs on a batch")


def flipped(**transforms):
    from avalanche.benchmarks import nc_benchmark

    return nc_benchmark(pixels(), pixels(), 2, task_labels=False, **transforms)


def test_random_transforms_of_training_samples_are_drawn_anew_each_time():
    experience = next(iter(flipped(train_transform=T.RandomHorizontalFlip(), eval_transform=None).train_stream))
    read = materialise(experience.dataset, "train", "here")
    assert "drawn item by item for every batch" in read.note
    plain = dict.fromkeys(range(len(read.y)))
    for i in plain:
        item = experience.dataset.eval()[i][0]
        seen = [read.draw(i) for _ in range(30)]
        assert all(torch.equal(x, item) or torch.equal(x, item.flip(-1)) for x in seen)
        assert any(torch.equal(x, item) for x in seen) and any(torch.equal(x, item.flip(-1)) for x in seen)


def test_random_transforms_of_test_samples_are_refused():
    experience = next(iter(flipped(eval_transform=T.RandomHorizontalFlip()).test_stream))
    with pytest.raises(DataError, match="a test must be the same each time"):
        materialise(experience.dataset, "eval", "here")


def test_gray_images_without_channel_get_one_and_other_numbers_become_floats():
    gray = TensorDataset(torch.zeros(3, 4, 4, dtype=torch.uint8), torch.arange(3))
    assert materialise(gray, "train", "here").x.shape == (3, 1, 4, 4)
    for dtype in (torch.int64, torch.float64, torch.bool):
        read = materialise(TensorDataset(torch.ones(3, 4, 4, dtype=dtype), torch.arange(3)), "train", "here")
        assert read.x.dtype == torch.float32 and read.x.shape == (3, 4, 4)


@pytest.mark.parametrize(("data", "message"), [
    (TensorDataset(torch.zeros(0, 2), torch.zeros(0)), "here has no samples"),
    (TensorDataset(torch.zeros(3, 2), torch.tensor([0, 0.5, 1])), "labels must be whole numbers"),
    (TensorDataset(torch.zeros(3, 2), torch.zeros(3, 4)), "labels must be whole numbers"),
    (TensorDataset(torch.zeros(3, 2)), "items must be"),
    (Pictures(sizes=(6, 7)), "sample 1 is torch.uint8"),
    ([("text", 0), ("more", 1)], "inputs of type str cannot be read"),
])
def test_what_cannot_be_read_is_one_line(data, message):
    with pytest.raises(DataError, match=message) as caught:
        materialise(data, "train", "here")
    assert str(caught.value).startswith("here") and "\n" not in str(caught.value)


def _tensor_mnist():
    from avalanche.benchmarks.datasets.external_datasets.mnist import TensorMNIST

    return TensorMNIST
