from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from clbench.core.hookspecs import StrategyInfo
from clbench.core.scenario import scenario_rules
from clbench.data import stream
from clbench.strategy.base import Prediction, Strategy
from clbench.testing.tiny import RECIPE, SAMPLES, bench, tiny_stream
from clbench.training import evaluation
from clbench.training.callbacks.error_decomposition import ErrorDecomposition
from clbench.training.callbacks.evaluation import EvaluationCallback
from clbench.training.callbacks.interface import Callback
from clbench.training.evaluation import batch_size, evaluate
from clbench.training.loop import TrainingLoop


class Oracle(Strategy):
    """Predicts a fixed class, and says which tasks it was given."""

    answer = 0
    told = ()

    def predict(self, x, task=None):
        self.told = (*self.told, task)
        logits = torch.zeros(len(x), self.stream_info.classes)
        logits[:, self.answer] = 1
        return Prediction(logits, torch.full((len(x),), 1))


@pytest.mark.parametrize(("scenario", "told"), [("task", {0, 1, 2}), ("class", {None}), ("domain", {None})])
def test_the_task_is_given_in_scenario_task_only(scenario, told):
    b = bench(StrategyInfo("x", Oracle, ""), {}, scenario)
    evaluate(b.strategy, b.stream, scenario, learned=1)
    assert {*b.strategy.told} == told


def test_accuracy_and_inference_are_shares_of_each_tasks_samples():
    b = bench(StrategyInfo("x", Oracle, ""), {}, "class")
    b.strategy.answer = 3
    row = evaluate(b.strategy, b.stream, "class", learned=3)
    assert row.accuracy == [0.0, 0.5, 0.0]
    assert row.task_inference == [0.0, 1.0, 0.0]


@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize("fails", [True, False])
def test_each_module_keeps_its_mode(fails, mode, monkeypatch):
    b = bench(StrategyInfo("x", Strategy, ""), {}, "class")
    b.strategy.train(mode)
    b.strategy.model.head.eval()
    modes = [module.training for module in b.strategy.modules()]
    predicted = []

    def predict(x, task):
        predicted.append(any(module.training for module in b.strategy.modules()))
        if fails:
            raise ValueError("no prediction")
        return Prediction(b.strategy(x))

    monkeypatch.setattr(b.strategy, "predict", predict)
    with pytest.raises(ValueError, match="no prediction") if fails else nullcontext():
        assert evaluate(b.strategy, b.stream, "class", learned=0).task_inference is None
    assert predicted and not any(predicted)
    assert [module.training for module in b.strategy.modules()] == modes


def test_an_untrained_model_is_near_chance_and_the_hand_count_agrees():
    b = bench(StrategyInfo("x", Strategy, ""), {}, "task")
    row = evaluate(b.strategy, b.stream, "task", learned=0)
    for index, task in enumerate(b.stream.tasks):
        logits = b.strategy.model(b.stream.prepare(task.test.x))[:, list(task.classes)]
        right = sum(int(one.argmax()) + task.classes[0] == int(y) for one, y in zip(logits, task.test.y, strict=True))
        assert row.accuracy[index] == right / SAMPLES


@pytest.mark.parametrize("budget", [0, 2**30])
@pytest.mark.parametrize("scenario", ["task", "class"])
def test_batches_and_the_budget_for_prepared_tests_change_nothing(scenario, budget, monkeypatch):
    monkeypatch.setattr(stream, "TEST_BYTES", budget)
    b = bench(StrategyInfo("x", Strategy, ""), {}, scenario)
    assert (b.stream.tests.prepare is None) == bool(budget)
    whole = evaluate(b.strategy, b.stream, scenario, learned=3)
    monkeypatch.setattr(evaluation, "BATCH_BYTES", {"cpu": 7 * 4 * 64})
    assert evaluate(b.strategy, b.stream, scenario, learned=3) == whole


@pytest.mark.parametrize(("scenario", "task", "learned", "outputs"), [
    ("task", 1, 0, [2, 3]), ("task", 1, 3, [2, 3]), ("domain", 1, 1, [0, 1]),
    ("class", 0, 1, [0, 1]), ("class", 0, 2, [0, 1, 2, 3]), ("class", 2, 1, [0, 1, 2, 3, 4, 5]),
    ("class", 1, 0, [0, 1, 2, 3]),
])
def test_the_outputs_offered_at_test_time(scenario, task, learned, outputs):
    tasks = [known.classes for known in tiny_stream(scenario).tasks]
    assert sorted(scenario_rules(scenario).at_test(tasks, task, learned)) == outputs


def test_texts_that_are_longer_than_those_of_the_stream_make_batches_smaller():
    texts, device = SimpleNamespace(input_shape=(16,), is_text=True), torch.device("meta")
    assert batch_size(texts, device, 64) == batch_size(texts, device) // 4
    assert batch_size(texts, device, 8) == batch_size(texts, device)


@pytest.mark.parametrize("probed", [False, True])
@pytest.mark.parametrize("broken_after", [0, 2])
def test_a_classifier_whose_outputs_are_no_numbers_has_diverged(broken_after, probed):
    class Broken(Strategy):
        def after_task(self, task):
            if task.index == broken_after:
                for parameter in self.parameters():
                    parameter.data.fill_(float("nan"))

    replica = bench(StrategyInfo("broken", Broken, ""), {}, "class").replica
    TrainingLoop([replica], RECIPE, [EvaluationCallback(ErrorDecomposition(probed=probed))]).run()
    assert f"an output or a test score after task {broken_after + 1} is not" in replica.failure.message
    assert len(replica.R) == broken_after + 1


def test_callbacks_after_the_evaluation_get_only_replicas_whose_outputs_are_numbers():
    class Breaks(Strategy):
        def after_task(self, task):
            if self.breaks and task.index == 1:
                for parameter in self.parameters():
                    parameter.data.fill_(float("nan"))

    class Seeds(Callback):
        def __init__(self):
            self.seen = []

        def on_task(self, training, task):
            self.seen.append([replica.seed for replica in training.replicas])

    benches = [bench(StrategyInfo("breaks", Breaks, ""), {}, "class", seed) for seed in (0, 1)]
    for b in benches:
        b.strategy.breaks = b.seed == 1
    seen = Seeds()
    TrainingLoop([b.replica for b in benches], RECIPE, [EvaluationCallback(), seen]).run()
    assert seen.seen == [[0, 1], [0], [0]]
