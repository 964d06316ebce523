import pytest
import torch
from helpers.stacks import lead

from clbench.core.hookspecs import StrategyInfo
from clbench.core.registry import discover
from clbench.experiment.spec import Recipe
from clbench.strategy.base import Strategy
from clbench.testing.checks import bench
from clbench.training import precompute

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
    assert precompute.precompute_inputs([b.strategy], [samples], 0, len(samples)).start == 0


def test_no_more_is_kept_than_the_budget(monkeypatch):
    b = bench(discover().strategy("shared-private"), {}, "task")
    b.learn(0)
    b.strategy.requires_grad_(False)
    b.strategy.train()
    samples = b.stream.tasks[0].train
    assert precompute.precompute_inputs([b.strategy], [samples], 0, len(samples)).start == 2
    assert precompute.precompute_inputs([b.strategy], [samples], 0, len(samples) - 1).start == 0
    monkeypatch.setattr(precompute, "BYTES", 100)
    assert precompute.precompute_inputs([b.strategy], [samples], 0, len(samples)).start == 0
