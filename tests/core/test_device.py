import pytest
import torch
from torch.overrides import TorchFunctionMode

from clbench.core.device import pick_device, room_for_samples
from clbench.core.errors import SpecError
from clbench.core.hookspecs import StrategyInfo
from clbench.strategy.base import Strategy
from clbench.testing.tiny import bench
from clbench.training.evaluation import evaluate


def test_devices():
    assert pick_device("cpu").type == "cpu"
    if not torch.cuda.is_available():
        with pytest.raises(SpecError, match=r"device 'cuda:3' is not available: .* Use --device auto or cpu$"):
            pick_device("cuda:3")


@pytest.mark.parametrize(("cuda", "device"), [(True, "cuda"), (False, "cpu")])
def test_auto_is_cuda_or_the_cpu_and_never_mps(cuda, device, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: int(cuda))
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert pick_device("auto").type == device
    assert pick_device("mps").type == "mps"
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(SpecError, match="device 'mps' is not available on this machine: use --device auto or cpu"):
        pick_device("mps")


def test_samples_may_use_half_of_the_memory_that_is_free_or_kept_by_torch_without_use(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (20, 80))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 60)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 10)
    assert room_for_samples(torch.device("cuda")) == (20 + 60 - 10) // 2
    assert room_for_samples(torch.device("cpu")) is None


class WithoutFloat64(TorchFunctionMode):
    """Refuses float64, as MPS does, to what has not been brought to the CPU."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.Tensor.double and not getattr(args[0], "brought", False):
            raise TypeError("the MPS framework doesn't support float64")
        out = func(*args, **(kwargs or {}))
        if func is torch.Tensor.cpu:
            out.brought = True
        return out


def test_accuracies_and_tables_need_no_float64_on_the_device():
    b = bench(StrategyInfo("x", Strategy, ""), {}, "class")
    with WithoutFloat64():
        with pytest.raises(TypeError, match="float64"):
            torch.ones(2).double().cpu()
        assert len(evaluate(b.strategy, b.stream, "class", learned=0).accuracy) == len(b.stream.tasks)
