"""Old names of hooks and attributes work; the lines that use them are told which names have changed."""

import importlib
import re
import subprocess
import sys
import warnings

import pytest
from helpers.methods import make, task

import clbench
from clbench import Strategy, StrategyInfo
from clbench.data.samples import StochasticSamples
from clbench.strategy import common_options

PLUGIN = '''
import torch

from clbench import World
from clbench.core.errors import PluginError
from clbench.core.hookspecs import StrategyInfo, hookimpl
from clbench.data.samples import Samples
from clbench.strategy.regularization import QuadraticPenalty
from clbench.strategy.replay import ReplayMemory


class Replay(ReplayMemory):
    """Replay behind a first block that stays as it was."""

    starts_over = "for no reason but to try it"

    def __init__(self, model, world: World, options=None):
        super().__init__(model, world, options, capacity=20)
        if not self.model.blocks:
            raise PluginError("needs blocks")

    def before_task(self, task):
        self.model.blocks[0].requires_grad_(False)

    def frozen(self):
        return [*super().frozen(), self.model.blocks[0]]

    def augment_batch(self, batch):
        batch = super().augment_batch(batch)
        extended = batch.extended(self.recall(4)) if len(self.memory_y) else batch
        self.remember(Samples(batch.x, batch.y, batch.tasks))
        return extended


class Penalty(QuadraticPenalty):
    """Holds every weight near where each task left it."""

    weight = 0.5

    def after_task(self, task):
        train = task.train.fixed().some(10, self.world.generator)
        self.hold({name: torch.full_like(p, len(train) / 10) for name, p in self.named_parameters()})


@hookimpl
def clbench_strategies():
    return [StrategyInfo("replay-of-old", f"{__name__}:Replay", "replays", checked_on="mlp"),
            StrategyInfo("penalty-of-old", f"{__name__}:Penalty", "penalizes", unusable="")]
'''
CHANGES = {  # what its author changes
    "starts_over": "not_resumable", "frozen()": "frozen_modules()", "frozen(self)": "frozen_modules(self)",
    ".recall(": ".sample(", ".remember(": ".offer(", ".fixed()": ".materialized()", ".some(": ".subset(",
    ".hold(": ".anchor_here(", "augment_batch": "prepare_batch", "self.world": "self.stream_info",
    "World": "StreamInfo", "checked_on": "check_model", "unusable": "unavailable",
}
STILL_IN_DOCS = [
    "clbench.cli.group", "clbench.cli.listing.default", "clbench.cli.listing.describe", "clbench.models.network.Ports",
    "clbench.models.network.TokenNetwork", "clbench.report.Report", "clbench.report.Table", "clbench.run",
    "clbench.testing.Bench", "clbench.testing.CHECKS", "clbench.testing.MODELS", "clbench.testing.bench",
    "clbench.testing.check", "clbench.testing.tiny_stream", "clbench_lora.adapters.find", "clbench_lora.reload.load",
]


def named(path):
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def told(caught):
    """Return what was warned of and in which line of which file."""
    assert {w.category for w in caught} == {DeprecationWarning}
    return [(re.match(r"(\S+) is", str(w.message))[1], w.filename, w.lineno) for w in caught]


@pytest.mark.slow
def test_a_plugin_written_for_the_old_names_gives_the_same_results(tmp_path):
    changed = PLUGIN
    for old, new in CHANGES.items():
        assert old in changed
        changed = changed.replace(old, new)
    files, results, warned = {}, {}, {}
    for name, text in (("plugin_of_old", PLUGIN), ("plugin_of_now", changed)):
        files[name] = tmp_path / f"{name}.py"
        files[name].write_text(text)
        with warnings.catch_warnings(record=True) as warned[name]:
            warnings.simplefilter("always")
            records = clbench.run(methods="replay-of-old,penalty-of-old", plugins=[files[name]], workers=0,
                                  benchmark="helpers.tiny_benchmarks:shifting", scenario="domain", model="mlp",
                                  seeds=2, epochs=2, device="cpu", out=tmp_path / name)
        assert [r.status for r in records] == ["done"] * 4
        results[name] = [r.R for r in records]
        assert sys.modules[name].Replay.not_resumable == "for no reason but to try it"
        del sys.modules[name]
    assert results["plugin_of_old"] == results["plugin_of_now"]
    assert warned["plugin_of_now"] == []
    lines = PLUGIN.splitlines()
    where = {(name, lines[line - 1].strip()) for name, file, line in told(warned["plugin_of_old"])
             if file == str(files["plugin_of_old"])}
    assert len(where) == len({(name, file, line) for name, file, line in told(warned["plugin_of_old"])})
    assert where == {
        ("Replay.starts_over", "class Replay(ReplayMemory):"),
        ("Replay.frozen", "class Replay(ReplayMemory):"),
        ("Replay.frozen", "return [*super().frozen(), self.model.blocks[0]]"),
        ("Replay.recall", "extended = batch.extended(self.recall(4)) if len(self.memory_y) else batch"),
        ("Replay.remember", "self.remember(Samples(batch.x, batch.y, batch.tasks))"),
        ("clbench.strategy.granted.World", "from clbench import World"),
        ("Replay.augment_batch", "class Replay(ReplayMemory):"),
        ("Replay.augment_batch", "batch = super().augment_batch(batch)"),
        ("Penalty.world", "train = task.train.fixed().some(10, self.world.generator)"),
        ("Samples.fixed", "train = task.train.fixed().some(10, self.world.generator)"),
        ("Samples.some", "train = task.train.fixed().some(10, self.world.generator)"),
        ("Penalty.hold",
         "self.hold({name: torch.full_like(p, len(train) / 10) for name, p in self.named_parameters()})"),
        ("StrategyInfo(checked_on=...)",
         'return [StrategyInfo("replay-of-old", f"{__name__}:Replay", "replays", checked_on="mlp"),'),
        ("StrategyInfo(unusable=...)",
         'StrategyInfo("penalty-of-old", f"{__name__}:Penalty", "penalizes", unusable="")]'),
    }


