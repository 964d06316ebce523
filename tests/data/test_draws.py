"""Blocks of images by seed: `train_draw` and `test_draw`."""

from itertools import chain
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import clbench
from clbench.core.errors import DataError, SpecError
from clbench.core.options import validate
from clbench.core.registry import discover
from clbench.data import datasets
from clbench.data.stream import load_stream
from clbench.data.stream_cache import depends_on_seed, key_of, known_digest
from clbench.experiment.trial import Resolved
from clbench.results.store import Store

RECORDS = Path(__file__).parents[2] / "reports/lora_question/vision_task"
BLOCKS = {"train_per_class": 4, "test_per_class": 2, "train_draw": "seed", "test_draw": "seed"}


@pytest.fixture(scope="module")
def registry():
    return discover()


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """A data folder with CIFAR's files: 40 training and 20 test images of each class, each image one of a kind."""
    folder = tmp_path_factory.mktemp("data")
    for name, classes in (("CIFAR10", 10), ("CIFAR100", 100)):
        tensors = {}
        for part, count, first in (("train", 40 * classes, 0), ("test", 20 * classes, 100_000)):
            numbers = torch.arange(first, first + count)
            x = torch.zeros(count, 3, 32, 32, dtype=torch.uint8)
            for channel in range(3):
                x[:, channel, 0, 0] = numbers // 256**channel % 256
            tensors[f"{part}_x"], tensors[f"{part}_y"] = x, torch.arange(count) % classes
        save_file(tensors, datasets.cifar_file(name, folder))
    return folder


@pytest.fixture(autouse=True)
def sizes(monkeypatch):
    """Let the files have fewer images than CIFAR."""
    def cifar(name, data_dir):
        found = datasets.load_file(datasets.cifar_file(name, data_dir))
        return tuple(datasets.Images(found[f"{part}_x"], found[f"{part}_y"]) for part in ("train", "test"))

    monkeypatch.setattr(datasets, "cifar", cifar)


def resolved(registry, name, **options):
    return Resolved(name=name, options=validate(registry.benchmark(name).options, options, name, "").model_dump())


def stream(registry, data_dir, seed, name="split-cifar10", scenario="task", validation=0.0, **options):
    return load_stream(resolved(registry, name, **options), scenario, seed, data_dir, registry, validation)


def numbers(samples):
    """Return the number that each image has in its first pixel."""
    x = samples.x[:, :, 0, 0].long()
    return (x[:, 0] + 256 * x[:, 1] + 65536 * x[:, 2]).tolist()


def images(found, part):
    """Return the numbers of all images of a part, sorted."""
    return sorted(number for task in found.tasks for number in numbers(getattr(task, part)))


def test_ten_seeds_share_no_image_and_use_every_one(registry, data_dir):
    found = [stream(registry, data_dir, seed, **BLOCKS) for seed in range(10)]
    for part, first, count in (("train", 0, 400), ("test", 100_000, 200)):
        drawn = [images(one, part) for one in found]
        assert sorted(chain.from_iterable(drawn)) == list(range(first, first + count))
        assert drawn[0] != list(range(first, first + len(drawn[0])))  # no block is simply the first images
    assert [len(t.train) for t in found[3].tasks] == [8] * 5 and [len(t.test) for t in found[3].tasks] == [4] * 5


@pytest.mark.parametrize("options", [{"class_order": "seed"}, {"tasks": 2}, {"augment": False}, {"test_draw": "first"}])
def test_a_seed_has_the_same_training_images_whatever_the_stream_is(registry, data_dir, options):
    usual = images(stream(registry, data_dir, 3, **BLOCKS), "train")
    for scenario in ("task", "class", "domain"):
        assert images(stream(registry, data_dir, 3, scenario=scenario, **{**BLOCKS, **options}), "train") == usual


def test_a_class_has_the_same_images_whichever_classes_are_held_out(registry, data_dir):
    whole = stream(registry, data_dir, 2, "split-cifar100", **BLOCKS)
    for options, kept in (({"held_out": 30, "tasks": 7}, range(70)),
                          ({"held_out": 30, "tasks": 3, "part": "held-out"}, range(70, 100))):
        found = stream(registry, data_dir, 2, "split-cifar100", **BLOCKS, **options)
        wanted = [n for n in images(whole, "test") if (n - 100_000) % 100 in kept]
        assert images(found, "test") == wanted
    b50 = stream(registry, data_dir, 2, "split-cifar100-b50", **BLOCKS)
    assert images(b50, "test") == images(whole, "test")


