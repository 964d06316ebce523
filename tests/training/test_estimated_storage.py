import types

import pytest
import torch

from clbench.accounting import estimator
from clbench.accounting.count import count
from clbench.accounting.estimator import data_bytes, estimate_storage, extrapolate_storage, storage_line
from clbench.accounting.shapes import stream_of_shapes
from clbench.core.hookspecs import StrategyInfo, hookimpl
from clbench.core.registry import discover
from clbench.data.samples import PermutedInputCache, PermutedSamples
from clbench.execution.trial_runner import TrialRunner
from clbench.experiment.execution_settings import ExecutionSettings
from clbench.experiment.plan import plan
from clbench.experiment.spec import build
from clbench.strategy.base import Strategy


class Hoards(Strategy):
    """Keeps a large table from its first task on."""

    keeps_less = "size=N"

    def after_task(self, task):
        if task.index == 0:
            self.register_buffer("table", torch.zeros(20_000, 20_000, device=self.active.device))


class AsksForValues(Strategy):
    def after_task(self, task):
        if float(self.model.head.weight.sum()) > 0:
            self.register_buffer("table", torch.zeros(1))


@hookimpl
def clbench_strategies():
    return [StrategyInfo("hoards", Hoards, ""), StrategyInfo("asks", AsksForValues, "")]


@pytest.fixture(scope="module")
def registry():
    plugin = types.ModuleType("strategies_that_keep")
    plugin.clbench_strategies = clbench_strategies
    return discover([plugin])


@pytest.fixture(scope="module")
def runner(registry, tmp_path_factory):
    return TrialRunner(ExecutionSettings(data=tmp_path_factory.mktemp("data")), "cpu", "a test", registry)


def planned(registry, methods, **values):
    return plan(build({"methods": methods, "seeds": 1, "model": "mlp:width=32", **values}), registry)[0]


def test_a_line_is_for_more_than_the_data_and_more_than_a_little():
    assert storage_line("ranpac:projections=9", 965_000_000, 3_100_000, "projections=N") == (
        "ranpac:projections=9 stores 965 MB in addition to the model; the training data take 3.1 MB; "
        "ranpac:projections=N keeps less")
    assert storage_line("ewc", 200_000_000, 150_000_000, "") == (
        "ewc stores 200 MB in addition to the model; the training data take 150 MB")
    assert storage_line("ewc", 200_000_000, 201_000_000, "") is None
    assert storage_line("ewc", estimator.FLOOR, 1000, "") is None


@pytest.mark.parametrize(("kept", "tasks", "total"), [
    ([10, 10, 10, 10], 9, 10), ([10, 12, 14, 16], 5, 20), ([10, 11, 13, 16], 5, 25), ([10, 20, 20, 20], 5, 20),
    ([10, 10, 20, 20], 5, 20), ([10, 12], 1, 12), ([10, 12, 14], 2, 14)])
def test_later_tasks_add_what_the_first_did(kept, tasks, total):
    assert extrapolate_storage(kept, tasks) == total


@pytest.mark.parametrize("method", ["naive", "ewc", "lora:rank=2", "pnn", "independent", "ranpac", "fecam", "slda",
                                    "lwf", "si"])
def test_three_tasks_tell_what_all_keep(registry, method):
    one = planned(registry, method, scenario="class")
    stream = stream_of_shapes(6, 12, (1, 8, 8), "class", 40)
    found = count(one, stream, registry)
    assert found.note is None
    assert estimate_storage(one.trial, stream, registry) == found.bytes[-1] - found.model_bytes


def test_data_are_counted_as_they_are_stored():
    stream = stream_of_shapes(2, 4, (1, 8, 8), "task", 40)
    assert data_bytes(stream) == 2 * 40 * 64
    base = torch.zeros(40, 1, 8, 8, dtype=torch.uint8)
    permuted = PermutedSamples(base, torch.randperm(64), torch.zeros(40), torch.zeros(40), PermutedInputCache())
    assert estimator.stored(permuted) is base


def test_a_run_tells_of_a_method_before_it_runs_and_makes_nothing_large(registry, runner):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(estimator, "growth_limit", lambda strategy, size: 2 * estimator.FLOOR)
        patch.setattr(runner.estimator, "seconds_left", 60.0)
        notes = runner.prepare(planned(registry, "hoards").trial, "hoards:x=1")
        assert notes[0].startswith("70 optimizer steps a task (")
        assert notes[-1] == ("hoards:x=1 stores 1,600 MB in addition to the model; the training data take 3.1 MB; "
                             "hoards:size=N keeps less")
        assert len(runner.prepare(planned(registry, "asks").trial)) == len(notes) - 1  # left to the run itself
        patch.setattr(runner.estimator, "seconds_left", 0.0)
        assert len(runner.prepare(planned(registry, "hoards").trial)) == len(notes) - 1


def test_small_networks_are_not_even_counted(registry, runner, monkeypatch):
    monkeypatch.setattr(estimator, "estimate_storage", lambda *args: pytest.fail("counted"))
    for method in ("naive", "lora", "ranpac", "pnn"):
        assert len(runner.prepare(planned(registry, method).trial)) == 1


def test_what_is_kept_from_the_beginning_needs_no_counting(registry, runner, monkeypatch):
    class Large(Strategy):
        def __init__(self, model, world, options=None):
            super().__init__(model, world, options)
            self.register_buffer("table", torch.empty(200_000_000, dtype=torch.uint8))

    monkeypatch.setattr(estimator, "estimate_storage", lambda *args: pytest.fail("counted"))
    one = planned(registry, "naive")
    stream = runner.stream(one.trial)
    usual, _ = runner.build(one.trial, stream)
    strategy = Large(usual.model, usual.world)
    assert "stores 200 MB" in runner.estimator.storage_warning(one.trial, "large", strategy, stream)
