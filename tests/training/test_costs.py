import torch
from torch import nn

from clbench.core.hookspecs import StrategyInfo
from clbench.strategy.base import Strategy
from clbench.testing.checks import bench
from clbench.training.trials.costs import measure, role


class Keeps(Strategy):
    roles = (("memory_*", "replay"), ("extra.*", "heads"))

    def __init__(self, model, world, options):
        super().__init__(model, world, options)
        self.register_buffer("memory_x", torch.zeros(7, 1, 8, 8, dtype=torch.uint8))
        self.register_buffer("memory_y", torch.zeros(7, dtype=torch.int64))
        self.register_buffer("scratch", torch.zeros(100), persistent=False)
        self.extra = nn.Linear(3, 2)
        self.alias = self.extra


def test_what_is_kept_is_counted_by_role_and_once():
    b = bench(StrategyInfo("keeps", Keeps, ""), {}, "task")
    kept = measure(b.strategy)
    body = sum(p.numel() for p in b.strategy.model.parameters())
    assert kept.parameters == {"base": body, "heads": 8}
    assert kept.bytes == {"base": 4 * body, "heads": 32, "replay": 7 * 64 + 7 * 8}
    assert kept.replay_samples == 7
    assert role(b.strategy, "memory_x") == "replay"
    assert role(b.strategy, "model.head.weight") == "base"
