from dataclasses import replace

import pytest
import torch

from clbench.core.errors import PluginError
from clbench.core.hookspecs import StrategyInfo
from clbench.core.registry import discover
from clbench.execution.trial_runner import TrialRunner
from clbench.experiment.execution_settings import ExecutionSettings
from clbench.experiment.plan import plan
from clbench.experiment.spec import build
from clbench.strategy.base import Prediction, Strategy
from clbench.strategy.per_task import PerTaskStrategy
from clbench.testing.tiny import TASKS, bench
from clbench.training import prediction_cache
from clbench.training.callbacks import evaluation as evaluation_callback
from clbench.training.evaluation import evaluate
from clbench.training.prediction_cache import PredictionCache

REGISTRY = discover()
VIT = {"l2p": {"pool": 4, "top": 2, "length": 2}, "dualprompt": {}, "coda-prompt": {}, "s-iprompts": {}}
pytestmark = pytest.mark.usefixtures("small_batches")
BATCH, SAMPLES = 7, 24  # of an evaluation, of a task


def count_samples(strategy):
    """Count the samples that the first block of the network runs on."""
    seen = []
    strategy.model.blocks[0].register_forward_hook(lambda _, args, out: seen.append(len(args[0])))
    return seen


ROWS = [
    ("lora", {"rank": 2}), ("lora", {"rank": 2, "infer": "prototype"}),
    ("lora", {"rank": 2, "infer": "gaussian", "infer_normalize": True}), ("lora", {"rank": 2, "layers": "last"}),
    ("independent", {}), ("pnn", {}), ("shared-private", {"infer": "max-logit"}), ("packnet", {}), ("acl", {}),
    ("frozen", {}), ("ncm", {}), ("ncm", {"base": "random"}), ("slda", {}), ("simplecil", {}), ("fecam", {}),
    ("ranpac", {"projections": 20}), ("acil", {"compensation": 1.0}), ("naive", {}),
    ("seq-lora", {"rank": 2, "layers": "last"}),
    ("ease", {"adapter": "lora"}), ("lae", {"decay": 0.5, "width": 2}),
    ("mos", {"adapter": "lora", "width": 2}), ("slca++", {"rank": 2}), ("icarl", {"capacity": 20}), *VIT.items()]
ALSO_IN_DOMAIN = ("pnn", "packnet", "ncm", "naive", "icarl", "l2p")  # of each kind one


@pytest.mark.parametrize(("method", "options", "scenario"), [
    *((*row, "class") for row in ROWS),
    *(pytest.param(*row, "task", marks=pytest.mark.slow) for row in ROWS),
    ("lora", {"rank": 2}, "domain"), *((*row, "domain") for row in ROWS if row[0] in ALSO_IN_DOMAIN)])
def test_every_row_is_the_one_computed_anew(method, options, scenario):
    b = bench(REGISTRY.strategy(method), options, scenario)
    cache = PredictionCache(everything=method == "lora")
    for learned in range(TASKS + 1):
        if learned:
            b.learn(learned - 1)
        for _ in range(2):
            assert evaluate(b.strategy, b.stream, scenario, learned, cache) == evaluate(b.strategy, b.stream, scenario,
                                                                                        learned)
    assert b.strategy.model.start == 0


@pytest.mark.parametrize("scenario", ["task", "class"])
@pytest.mark.parametrize("method", ["ncm", "slda", "ranpac", "simplecil", "fecam", "acil"])
def test_a_frozen_base_runs_once_on_all_samples_and_then_on_a_batch(method, scenario):
    b = bench(discover().strategy(method), {"base": "random"}, scenario)
    cache, rows = PredictionCache(), []
    seen = count_samples(b.strategy)
    for learned in range(1, TASKS + 1):
        b.learn(learned - 1)
        seen.clear()
        evaluate(b.strategy, b.stream, scenario, learned, cache)
        rows.append(sum(seen))
    checks = TASKS if scenario == "task" else 1  # each computes a batch once
    assert SAMPLES * TASKS < rows[0] <= SAMPLES * TASKS + BATCH * checks
    assert all(0 < row <= BATCH * checks for row in rows[1:])


