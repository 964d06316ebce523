"""Which test images the last row has right: recomputed from the record, from data sets whose rows are known."""

import numpy as np
import pytest
import torch

from clbench.core.registry import discover
from clbench.data import datasets
from clbench.data.datasets import Images
from clbench.execution.trial_runner import TrialRunner
from clbench.experiment.execution_settings import ExecutionSettings
from clbench.experiment.plan import plan
from clbench.experiment.spec import build
from clbench.persistence import callbacks
from clbench.results.records import Record

RECIPE = {"iterations": 8, "batch_size": 32}


@pytest.fixture(scope="module")
def registry():
    return discover()


def of_digits(count, seed):
    """Return images with a bright square by class, and labels in no order."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 10, (count,), generator=generator)
    x = torch.randint(0, 60, (count, 1, 28, 28), generator=generator, dtype=torch.uint8)
    for row, label in enumerate(y.tolist()):
        x[row, 0, 2 * label:2 * label + 4] += 120
    return Images(x, y)


@pytest.fixture
def runner(registry, tmp_path, monkeypatch):
    """A runner whose MNIST has 300 training and 107 test images."""
    parts = of_digits(300, 0), of_digits(107, 1)
    monkeypatch.setattr(datasets, "mnist_like", lambda *_: parts)
    return TrialRunner(ExecutionSettings(data=tmp_path), "cpu", "a test", registry)


def planned(runner, benchmark, seeds=(0,), **values):
    return plan(build({"benchmark": benchmark, "methods": "naive", "recipe": RECIPE, "model": "mlp:width=32",
                       "seeds": list(seeds), **values}), runner.registry)


def assert_gives_the_last_row(record, stream):
    """Recompute the last row of R from the bits, image by image."""
    images = sorted({row for task in stream.tasks for row in task.test_rows.tolist()})
    place, met = {row: i for i, row in enumerate(images)}, dict.fromkeys(images, 0)
    matrix = record.items.matrix()
    assert matrix.shape == (record.items.tasks, record.items.count) and record.items.count == len(images)
    row = []
    for task in stream.tasks:
        right = 0
        for image in task.test_rows.tolist():
            right += int(matrix[met[image], place[image]])
            met[image] += 1
        row.append(right / len(task.test))
    assert row == record.R[-1] and len(set(row)) > 1


@pytest.mark.parametrize("scenario", ["task", "class"])
@pytest.mark.parametrize("benchmark", ["split-fashion-mnist:class_order=seed", "split-mnist-5k:class_order=seed"])
@pytest.mark.slow
def test_the_bits_give_the_last_row_and_are_in_one_order_for_all_seeds(runner, benchmark, scenario):
    records = []
    for one in planned(runner, benchmark, (0, 1), scenario=scenario):
        record = runner.run(one)
        stream = runner.stream(one.trial)
        assert_gives_the_last_row(record, stream)
        assert Record.model_validate_json(record.model_dump_json(by_alias=True)) == record
        source = datasets.mnist_5k()[1] if "5k" in benchmark else datasets.mnist_like("FashionMNIST", None)[1]
        for task in stream.tasks:
            assert torch.equal(source.x[task.test_rows], task.test.x)
        records.append(record)
    first, second = records
    assert first.stream.fingerprint != second.stream.fingerprint
    assert (first.items.ids, first.items.count) == (second.items.ids, second.items.count)
    assert first.items.right != second.items.right


@pytest.mark.parametrize("benchmark", ["permuted-mnist:tasks=3", "rotated-mnist:tasks=3"])
def test_an_image_of_all_tasks_is_one_unit(runner, benchmark):
    records = [runner.run(one) for one in planned(runner, benchmark, (0, 1), scenario="domain")]
    for record in records:
        matrix = record.items.matrix()
        assert matrix.shape == (3, 107) and (matrix.sum(1) / 107).tolist() == record.R[-1]
    assert records[0].items.ids == records[1].items.ids
    assert records[0].items.right != records[1].items.right


def test_a_stack_has_the_bits_of_trials_alone(runner):
    trials = planned(runner, "split-mnist-5k:class_order=seed", (0, 1, 2), scenario="class")
    for trial, record in zip(trials, runner.run_stack(trials), strict=True):
        assert not any("ran alone" in note for note in record.notes)
        assert_gives_the_last_row(record, runner.stream(trial.trial))


def test_held_out_training_images_have_none(runner):
    one, = planned(runner, "split-mnist-5k", validation=0.2)
    assert runner.run(one).items is None


def test_a_trial_that_goes_on_has_the_bits_of_one_that_was_not_killed(runner, tmp_path, monkeypatch):
    monkeypatch.setattr(callbacks, "SECONDS", 0.0)
    one, = planned(runner, "split-mnist-5k", scenario="class")
    whole = runner.run(one)
    again = TrialRunner(runner.settings, "cpu", "a test", runner.registry, checkpoints=tmp_path / "checkpoints")

    def hear(progress):
        if progress.task == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        again.run(one, hear)
    went_on = again.run(one)
    assert not any("started over" in note for note in went_on.notes)
    assert went_on.facts() == whole.facts() and went_on.items == whole.items


def test_a_trial_that_diverges_has_none(runner):
    one, = planned(runner, "split-mnist-5k", recipe={**RECIPE, "lr": 1e30, "optimizer": "sgd"})
    record = runner.run(one)
    assert record.status == "diverged" and record.items is None


def test_images_drawn_by_seed_are_known_by_their_rows_in_the_whole_test_part(runner, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(200) % 10
    test = Images(torch.randint(0, 256, (200, 3, 32, 32), generator=generator, dtype=torch.uint8), y)
    train = Images(torch.randint(0, 256, (200, 3, 32, 32), generator=generator, dtype=torch.uint8), y)
    monkeypatch.setattr(datasets, "cifar", lambda *_: (train, test))
    options = "train_per_class=10:test_per_class=5:train_draw=seed:test_draw=seed:augment=none:class_order=seed"
    every = []
    for seed in (0, 1):
        one, = planned(runner, f"split-cifar10:{options}", (seed,), scenario="class")
        record, stream = runner.run(one), runner.stream(one.trial)
        assert_gives_the_last_row(record, stream)
        rows = torch.cat([task.test_rows for task in stream.tasks])
        assert torch.equal(test.x[rows], torch.cat([task.test.x for task in stream.tasks]))
        every.append((set(rows.tolist()), record.items.ids))
    (a, ids), (b, other) = every
    assert len(a) == len(b) == 50 and not a & b and ids != other


def test_samples_of_ones_own_have_their_rows_in_the_file(runner, tmp_path):
    digits = of_digits(400, 2)
    x, y = digits.x.flatten(1).numpy(), digits.y.numpy()
    np.savez(tmp_path / "own.npz", X=x, y=y)
    one, = planned(runner, f"arrays:{tmp_path / 'own.npz'}:class_order=seed", scenario="class")
    record, stream = runner.run(one), runner.stream(one.trial)
    assert_gives_the_last_row(record, stream)
    for task in stream.tasks:
        assert np.array_equal(x[task.test_rows], task.test.x.numpy().reshape(len(task.test), -1))


def test_a_users_benchmark_has_them_where_its_tests_are_of_one_data_set(runner):
    one, = planned(runner, "helpers.tiny_benchmarks:flipping", scenario="class")
    record, stream = runner.run(one), runner.stream(one.trial)
    assert_gives_the_last_row(record, stream)
    x = torch.rand(80, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    assert all(torch.equal(x[task.test_rows], task.test.x) for task in stream.tasks)
    one, = planned(runner, "helpers.tiny_benchmarks:flat", scenario="class")  # a data set for each task
    assert runner.run(one).items is None
