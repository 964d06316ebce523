import pytest
import torch

pytest.importorskip("torch", "2.9", reason="torch lacks the interface of a device written in Python")

from helpers.simulated_accelerator import Simulated

from clbench.core.hookspecs import StrategyInfo
from clbench.strategy.base import Strategy
from clbench.testing.checks import CHECKS, check


class StaysOnTheHost(Strategy):
    def before_task(self, task):
        self.register_buffer("scale", torch.ones(self.stream_info.classes))

    def loss(self, batch):
        return self.cross_entropy(self(batch.x, batch.task) * self.scale, batch)


@pytest.mark.parametrize("name", CHECKS)
def test_the_base_passes_on_a_device(name):
    with Simulated() as device:
        check(StrategyInfo("good", Strategy, "fine-tuning"), name, device=device)


def test_a_tensor_that_stays_on_the_host_is_found_on_a_device_only():
    info = StrategyInfo("bad", StaysOnTheHost, "creates a buffer on the CPU")
    check(info, "state")
    with Simulated() as device, pytest.raises(RuntimeError, match="device"):
        check(info, "state", device=device)
