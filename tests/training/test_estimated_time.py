"""What is known of a trial before it runs, beside what its record says; nothing is left behind."""

import pytest
import torch

from clbench.accounting import estimator
from clbench.accounting.count import count
from clbench.accounting.shapes import stream_without_values
from clbench.core.registry import discover
from clbench.execution.time_left import read_times
from clbench.execution.trial_runner import TrialRunner
from clbench.experiment.execution_settings import ExecutionSettings
from clbench.experiment.plan import plan
from clbench.experiment.spec import build
from clbench.experiment.workload import WorkEstimate

REGISTRY = discover()
RECIPES = {"epochs": {"epochs": 5, "batch_size": 10}, "iterations": {"iterations": 8, "batch_size": 8},
           "repeats": {"epochs": 2, "batch_size": 10, "repeats": 3}}


@pytest.fixture(scope="module")
def runner(tmp_path_factory):
    return TrialRunner(ExecutionSettings(data=tmp_path_factory.mktemp("data")), "cpu", "a test", REGISTRY)


def planned(method, recipe, scenario="task"):
    return plan(build({"methods": [method], "model": "mlp", "scenario": scenario, "seeds": 1, "recipe": recipe,
                       "benchmark": "helpers.tiny_benchmarks:pictures"}), REGISTRY)[0]


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_the_work_of_plain_fine_tuning_is_that_of_its_record(runner, recipe, monkeypatch):
    monkeypatch.setattr(estimator, "TIMED_SECONDS", 0.01)
    one = planned("naive", recipe, "class")
    before = torch.random.get_rng_state()
    found = estimator.CostEstimator(REGISTRY).estimate_time(one.trial, runner.stream(one.trial))
    assert torch.equal(before, torch.random.get_rng_state())
    done, seconds = read_times(runner.run(one))
    assert found.workload == done and seconds > 0
    assert found.speed.step > 0 and found.speed.flops > 1e6


@pytest.mark.parametrize(("short", "long", "rate", "step"), [
    (0.002, 0.005, 6 / 0.003, 0.0),  # a sample takes half a millisecond, and a step nothing beside its samples
    (0.004, 0.005, 6 / 0.001, 0.004 - 4 * 0.001 / 6),
    (0.005, 0.005, 10 / 0.005, 0.003),  # the sizes cannot be told apart: nothing is said to cost less than it took
])
def test_a_step_of_four_samples_and_one_of_ten_show_the_speed(runner, monkeypatch, short, long, rate, step):
    taken = iter([short, long])
    monkeypatch.setattr(estimator, "seconds_of", lambda *_: next(taken))
    trial = planned("naive", RECIPES["epochs"]).trial
    found = estimator.measure_speed(trial, runner.stream(trial), REGISTRY)
    assert found.speed.flops == pytest.approx(rate * found.train_flops)
    assert found.speed.step == pytest.approx(max(step, long / 1000))


@pytest.mark.parametrize("method", ["er:capacity=30", "lora", "pnn"])
def test_what_is_counted_on_shapes_is_the_work_that_a_record_has(runner, method):
    one = planned(method, RECIPES["epochs"], "class")
    stream = runner.stream(one.trial)
    counted = estimator.counted_work(count(one, stream_without_values(stream), REGISTRY, training=True), stream)
    done, _ = read_times(runner.run(one))
    assert counted.steps == done.steps
    assert counted.train_flops == pytest.approx(done.train_flops, rel=0.01)
    assert counted.test_flops == pytest.approx(done.test_flops, rel=0.05)


def test_a_model_that_cannot_be_stepped_is_left_to_its_trial(runner, monkeypatch):
    def broken(*_):
        raise RuntimeError("no step")

    monkeypatch.setattr(estimator, "measure_speed", broken)
    one = planned("naive", RECIPES["epochs"])
    assert estimator.CostEstimator(REGISTRY).estimate_time(one.trial, runner.stream(one.trial)) == WorkEstimate()
