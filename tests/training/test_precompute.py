import pytest
import torch
from helpers.stacks import lead

from clbench.core.hookspecs import StrategyInfo
from clbench.core.registry import discover
from clbench.data.samples import Samples
from clbench.experiment.execution_settings import ExecutionSettings
from clbench.experiment.plan import plan
from clbench.experiment.spec import Recipe, build
from clbench.strategy.base import Strategy
from clbench.testing.checks import bench
from clbench.training import precompute
from clbench.training.trials.runner import TrialRunner

RECIPE = Recipe(optimizer="sgd", lr=0.1, batch_size=8, epochs=2)


@pytest.mark.parametrize(("method", "options", "blocks"), [
    ("shared-private", {}, 2), ("lora", {"layers": "last", "rank": 2}, 1), ("lora", {"rank": 2}, 0), ("naive", {}, 0),
    ("er", {}, 0), ("pnn", {}, 0),
])
@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_training_behind_frozen_blocks_is_the_same_training(method, options, blocks, model, monkeypatch):
    info = discover().strategy(method)
    starts = []
    once = precompute.precompute_inputs
    monkeypatch.setattr(precompute, "precompute_inputs", lambda *a: starts.append((r := once(*a)).start) or r)
    for seeds in ([0], [0, 1]):
        starts.clear()
        fast = lead(info, options, seeds, RECIPE, model=model)
        assert max(starts) == blocks
        with monkeypatch.context() as patch:
            patch.setattr(precompute, "frozen_blocks", lambda _: 0)
            slow = lead(info, options, seeds, RECIPE, model=model)
        for a, b in zip(fast, slow, strict=True):
            assert a.strategy.model.start == 0
            for name, tensor in a.strategy.state_dict().items():
                torch.testing.assert_close(tensor, b.strategy.state_dict()[name], rtol=1e-4, atol=1e-6)


class LooksAtItsInputs(Strategy):
    def before_task(self, task):
        self.model.blocks.requires_grad_(False)

    def train(self, mode=True):
        super().train(mode)
        self.model.blocks.eval()
        return self

    def loss(self, batch):
        return super().loss(batch) + self.model.head.bias.sum() * batch.x.mean()


def test_a_strategy_that_uses_its_inputs_otherwise_is_left_alone():
    b = bench(StrategyInfo("x", LooksAtItsInputs, ""), {}, "task")
    b.learn(0)
    b.strategy.train()
    samples = b.stream.tasks[0].train
    assert precompute.frozen_blocks(b.strategy) == 2
    with torch.no_grad():
        b.strategy.model.head.bias.zero_()  # the term is 0 now, and will not stay so
    assert precompute.precompute_inputs([b.strategy], [samples], 0, 2 * len(samples)).start == 0


def test_no_more_is_kept_than_the_budget():
    b = bench(discover().strategy("shared-private"), {}, "task")
    b.learn(0)
    b.strategy.requires_grad_(False)
    b.strategy.train()
    samples = b.stream.tasks[0].train
    assert precompute.precompute_inputs([b.strategy], [samples], 0, 2 * len(samples)).start == 2
    assert precompute.precompute_inputs([b.strategy], [samples], 0, 2 * len(samples) - 1).start == 0
    assert precompute.precompute_inputs([b.strategy], [samples], 0, 2 * len(samples), budget=100).start == 0


@pytest.mark.parametrize(("megabytes", "prepared"), [(1, False), (1024, True)])
def test_the_execution_settings_say_how_much_is_kept(megabytes, prepared, monkeypatch, tmp_path_factory):
    found = []
    once = precompute.precompute_inputs
    monkeypatch.setattr(precompute, "precompute_inputs", lambda *a: found.append((r := once(*a)).prepared) or r)
    runner = TrialRunner(ExecutionSettings(data=tmp_path_factory.getbasetemp() / "precompute", cache_mb=megabytes),
                         "cpu", "a test", discover())
    one, = plan(build({"methods": "naive", "model": "mlp:width=8", "seeds": 1, "benchmark": "split-mnist-5k:tasks=2",
                       "recipe": {"epochs": 2, "batch_size": 500}}), runner.registry)
    assert runner.run(one).status == "done"
    assert found == [prepared, prepared]


@pytest.mark.parametrize("method", ["naive", "ewc", "si"])
def test_a_single_pass_in_large_batches_is_prepared_batch_by_batch_to_the_same_weights(method, monkeypatch):
    info, recipe = discover().strategy(method), Recipe(optimizer="sgd", lr=0.1, batch_size=8, epochs=1)
    prepared = []
    once = precompute.precompute_inputs
    monkeypatch.setattr(precompute, "precompute_inputs", lambda *a: prepared.append((r := once(*a)).prepared) or r)
    states = []
    for large, seeds in ((2**18, [0]), (8 * 64 * 4, [0]), (8 * 64 * 4, [0, 1])):  # 8 images [1, 8, 8] of float32
        monkeypatch.setattr(precompute, "LARGE_BATCH", large)
        prepared.clear()
        states.append(lead(info, {}, seeds, recipe)[0].strategy.state_dict())
        assert prepared[0] == (large == 2**18 or len(seeds) > 1)
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name])


@pytest.mark.parametrize("shape", [(1, 5, 4), (3, 5, 4), (3, 1, 1), (6,)])
def test_what_is_kept_is_each_chunk_as_it_would_be_joined(shape):
    b = bench(discover().strategy("naive"), {}, "task")
    x = torch.randint(0, 256, (2 * precompute.PREPARED_AT_ONCE + 3, *shape), dtype=torch.uint8)
    samples = Samples(x, torch.zeros(len(x), dtype=torch.long), torch.zeros(len(x), dtype=torch.long))
    joined = torch.cat([b.strategy.world.prepare(part) for part in x.split(100)])
    kept = precompute.outputs(b.strategy, samples, 0).x
    assert torch.equal(kept, joined) and kept.stride() == joined.stride()
