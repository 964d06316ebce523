import re
import types
import weakref

import pytest
import torch

from clbench.core.errors import SpecError
from clbench.core.hookspecs import StrategyInfo, hookimpl
from clbench.core.registry import discover
from clbench.execution.trial_record import failure_of, note_of_stack
from clbench.execution.trial_runner import TrialRunner
from clbench.experiment.execution_settings import ExecutionSettings
from clbench.experiment.plan import plan
from clbench.experiment.spec import build
from clbench.strategy.base import Prediction, Strategy
from clbench.testing.tiny import tiny_stream

RECIPE = {"iterations": 8, "batch_size": 32}


class Breaks(Strategy):
    def after_task(self, task):
        if task.index == 1:
            raise RuntimeError("boom")


class Diverges(Strategy):
    def loss(self, batch):
        return super().loss(batch) * (float("nan") if batch.task == 2 else 1.0)


class CannotStack(Strategy):
    def loss(self, batch):
        loss = super().loss(batch)
        return loss if loss.item() > 0 else loss * 0  # looks at a value, which vmap forbids


class ReturnsLogits(Strategy):
    def predict(self, x, task=None):
        return self(x, task)


class LossPerSample(Strategy):
    def loss(self, batch):
        return (self(batch.x) ** 2).mean(1)


class LossWithoutGradient(Strategy):
    def loss(self, batch):
        return super().loss(batch).detach()


class Wide(Strategy):
    """There is memory for two of it."""

    there = 0

    def __init__(self, model, stream_info, options):
        super().__init__(model, stream_info, options)
        if Wide.there == 2:
            raise torch.OutOfMemoryError("no memory for a third")
        Wide.there += 1
        weakref.finalize(self, Wide.gone)

    @staticmethod
    def gone():
        Wide.there -= 1


class Huge(Strategy):
    """There is memory for none of it."""

    def loss(self, batch):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


class Large(Strategy):
    def loss(self, batch):
        if torch._C._functorch.is_batchedtensor(batch.x):
            torch.empty(2**60)
        return super().loss(batch)


class ChangesLabels(Strategy):
    """Maps labels to 0, 1, ..., and cannot train with them."""

    def before_task(self, task):
        task.train.y.zero_()

    def loss(self, batch):
        raise RuntimeError("boom")


class ChangesInputs(Strategy):
    def predict(self, x, task=None):
        return Prediction(self.model(x.mul_(0.5)))


@hookimpl
def clbench_strategies():
    return [StrategyInfo("breaks", Breaks, ""), StrategyInfo("diverges", Diverges, ""),
            StrategyInfo("cannot-stack", CannotStack, ""), StrategyInfo("large", Large, ""),
            StrategyInfo("wide", Wide, ""), StrategyInfo("huge", Huge, ""),
            StrategyInfo("returns-logits", ReturnsLogits, ""), StrategyInfo("loss-per-sample", LossPerSample, ""),
            StrategyInfo("no-gradient", LossWithoutGradient, ""), StrategyInfo("changes-labels", ChangesLabels, ""),
            StrategyInfo("changes-inputs", ChangesInputs, "")]


@pytest.fixture(scope="module")
def runner(tmp_path_factory):
    plugin = types.ModuleType("bad_plugins")
    plugin.clbench_strategies = clbench_strategies
    return TrialRunner(ExecutionSettings(data=tmp_path_factory.mktemp("data")), "cpu", "a test", discover([plugin]))


def planned(runner, **values):
    return plan(build({"recipe": RECIPE, "seeds": 1, "model": "mlp:width=32", **values}), runner.registry)


def test_the_record_has_the_facts(runner):
    one = planned(runner, methods="er:capacity=50")[0]
    seen = []
    record = runner.run(one, seen.append)
    assert record.status == "done"
    assert record.key == one.trial.key
    assert len(record.R) == 6 and all(len(row) == 5 for row in record.R)
    assert record.stream.classes == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]
    assert record.costs.steps == [8] * 5
    assert [len(pair) for pair in record.last_losses] == [2] * 5
    assert record.costs.replay_samples == [50] * 5
    assert record.costs.bytes[-1]["replay"] >= 50 * 784
    assert len(record.timings.train) == 5 and len(record.timings.evaluate) == 6
    assert record.provenance.plugin.startswith("clbench ")
    assert [p.task for p in seen] == list(range(6))
    assert seen[0].score is None and seen[-1].score == pytest.approx(sum(record.R[-1]) / 5)