@pytest.mark.parametrize(("scenario", "new"), [("task", SAMPLES), ("class", SAMPLES * TASKS)])
@pytest.mark.parametrize("method", ["lora", "independent", "packnet"])
def test_only_the_new_part_runs_on_all_samples(method, scenario, new, monkeypatch):
    b = bench(discover().strategy(method), {}, scenario)
    cache, calls = PredictionCache(), {}
    original = b.strategy.forward_task

    def forward_task(x, task):
        calls[task] = calls.get(task, 0) + len(x)
        return original(x, task)

    monkeypatch.setattr(b.strategy, "forward_task", forward_task)
    for learned in range(1, TASKS + 1):
        b.learn(learned - 1)
        calls.clear()
        evaluate(b.strategy, b.stream, scenario, learned, cache)
        for task, samples in calls.items():
            least = new if task == learned - 1 else 0
            assert least <= samples <= least + BATCH
        assert learned == 1 or sum(calls.values()) > new  # a batch is computed again


def test_blocks_that_have_changed_run_again():
    b = bench(discover().strategy("ncm"), {"base": "random"}, "class")
    cache = PredictionCache()
    b.learn(0)
    before = evaluate(b.strategy, b.stream, "class", 1, cache)
    with torch.no_grad():
        next(b.strategy.model.blocks.parameters()).neg_()
    after = evaluate(b.strategy, b.stream, "class", 1, cache)
    assert after == evaluate(b.strategy, b.stream, "class", 1) and before != after


def test_changed_blocks_are_noticed_if_the_first_task_is_too_small_for_the_cache():
    b = bench(discover().strategy("ncm"), {"base": "random"}, "task")
    first, *others = b.stream.tasks
    small = replace(first, test=first.test.take(torch.arange(BATCH)))
    stream, cache = replace(b.stream, tasks=(small, *others)), PredictionCache()
    for task in range(TASKS):
        b.learn(task)
    before = evaluate(b.strategy, stream, "task", TASKS, cache)
    assert {given for given, _ in cache.stored} == set(range(1, TASKS))
    with torch.no_grad():
        next(b.strategy.model.blocks.parameters()).neg_()
    after = evaluate(b.strategy, stream, "task", TASKS, cache)
    assert after == evaluate(b.strategy, stream, "task", TASKS) and before != after


class Scaled(PerTaskStrategy):
    """Heads on the untouched model, with a number that changes answers."""

    parts_final = True
    factor = 1.0

    def __init__(self, model, stream_info, options=None):
        super().__init__(model, stream_info)

    def forward_task(self, x, task):
        return self.heads[task](self.model.features(x) * self.factor)

    def shared_features(self, x):
        return self.model.features(x)


class Undeclared(Scaled):
    def forward_task(self, x, task):
        return super().forward_task(x, task)


@pytest.mark.parametrize("scenario", ["task", "class"])
def test_a_part_that_is_declared_final_and_changes_ends_the_evaluation(scenario):
    b = bench(StrategyInfo("x", Scaled, ""), {}, scenario)
    cache = PredictionCache()
    b.learn(0)
    evaluate(b.strategy, b.stream, scenario, 1, cache)
    b.strategy.factor = 1.0001
    with pytest.raises(PluginError, match="Scaled declares parts_final, but part 0 gives other outputs than after"):
        evaluate(b.strategy, b.stream, scenario, 1, cache)


@pytest.mark.parametrize("scenario", ["task", "class"])
def test_a_part_that_is_not_declared_final_may_change(scenario):
    b = bench(StrategyInfo("x", Undeclared, ""), {}, scenario)
    cache = PredictionCache()
    b.learn(0)
    before = evaluate(b.strategy, b.stream, scenario, 1, cache)
    b.strategy.factor = -1.0
    after = evaluate(b.strategy, b.stream, scenario, 1, cache)
    assert after == evaluate(b.strategy, b.stream, scenario, 1) and before != after and not cache.stored


def test_the_starting_model_that_answers_for_coming_tasks_may_change():
    b = bench(StrategyInfo("x", Scaled, ""), {}, "task")
    cache = PredictionCache()
    b.learn(0)
    evaluate(b.strategy, b.stream, "task", 1, cache)
    with torch.no_grad():
        b.strategy.model.head.weight.neg_()
    assert evaluate(b.strategy, b.stream, "task", 1, cache) == evaluate(b.strategy, b.stream, "task", 1)
    b.learn(1)
    evaluate(b.strategy, b.stream, "task", 2, cache)
    assert {name for given, name in cache.stored if given == 1} == {"part 1"}


