from dataclasses import replace

import pytest
import torch
from helpers.stacks import lead

from clbench.core.registry import discover
from clbench.data import samples
from clbench.data.samples import HostSamples, PermutedInputCache, PermutedSamples, StochasticSamples
from clbench.data.stream import StreamTask
from clbench.experiment.spec import Recipe
from clbench.testing import tiny
from clbench.testing.tiny import tiny_stream
from clbench.training.evaluation import batch_size

SIZE = 3 * 2 * 24 * 64  # bytes of all samples of the tiny stream


def test_only_what_does_not_fit_stays_on_the_host():
    stream = tiny_stream("task")
    fits, streamed = stream.to("cpu", SIZE), stream.to("cpu", SIZE - 1)
    assert not fits.notes and not any(isinstance(t.train, HostSamples) for t in fits.tasks)
    assert all(isinstance(t.train, HostSamples) and not isinstance(t.test, HostSamples) for t in streamed.tasks)
    assert streamed.notes == ("training inputs stay on the host: all samples take 0.0 GB, more than the 0.0 GB they "
                              "are given on the device",)
    assert stream.to("cpu").notes == ()


def test_no_note_says_that_samples_with_random_transforms_stay_on_the_host():
    stream = tiny_stream("task")
    tasks = tuple(replace(t, train=StochasticSamples(t.train.x, t.train.y, t.train.tasks, t.train.x.__getitem__))
                  for t in stream.tasks)
    assert replace(stream, tasks=tasks).to("cpu", 0).notes == ()


def test_what_samples_are_is_told_without_bringing_them_to_the_device(monkeypatch):
    streamed = tiny_stream("task").to("cpu", SIZE - 1)

    def brought(_):
        raise AssertionError("all inputs of a task were copied")

    monkeypatch.setattr(HostSamples, "x", property(brought))
    assert not streamed.is_text and batch_size(streamed, torch.device("cpu")) > 1


def test_inputs_of_permuted_tasks_count_once():
    base = torch.zeros(24, 1, 8, 8, dtype=torch.uint8)
    stream = tiny_stream("task")
    tasks = tuple(StreamTask(t.classes, PermutedSamples(base, torch.arange(64), t.train.y, t.train.tasks,
                                                        PermutedInputCache()), t.test) for t in stream.tasks)
    moved = replace(stream, tasks=tasks).to("cpu", 4 * 24 * 64)
    assert not moved.notes and all(isinstance(t.train, PermutedSamples) for t in moved.tasks)


def test_permuted_inputs_are_those_of_the_permutation_even_if_the_samples_before_are_freed():
    base, cache, none = torch.arange(6.0).view(1, 6), PermutedInputCache(), torch.zeros(1, dtype=torch.int64)
    tasks = [PermutedSamples(base, torch.arange(6).roll(shift), none, none, cache) for shift in range(3)]
    assert [task.of_one_task().x[0, 0].item() for task in tasks] == [0, 5, 4]


def test_batches_and_chunks_are_the_samples_and_go_to_the_device():
    plain = tiny_stream("task").tasks[0].train
    index = torch.tensor([5, 0, 23])
    held = HostSamples(plain.x, plain.y, plain.tasks)
    for ours, theirs in ((held.take(index), plain.take(index)), (list(held.chunks(7))[3], list(plain.chunks(7))[3])):
        assert torch.equal(ours.x, theirs.x) and torch.equal(ours.y, theirs.y) and ours.x.dtype == torch.uint8
    away = HostSamples(plain.x, plain.y.to("meta"), plain.tasks.to("meta"))  # a device that is not the host
    assert away.index_device == torch.device("cpu")
    for part in (away.take(index), next(away.chunks(7)), away):
        assert part.x.device == part.y.device == torch.device("meta") and part.x.shape[1:] == (1, 8, 8)


def test_chunks_from_a_number_on_copy_none_of_those_before(monkeypatch):
    plain = tiny_stream("task").tasks[0].train
    sent = []
    monkeypatch.setattr(samples, "send", lambda x, device: sent.append(x) or x)
    for some in (plain, HostSamples(plain.x, plain.y, plain.tasks)):
        chunk = next(some.chunks(7, 2))
        assert torch.equal(chunk.x, plain.x[14:21]) and torch.equal(chunk.y, plain.y[14:21])
    assert len(sent) == 1 and torch.equal(sent[0], plain.x[14:21])


@pytest.mark.parametrize(("method", "options"), [
    ("naive", {}), ("joint", {}), ("ewc", {"fisher_samples": 9, "strength": 1.0}),
    ("ewc", {"fisher": "sampled", "strength": 1.0}),
    ("er", {"capacity": 9, "update": "task"}), ("lora", {"rank": 2, "infer": "prototype"}), ("inflora", {"rank": 2})])
@pytest.mark.parametrize("budget", [0, 2**30])
def test_training_from_the_host_is_the_same_training(method, options, budget, monkeypatch):
    monkeypatch.setattr("clbench.training.phase_cache.BYTES", budget)
    info, recipe = discover().strategy(method), Recipe(optimizer="sgd", lr=0.05, batch_size=10, epochs=2)
    plain = lead(info, options, [0, 1], recipe)
    monkeypatch.setattr(tiny, "tiny_stream", lambda scenario: tiny_stream(scenario).to("cpu", 0))
    for ours, theirs in zip(lead(info, options, [0, 1], recipe), plain, strict=True):
        assert isinstance(ours.stream.tasks[0].train, HostSamples)
        for name, tensor in theirs.strategy.state_dict().items():
            assert torch.equal(ours.strategy.state_dict()[name], tensor), name