@pytest.mark.parametrize("method", ["independent", "lora"])
def test_an_export_that_cannot_be_written_is_a_failure_of_its_own_kind(runner, tmp_path, method):
    one = planned(runner, methods=method)[0]
    (tmp_path / one.trial.key).touch()  # in the place of the trial's folder
    failure = TrialRunner(ExecutionSettings(), "cpu", "a test", runner.registry, artifacts=tmp_path).run(one).failure
    assert failure.type == "WriteError" and "free some space" in failure.message


@pytest.mark.parametrize(("method", "scenario"), [
    ("naive", "task"), ("ewc", "class"), ("er", "domain"), ("lora", "class"), ("pnn", "domain"),
    ("shared-private", "task"), ("joint", "class")])
def test_every_method_runs_in_every_scenario_and_twice_the_same(runner, method, scenario):
    one = planned(runner, methods=method, scenario=scenario)[0]
    first, again = runner.run(one), runner.run(one)
    assert first.status == "done"
    assert first.facts() == again.facts()
    inferred = scenario != "task" and method in ("lora", "pnn", "shared-private")
    assert (first.task_inference is not None) is inferred


def test_all_methods_start_from_the_same_weights(runner):
    rows = {m: runner.run(planned(runner, methods=m)[0]).R[0] for m in ("naive", "ewc", "lora", "pnn")}
    assert len({tuple(row) for row in rows.values()}) == 1


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator")])
def test_a_full_main_memory_is_the_same_failure_as_that_of_a_device(error):
    planned, = plan(build({"methods": "naive", "benchmark": "split-mnist-5k", "seeds": 1}), discover())
    assert failure_of(error, planned.trial, discover()).type == "OutOfMemoryError"


def test_a_failure_that_is_not_utf_8_can_be_stored():
    planned, = plan(build({"methods": "naive", "benchmark": "split-mnist-5k", "seeds": 1}), discover())
    try:
        raise OSError(b"caf\xe9.txt".decode("utf-8", "surrogateescape"))
    except OSError as error:
        failure = failure_of(error, planned.trial, discover())
        note = note_of_stack(2, error)
    assert failure.message == r"caf\udce9.txt" and r"OSError: caf\udce9.txt" in failure.traceback
    assert failure.model_dump_json() and note == r"ran alone: the stack of 2 trials failed with OSError: caf\udce9.txt"


def test_a_trial_that_runs_out_of_memory_says_what_needs_less(runner):
    record = runner.run(planned(runner, methods="huge")[0])
    assert (record.status, record.failure.type) == ("failed", "OutOfMemoryError")
    assert record.failure.message == (
        "CUDA out of memory. Tried to allocate 2.00 GiB. To need less memory, use --accumulate 4, a smaller "
        "--batch-size, --precision bf16 or fewer --workers")


def test_a_stack_gives_each_seed_its_record(runner):
    group = planned(runner, methods="ewc", seeds=3)
    records = runner.run_stack(group)
    assert [r.trial.seed for r in records] == [0, 1, 2]
    for one, stacked in zip(group, records, strict=True):
        alone = runner.run(one)
        assert torch.allclose(torch.tensor(alone.R), torch.tensor(stacked.R), atol=0.02)
        assert alone.costs.bytes == stacked.costs.bytes


def test_a_method_that_cannot_stack_runs_one_by_one_and_says_so(runner):
    group = planned(runner, methods="cannot-stack", seeds=2)
    records = runner.run_stack(group)
    assert [r.status for r in records] == ["done", "done"]
    assert {r.notes[-1] for r in records} == {  # without vmap's request to file a bug report
        "ran alone: its loss cannot be computed for several trials at once (vmap: It looks like you're calling .item() "
        "on a Tensor. We don't support vmap over calling .item() on a Tensor)"}
    assert records[0].R == runner.run(group[0]).R


@pytest.mark.parametrize(("method", "words"), [
    ("returns-logits", "`predict` of ReturnsLogits returned a Tensor"),
    ("loss-per-sample", "`loss` of LossPerSample returned a tensor of shape [32]; it must return a scalar"),
    ("no-gradient", "`loss` of LossWithoutGradient returned a value that depends on no trained parameter"),
])
def test_a_hook_that_returns_something_else_is_named_in_the_record(runner, method, words):
    for record in runner.run_stack(planned(runner, methods=method, seeds=2)):
        assert (record.status, record.failure.type, record.failure.traceback) == ("failed", "PluginError", "")
        assert record.failure.message.startswith(words)
        assert f"the stack of 2 trials failed with PluginError: {words}" in record.notes[-1]


