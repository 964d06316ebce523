import tempfile
import types
from pathlib import Path

import torch

from clbench.accounting import estimator
from clbench.accounting.estimator import data_bytes, storage_line
from clbench.accounting.shapes import stream_of_shapes
from clbench.core.hookspecs import StrategyInfo, hookimpl
from clbench.core.registry import discover
from clbench.data.samples import PermutedInputCache, PermutedSamples
from clbench.execution.trial_runner import TrialRunner
from clbench.experiment.execution_settings import ExecutionSettings
from clbench.experiment.plan import plan
from clbench.experiment.spec import build
from clbench.strategy.base import Strategy


def planned(registry, methods, **values):
    return plan(build({"methods": methods, "seeds": 1, "model": "mlp:width=32", **values}), registry)[0]


def test_a_line_is_for_more_than_the_data_and_more_than_a_little():
    assert storage_line("ranpac:projections=9", 965_000_000, 3_100_000, "projections=N") == (
        "ranpac:projections=9 stores 965 MB in addition to the model; the training data take 3.10 MB; "
        "ranpac:projections=N keeps less")
    assert storage_line("ewc", 200_000_000, 150_000_000, "") == (
        "ewc stores 200 MB in addition to the model; the training data take 150 MB")
    assert storage_line("ewc", 200_000_000, 201_000_000, "") is None
    assert storage_line("ewc", estimator.FLOOR, 1000, "") is None


def test_data_are_counted_as_they_are_stored():
    stream = stream_of_shapes(2, 4, (1, 8, 8), "task", 40)
    assert data_bytes(stream) == 2 * 40 * 64
    base = torch.zeros(40, 1, 8, 8, dtype=torch.uint8)
    permuted = PermutedSamples(base, torch.randperm(64), torch.zeros(40), torch.zeros(40), PermutedInputCache())
    assert estimator.stored_inputs(permuted) is base


class Large(Strategy):
    """Stores a large table from the start."""

    keeps_less = "size=N"

    def __init__(self, model, stream_info, options=None):
        super().__init__(model, stream_info, options)
        self.register_buffer("table", torch.empty(200_000_000, dtype=torch.uint8))


def test_a_run_warns_of_what_a_strategy_stores_from_the_start():
    plugin = types.ModuleType("strategies_that_store")
    plugin.clbench_strategies = hookimpl(lambda: [StrategyInfo("large", Large, "")])
    registry = discover([plugin])
    with tempfile.TemporaryDirectory() as folder:
        runner = TrialRunner(ExecutionSettings(data=Path(folder)), "cpu", "a test", registry)
        notes = runner.prepare(planned(registry, "large").trial, "large:x=1")
        assert notes[0].startswith("70 optimizer steps a task (")
        assert notes[-1] == ("large:x=1 stores at least 200 MB in addition to the model; the training data take 3.14 "
                             "MB; large:size=N keeps less")
        for method in ("naive", "lora", "ranpac", "pnn"):
            assert len(runner.prepare(planned(registry, method).trial)) == 1