class Looks(Strategy):
    """A frozen network whose answers depend on the inputs in another way, too."""

    def __init__(self, model, stream_info, options=None):
        super().__init__(model, stream_info, options)
        self.model.blocks.requires_grad_(False)

    def predict(self, x, task=None):
        return Prediction(self.model(x) + x.flatten(1).mean(1, keepdim=True) * torch.arange(self.stream_info.classes))


class DeclaresWrongly(Looks):
    inputs_only_through_model = True


class NeedsTheShape(Looks):
    inputs_only_through_model = True

    def predict(self, x, task=None):
        return Prediction(self.model(x) + 0 * x[:, 0, 0, :1])


def test_a_prediction_that_uses_its_inputs_otherwise_is_left_alone_unless_it_declares_not_to():
    b = bench(StrategyInfo("x", Looks, ""), {}, "class")
    cache = PredictionCache()
    assert evaluate(b.strategy, b.stream, "class", 1, cache) == evaluate(b.strategy, b.stream, "class", 1)
    assert not cache.stored
    for wrong, how in ((DeclaresWrongly, "predict returns another prediction"), (NeedsTheShape, "predict fails: ")):
        b = bench(StrategyInfo("x", wrong, ""), {}, "class")
        with pytest.raises(PluginError, match=f"{wrong.__name__} declares inputs_only_through_model, .* {how}"):
            evaluate(b.strategy, b.stream, "class", 1, PredictionCache())


@pytest.mark.parametrize("everything", [False, True])
def test_every_batch_is_compared_on_demand(everything):
    b = bench(StrategyInfo("x", Scaled, ""), {}, "class")
    cache = PredictionCache(everything=everything)
    b.learn(0)
    evaluate(b.strategy, b.stream, "class", 1, cache)
    batches = -(-SAMPLES * TASKS // BATCH)
    unseen = next(number for number in range(batches)
                  if number != prediction_cache.seeds.derive(0, "cache", 1) % batches)
    cache.stored[None, "part 0"][unseen][0, 0] += 1
    if everything:
        with pytest.raises(PluginError, match="parts_final"):
            evaluate(b.strategy, b.stream, "class", 1, cache)
    else:
        evaluate(b.strategy, b.stream, "class", 1, cache)


@pytest.mark.parametrize(("megabytes", "limit", "boundaries"), [
    (0, 0, "known"), (1, 2**19, "known"), (2**20, prediction_cache.BYTES, "known"), (1, 2**19, "hidden")])
def test_the_members_of_a_stack_share_the_room_of_the_execution_settings(megabytes, limit, boundaries, monkeypatch,
                                                                         tmp_path):
    caches = []

    def noted(*args):
        caches.append(PredictionCache(*args))
        return caches[-1]

    monkeypatch.setattr(evaluation_callback, "PredictionCache", noted)
    runner = TrialRunner(ExecutionSettings(data=tmp_path, cache_mb=megabytes), "cpu", "a test", discover())
    known = boundaries == "known"
    setting = ({"methods": "pnn", "recipe": {"iterations": 2}} if known else
               {"methods": "naive", "scenario": "class", "arrival": {"boundaries": "hidden"}})
    planned = plan(build({"model": "mlp:width=8", "seeds": 2, "benchmark": "split-mnist-5k:tasks=2", **setting}),
                   runner.registry)
    assert [record.status for record in runner.run_stack(planned)] == ["done", "done"]
    assert {one.limit for one in caches} == {limit}
    if known:
        assert any(one.stored_bytes() for one in caches) == (limit > 0)


def test_no_more_is_stored_than_there_is_room_for_and_nothing_where_it_is_turned_off(monkeypatch):
    b = bench(discover().strategy("ncm"), {"base": "random"}, "task")
    b.learn(0)
    cache = PredictionCache(limit=SAMPLES * b.strategy.model.head.in_features * 4)
    rows = [evaluate(b.strategy, b.stream, "task", 1, cache) for _ in range(2)]
    assert rows[0] == rows[1] == evaluate(b.strategy, b.stream, "task", 1)
    assert sum(len(part) for parts in cache.stored.values() for part in parts.values()) == SAMPLES
    monkeypatch.setenv("CLBENCH_CACHE_FROZEN", "0")
    cache = PredictionCache()
    assert evaluate(b.strategy, b.stream, "task", 1, cache) == rows[0] and not cache.stored
