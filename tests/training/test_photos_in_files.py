"""Training on photos that stay in their files gives what training on photos in memory gives."""

import json
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.photo_folders import upright, write_photos
from PIL import Image, ImageOps
from torch import nn

from clbench.core.errors import SpecError
from clbench.core.registry import discover
from clbench.data.own.photos import read_photos
from clbench.data.own_options import ImagesOptions
from clbench.data.samples import Samples
from clbench.execution.trial_runner import TrialRunner
from clbench.experiment.execution_settings import ExecutionSettings
from clbench.experiment.plan import plan
from clbench.experiment.spec import build
from clbench.persistence import callbacks
from clbench.strategy.base import Strategy, Task
from clbench.testing.tiny import bench
from clbench.training.sampling import BatchSampler, StreamSampler


class Killed(BaseException):
    """The process ends."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("folder") / "photos")


@pytest.fixture
def uncached(monkeypatch):
    """Let phases store nothing, so that every batch is decoded."""
    monkeypatch.setattr("clbench.training.phase_cache.BYTES", 0)


def planned(folder, method, read, benchmark=None, **spec):
    options = {"tasks": 2, "size": 16, "read": read, **(benchmark or {})}
    return plan(build({"methods": method, "seeds": 1, "scenario": "class", "model": "mlp:width=16",
                       "benchmark": {"name": f"images:{folder}", "options": options},
                       "recipe": {"epochs": 2, "batch_size": 16, "optimizer": "sgd", "lr": 0.05}, **spec}),
                discover())


def run(group, data, checkpoints=None, killed=False):
    """Run a trial as a process of its own would; it may be killed when the first task is learned."""
    def hear(progress):
        if killed:
            raise Killed

    runner = TrialRunner(ExecutionSettings(data=data), "cpu", "a test", discover(), None, checkpoints)
    record, = runner.run_stack(group, hear)
    return record


def outcome(record):
    assert record.failure is None, record.failure
    return record.R, record.last_losses, record.costs.train_flops, record.costs.inference_flops


@pytest.mark.parametrize(("method", "benchmark"), [
    ("naive", {}), ("naive", {"resize": 20, "crop": 16, "size": "none"}), ("er:capacity=20", {}),
    ("er:capacity=20", {"augment": "crop-flip"}), ("lora:rank=2", {}), ("joint", {}), ("ewc", {}),
    ("icarl:capacity=40", {}), ("bic:capacity=40", {}), ("shared-private:infer=prototype", {})])
def test_results_are_those_of_photos_in_memory(folder, tmp_path, uncached, method, benchmark):
    memory, files = (run(planned(folder, method, read, benchmark), tmp_path) for read in ("memory", "files"))
    assert outcome(files) == outcome(memory)
    assert files.costs.replay_samples == memory.costs.replay_samples


@pytest.mark.slow
def test_two_thousand_photos_give_the_logits_of_memory(tmp_path, uncached):
    root = write_photos(tmp_path / "photos", each=500)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 5), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, 4))
    outcomes, logits = [], []
    for read in ("memory", "files"):
        group = planned(root, "naive", read, {"resize": 28, "crop": 24, "size": "none", "interpolation": "bilinear"},
                        recipe={"epochs": 1, "batch_size": 50, "optimizer": "sgd", "lr": 0.05})
        outcomes.append(outcome(run(group, tmp_path)))
        stream = TrialRunner(ExecutionSettings(data=tmp_path), "cpu", "a test").stream(group[0].trial)
        with torch.no_grad():
            logits.append(torch.cat([network(stream.prepare(chunk.x)) for task in stream.tasks
                                     for part in (task.train, task.test) for chunk in part.chunks(64)]))
    assert logits[0].shape == (2000, 4) and torch.equal(*logits)
    assert outcomes[0] == outcomes[1]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the unit of ru_maxrss is that of Linux")
def test_memory_does_not_grow_with_the_number_of_photos(tmp_path):
    script = Path(__file__).parents[2] / "benchmarks" / "speed" / "photos.py"
    peaks = {}
    for count in (500, 8000):
        first = write_photos(tmp_path / str(count) / "photos", classes=2, each=2)
        for number in range(2, count // 2):
            for c in range(2):
                (first / f"class{c}" / f"{number}.png").hardlink_to(first / f"class{c}" / "0.png")
        printed = subprocess.run([sys.executable, script, "--use", first, tmp_path / str(count), "files"], check=True,
                                 stdout=subprocess.PIPE, text=True).stdout
        result = json.loads(printed)
        assert result["used"] == count
        peaks[count] = result["bytes"]
    decoded = 7500 * 3 * 64 * 64
    assert peaks[8000] - peaks[500] < decoded / 3, peaks


def test_results_are_the_same_with_what_phases_store_and_in_a_stack(folder, tmp_path):
    groups = [planned(folder, "naive", read, seeds=2, validation=0.2) for read in ("memory", "files")]
    runs = [TrialRunner(ExecutionSettings(data=tmp_path), "cpu", "a test").run_stack(group, lambda _: None)
            for group in groups]
    assert [outcome(record) for record in runs[0]] == [outcome(record) for record in runs[1]]


@pytest.mark.parametrize("method", ["naive", "joint", "er:capacity=20"])
def test_a_trial_that_goes_on_equals_one_that_was_not_killed(folder, tmp_path, monkeypatch, method):
    monkeypatch.setattr(callbacks, "SECONDS", 0.0)
    group = planned(folder, method, "files", {"augment": "random-resized-crop"})
    whole = run(group, tmp_path)
    with pytest.raises(Killed):
        run(group, tmp_path, tmp_path / "checkpoints", killed=True)
    again = run(group, tmp_path, tmp_path / "checkpoints")
    assert not any("started over" in note for note in again.notes)
    assert outcome(again) == outcome(whole)


def test_decoding_ahead_changes_no_result(folder, tmp_path, uncached, monkeypatch):
    groups = [planned(folder, "er:capacity=20", "files", {"augment": augment})
              for augment in ("none", "random-resized-crop")]
    ahead = [outcome(run(group, tmp_path)) for group in groups]
    monkeypatch.setattr("clbench.training.loop.decode_ahead", lambda samples, requests: nullcontext(list(samples)))
    monkeypatch.setattr("clbench.data.photo_files.AHEAD", 0)
    assert [outcome(run(group, tmp_path)) for group in groups] == ahead
    assert ahead[0] != ahead[1]


def stream_of(folder, tmp_path, **options):
    group = planned(folder, "naive", "files", options)
    return TrialRunner(ExecutionSettings(data=tmp_path), "cpu", "a test").stream(group[0].trial)


class Replays(Strategy):
    """Adds the batch as it is stored, to what is replayed."""

    def prepare_batch(self, batch):
        self.stored = batch.x.clone()
        return batch.extended(Samples(batch.x[:5], batch.y[:5], batch.tasks[:5]))


def test_new_photos_are_cropped_from_the_originals_and_replayed_ones_as_in_memory(folder, tmp_path):
    stream = stream_of(folder, tmp_path, augment="random-resized-crop")
    train, crop = stream.tasks[0].train, stream.augment
    strategy = bench(discover().strategy("naive"), {}, "class", 0).strategy
    replays = Replays(strategy.model, strategy.stream_info)
    object.__setattr__(replays.stream_info, "prepare", lambda x: x)
    for one in (strategy, replays):
        object.__setattr__(one.stream_info, "prepare", lambda x: x)
        sampler, twin = (BatchSampler(len(train), 12, 0, 0, crop) for _ in range(2))
        for _ in range(3):
            batch = sampler.next_prepared(one, train)
            index = twin.next_indices(torch.device("cpu"))
            new, draws, plain = len(index), crop.draw(len(index), twin.draws[0]), train.take(index)
            sizes = train.photos[index].sizes.long()
            for i, (top, left, height, width) in enumerate(crop.draw_boxes(draws, sizes[:, :1], sizes[:, 1:]).tolist()):
                image = upright(train.photos.table.path(int(train.photos.rows[index[i]])))
                image = image.crop((left, top, left + width, top + height)).resize((16, 16), Image.Resampling.BICUBIC)
                image = ImageOps.mirror(image) if draws[i, -1] < 0.5 else image
                assert np.array_equal(batch.x[i].numpy(), np.asarray(image).transpose(2, 0, 1))
            assert torch.equal(batch.y[:new], plain.y)
            assert len(batch.x) == new + batch.replayed
            if one is replays:
                assert torch.equal(one.stored, plain.x) and batch.replayed == 5
                assert torch.equal(batch.x[new:], crop(plain.x[:5], crop.draw(5, twin.draws[1])))


def test_a_broken_photo_fails_the_trial_and_is_named(tmp_path, uncached):
    root = write_photos(tmp_path / "p", each=8)
    group = planned(root, "naive", "files")
    runner = TrialRunner(ExecutionSettings(data=tmp_path), "cpu", "a test")
    train = runner.stream(group[0].trial).tasks[0].train
    path = Path(train.photos.table.path(int(train.photos.rows[3])))
    path.write_bytes(path.read_bytes()[:300])
    record, = runner.run_stack(group, lambda _: None)
    assert record.status == "failed" and record.failure.type == "DataError"
    assert str(path) in record.failure.message and "cannot be read" in record.failure.message


def test_what_would_augment_in_another_way_is_refused(folder, tmp_path):
    stream = stream_of(folder, tmp_path, augment="random-resized-crop")
    with pytest.raises(SpecError, match="does not go with hidden boundaries; choose read=memory"):
        StreamSampler([task.train for task in stream.tasks], 16, 0, stream.augment)
    plain = stream_of(folder, tmp_path)
    sampler = StreamSampler([task.train for task in plain.tasks], 16, 0, plain.augment)
    assert sampler.next_batch(sampler.parts[0]).x.shape == (16, 3, 16, 16)


def test_joint_says_that_a_saved_model_has_no_photos(folder, tmp_path):
    stream = stream_of(folder, tmp_path)
    joint = bench(discover().strategy("joint"), {}, "class", 0).strategy
    joint.kept_x, joint.kept_y = torch.empty(0), torch.zeros(3, dtype=torch.int64)  # as they are loaded
    with pytest.raises(SpecError, match="which a saved model does not have"):
        joint.before_task(Task(1, (2, 3), stream.tasks[1].train))


def test_decoding_reads_the_photos_that_memory_reads(folder, tmp_path):
    stream = stream_of(folder, tmp_path)
    photos = stream.tasks[0].train.photos
    copied = tmp_path / "copies"
    copied.mkdir()
    paths = [shutil.copy(photos.table.path(int(row)), copied / f"{row}") for row in photos.rows]
    (x,), _ = read_photos([paths], ImagesOptions(size=16), "x")
    assert torch.equal(x, photos.read())