def test_a_stack_that_finds_no_memory_is_halved_until_it_does(runner, monkeypatch):
    group, sizes = planned(runner, methods="large", seeds=3), []
    run_stack = runner.run_stack
    monkeypatch.setattr(runner, "run_stack", lambda part, *rest: sizes.append(len(part)) or run_stack(part, *rest))
    records = runner.run_stack(group)
    assert sizes == [3, 1, 2, 1, 1]
    assert [(r.trial.seed, r.status, r.notes) for r in records] == [(s, "done", []) for s in range(3)]


def test_a_stack_that_finds_no_memory_to_be_built_is_halved(runner):
    records = runner.run_stack(planned(runner, methods="wide", seeds=5))
    assert [(r.trial.seed, r.status, r.notes) for r in records] == [(s, "done", []) for s in range(5)]


def test_an_exception_is_kept_with_what_was_seen(runner):
    record = runner.run(planned(runner, methods="breaks")[0])
    assert (record.status, record.failure.type, record.failure.message) == ("failed", "RuntimeError", "boom")
    assert "in after_task" in record.failure.traceback
    assert re.fullmatch(r"\S*test_trial_runner.py:\d+ in after_task", record.failure.place)
    assert len(record.R) == 2


def test_divergence_ends_the_trial_but_not_the_stack(runner):
    record = runner.run(planned(runner, methods="diverges")[0])
    assert (record.status, record.failure.message) == ("diverged", "the loss became NaN or infinite in task 3, step 0")
    assert len(record.R) == 3


def test_what_does_not_go_together_is_refused_before_training(runner):
    with pytest.raises(SpecError, match="rank = 999"):
        runner.prepare(planned(runner, methods="lora:rank=999")[0].trial)
    with pytest.raises(SpecError, match=r"model 'cnn' takes images, this benchmark has inputs \[12\]; choose"):
        runner.prepare(planned(runner, methods="naive", model="cnn:depth=4:channels=1",
                               benchmark="helpers.tiny_benchmarks:flat")[0].trial)
    with pytest.raises(SpecError, match="LoRA: infer = entropy cannot weigh task 3, which has a single class"):
        runner.prepare(planned(runner, methods="lora", scenario="class",
                               benchmark="split-mnist-5k:task_sizes=5+4+1")[0].trial)


def test_random_transforms_are_drawn_for_every_batch_and_the_same_with_the_same_seed(runner):
    one, two = (planned(runner, methods=m, benchmark="helpers.tiny_benchmarks:flipping")[0]
                for m in ("naive", "shared-private"))
    stream = runner.stream(one.trial)
    train = stream.tasks[0].train
    draws = torch.stack([train.take(torch.arange(len(train))).x for _ in range(6)])
    assert (draws != draws[0]).flatten(2).any(2).any(0).float().mean() > 0.8
    first, again = runner.run(one), runner.run(one)
    assert first.facts() == again.facts() and "random transforms" in first.stream.notes[0]
    assert runner.run(two).status == "done"


def test_data_are_verified_once_for_each_benchmark_and_only_if_asked(tmp_path, monkeypatch):
    asked = []

    def loaded(*args):
        asked.append(args[-1])
        return tiny_stream(args[1])

    monkeypatch.setattr("clbench.execution.trial_runner.load_stream", loaded)
    for verify in (False, True):
        one = TrialRunner(ExecutionSettings(data=tmp_path, verify_data=verify), "cpu", "pytest")
        for scenario in ("task", "class", "task"):
            one.stream(planned(one, methods="naive", scenario=scenario)[0].trial)
    assert asked == [False] * 3 + [True, False, False]


@pytest.mark.parametrize("method", ["changes-labels", "changes-inputs"])
def test_samples_that_a_trial_changed_are_not_those_of_the_next_trial(runner, method):
    expected = runner.run(planned(runner, methods="naive")[0])
    assert runner.run(planned(runner, methods=method)[0]).status == "failed"
    assert runner.run(planned(runner, methods="naive")[0]).R == expected.R