def test_one_part_alone_may_be_drawn(registry, data_dir):
    first = stream(registry, data_dir, 0, train_per_class=4, test_per_class=2)
    found = stream(registry, data_dir, 5, train_per_class=4, test_per_class=2, train_draw="seed")
    assert images(found, "test") == images(first, "test") == list(range(100_000, 100_020))
    assert images(found, "train") == images(stream(registry, data_dir, 5, **BLOCKS), "train")


def test_the_cache_keeps_each_seeds_images_apart(registry, data_dir, tmp_path):
    datasets.cifar_file("CIFAR10", tmp_path).write_bytes(datasets.cifar_file("CIFAR10", data_dir).read_bytes())
    benchmark = resolved(registry, "split-cifar10", **BLOCKS)
    first = [stream(registry, tmp_path, seed, **BLOCKS) for seed in (0, 1)]
    again = [stream(registry, tmp_path, seed, **BLOCKS) for seed in (0, 1)]
    assert [one.fingerprint for one in first] == [one.fingerprint for one in again]
    assert first[0].fingerprint != first[1].fingerprint
    for part in ("train", "test"):
        assert not set(images(again[0], part)) & set(images(again[1], part))
    assert [known_digest(benchmark, seed, tmp_path, registry) for seed in (0, 1)] == [one.data for one in first]
    assert depends_on_seed(benchmark, registry) and len({key_of(benchmark, seed, registry) for seed in range(4)}) == 4


def test_a_seed_beyond_the_last_block_is_refused(registry, data_dir):
    with pytest.raises(DataError, match=r"train_draw = seed has no training samples for seed 10: train_per_class = 4 "
                                        r"makes 10 blocks, counted from 0, of the 40 training samples of a class"):
        stream(registry, data_dir, 10, **BLOCKS)
    with pytest.raises(DataError, match=r"test_draw = seed has no test samples for seed 6: test_per_class = 3 makes 6"):
        stream(registry, data_dir, 6, **{**BLOCKS, "test_per_class": 3})


def experiment(**given):
    benchmark = "split-cifar100:train_per_class=50:test_per_class=10:train_draw=seed:test_draw=seed"
    return {"benchmark": benchmark, "methods": "naive", **given}


@pytest.mark.parametrize(("given", "message"), [
    ({"seeds": 11}, r"no training samples for seed 10: train_per_class = 50 makes 10 blocks, counted from 0"),
    ({"seeds": [1000]}, r"test_draw = seed has no test samples for seed 1000: seeds from 1000 on are for tuning"),
    ({"seeds": 3, "until": "decided"}, r"no training samples for seed 10.*max_seeds"),
    ({"seeds": 1, "benchmark": "split-cifar10:train_draw=seed"}, r"train_draw = seed needs train_per_class"),
    ({"seeds": 1, "benchmark": "split-newsgroups:test_draw=seed"}, r"test_draw = seed needs test_per_class"),
])
def test_the_plan_refuses_what_has_no_images(tmp_path, given, message):
    with pytest.raises(SpecError, match=message):
        clbench.run(**experiment(**given), out=tmp_path, workers=0)
    assert not list(tmp_path.iterdir())


def test_development_seeds_share_ten_blocks_of_training_images(registry, data_dir):
    found = stream(registry, data_dir, 1013, validation=0.25, **BLOCKS)
    block = stream(registry, data_dir, 3, **BLOCKS)
    assert sorted(images(found, "train") + images(found, "test")) == images(block, "train")
    assert [len(task.test) for task in found.tasks] == [2] * 5  # one of four images of each class
    other = stream(registry, data_dir, 1003, validation=0.25, **BLOCKS)
    assert sorted(images(other, "train") + images(other, "test")) == images(block, "train")
    with pytest.raises(SpecError, match="seeds from 1000 on are for tuning"):
        stream(registry, data_dir, 1013, **BLOCKS)
    tests = stream(registry, data_dir, 1013, **{**BLOCKS, "test_draw": "first"})
    assert images(tests, "test") == list(range(100_000, 100_020))


def test_old_trials_keep_their_options_and_keys(registry):
    records, problems = Store(RECORDS).read()
    assert records and not problems
    for record in records:
        options = record.trial.benchmark.options
        info = registry.benchmark(record.trial.benchmark.name)
        again = info.options.stored(options).model_dump()
        assert again == options and list(again) == list(options) and not {"train_draw", "test_draw"} & set(again)
        trial = record.trial.model_copy(update={"benchmark": resolved(registry, info.name, **options)})
        assert trial.key == record.key and str(trial.benchmark) == str(record.trial.benchmark)
