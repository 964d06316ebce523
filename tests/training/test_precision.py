import types

import pytest
import torch

from clbench.core.hookspecs import StrategyInfo, hookimpl
from clbench.core.registry import discover
from clbench.experiment.execution_settings import ExecutionSettings
from clbench.experiment.plan import plan
from clbench.experiment.spec import Recipe, build
from clbench.strategy.base import Strategy
from clbench.training import numerics
from clbench.training.trials.runner import TrialRunner


def test_bf16_rounds_products_and_keeps_weights():
    x, w = torch.rand(8, 64), torch.rand(64, 8)
    with numerics.forward(Recipe(precision="bf16"), torch.device("cpu")):
        assert (x @ w).dtype == torch.bfloat16
    with numerics.forward(Recipe(), torch.device("cpu")):
        assert (x @ w).dtype == torch.float32


def test_tf32_is_switched_on_inside_only():
    before = torch.get_float32_matmul_precision()
    with numerics.products(Recipe(precision="tf32")):
        assert torch.get_float32_matmul_precision() == "high"
    assert torch.get_float32_matmul_precision() == before


def test_only_losses_and_predictions_are_rounded(tmp_path_factory):
    rounded = {}

    def noting(name):
        def call(self, *args):
            rounded.setdefault(name, set()).add(torch.is_autocast_enabled("cpu"))
            return getattr(Strategy, name)(self, *args)
        return call

    names = ("before_task", "augment_batch", "loss", "edit_gradients", "after_task", "predict")
    cls = type("Notes", (Strategy,), {name: noting(name) for name in names})
    plugin = types.ModuleType("notes")
    plugin.clbench_strategies = hookimpl(specname="clbench_strategies")(lambda: [StrategyInfo("notes", cls, "")])
    runner = TrialRunner(ExecutionSettings(data=tmp_path_factory.getbasetemp() / "precision"), "cpu", "a test",
                         discover([plugin]))
    one = plan(build({"methods": "notes", "model": "mlp:width=8", "seeds": 1,
                      "recipe": {"precision": "bf16", "iterations": 2}}), runner.registry)[0]
    assert runner.run(one).status == "done"
    assert rounded == {name: {name in ("loss", "predict")} for name in names}


@pytest.mark.parametrize("method", ["naive", "ewc", "er", "lora", "pnn", "shared-private", "joint"])
def test_every_method_learns_in_bf16_alone_and_stacked(method, tmp_path_factory):
    runner = TrialRunner(ExecutionSettings(data=tmp_path_factory.getbasetemp() / "precision"), "cpu", "a test")
    group = plan(build({"methods": method, "seeds": 2, "model": "mlp:width=32", "scenario": "class",
                        "recipe": {"precision": "bf16", "iterations": 12, "lr": 0.01}}), runner.registry)
    alone = runner.run(group[0])
    stacked = runner.run_stack(group)
    assert [r.status for r in (alone, *stacked)] == ["done"] * 3
    assert not stacked[0].notes
    assert alone.R[1][0] > 0.8 and abs(alone.R[1][0] - stacked[0].R[1][0]) < 0.1
    assert alone.costs.bytes == stacked[0].costs.bytes