@pytest.mark.parametrize("path", STILL_IN_DOCS)
def test_what_the_documentation_named_and_has_not_moved_says_nothing(path):
    named(path)


@pytest.mark.slow
def test_one_line_is_told_once_and_every_line_is_told():
    code = ("from clbench import Strategy\n" + "Strategy.starts_over\n" * 2
            + "for _ in range(3):\n    Strategy.starts_over")
    done = subprocess.run([sys.executable, "-W", "default", "-c", code], capture_output=True, text=True, check=True)
    assert re.findall(r"<string>:(\d): DeprecationWarning: (\S+) is (\S+) now; the old name .* 0.3", done.stderr) == [
        (line, "Strategy.starts_over", "not_resumable") for line in "235"]


def test_overriding_an_old_name_overrides_the_new_one_in_any_order_of_inheritance():
    with pytest.warns(DeprecationWarning, match=r"First\.frozen is frozen_modules now"):
        class First(Strategy):
            def frozen(self):
                return [self.model, *super().frozen()]

    with pytest.warns(DeprecationWarning, match=r"Second\.frozen"):
        class Second(First):
            def frozen(self):
                return [self.model.head, *super().frozen()]

    class Third(Second):
        def frozen_modules(self):
            return [*super().frozen_modules(), self.model.blocks]

    class Mixin:
        def frozen(self):
            return [self.model, *super().frozen()]

    with pytest.warns(DeprecationWarning, match=r"Mixed\.frozen"):
        class Mixed(Mixin, Strategy):
            pass

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        third, mixed = make(Third, None), make(Mixed, None)
        assert third.frozen_modules() == [third.model.head, third.model, third.model.blocks]
        assert mixed.frozen_modules() == [mixed.model]


def test_a_plugin_that_calls_an_old_name_gets_what_overrides_the_new_one():
    class Frozen(Strategy):
        not_resumable = "its state is elsewhere"

        def frozen_modules(self):
            return [self.model]

    strategy = make(Frozen, None)
    with pytest.warns(DeprecationWarning, match=r"Frozen\.frozen is frozen_modules now"):
        assert strategy.frozen() == [strategy.model]
    with pytest.warns(DeprecationWarning, match=r"Frozen\.starts_over"):
        assert Frozen.starts_over == strategy.not_resumable
    samples = task(0).train
    with pytest.warns(DeprecationWarning, match=r"StochasticSamples\.redrawn is is_stochastic"):
        assert StochasticSamples(samples.x, samples.y, samples.tasks, lambda i: samples.x[i]).redrawn
    with pytest.warns(DeprecationWarning, match="unusable"):
        assert StrategyInfo("a", "b:c", "d", unavailable="no GPU").unusable == "no GPU"


def test_options_of_outputs_are_importable_from_their_old_module():
    sys.modules.pop("clbench.strategy.outputs", None)
    with pytest.warns(DeprecationWarning, match="clbench.strategy.outputs is .*common_options now"):
        outputs = importlib.import_module("clbench.strategy.outputs")
    assert outputs.OutputsOptions is common_options.OutputsOptions
    assert outputs.FixedOutputsOptions is common_options.FixedOutputsOptions


def test_an_old_family_of_methods_has_its_new_name():
    with pytest.warns(DeprecationWarning, match="family 'parts per task' is 'parameter isolation' now") as caught:
        assert StrategyInfo("mine", "mine:Mine", "is mine", family="parts per task").family == "parameter isolation"
    assert caught[0].filename == __file__
