"""A plugin that was written for clbench 0.1 works; its own lines are told which names have changed."""

import importlib
import re
import subprocess
import sys
import warnings

import clbench_lora  # noqa: F401 - declares old names of its own
import pytest
from helpers.methods import make, task

import clbench
from clbench import Strategy, StrategyInfo
from clbench.core import moved
from clbench.data.samples import StochasticSamples

PLUGIN = '''
import torch

from clbench.errors import PluginError
from clbench.hookspecs import StrategyInfo, hookimpl
from clbench.memory import Rehearsal
from clbench.consolidation import Consolidated
from clbench.strategy import Samples, Scenario


class Replay(Rehearsal):
    """Replay behind a first block that stays as it was."""

    starts_over = "for no reason but to try it"

    def __init__(self, model, world, options=None):
        super().__init__(model, world, options, capacity=20)
        scenario: Scenario = world.scenario
        if not self.model.blocks:
            raise PluginError("needs blocks")

    def before_task(self, task):
        self.model.blocks[0].requires_grad_(False)

    def frozen(self):
        return [*super().frozen(), self.model.blocks[0]]

    def augment_batch(self, batch):
        extended = batch.extended(self.recall(4)) if len(self.memory_y) else batch
        self.remember(Samples(batch.x, batch.y, batch.tasks))
        return extended


class Penalty(Consolidated):
    """Holds every weight near where each task left it."""

    weight = 0.5

    def after_task(self, task):
        train = task.train.fixed().some(10, self.world.generator)
        self.hold({name: torch.full_like(p, len(train) / 10) for name, p in self.named_parameters()})


@hookimpl
def clbench_strategies():
    return [StrategyInfo("replay-of-old", f"{__name__}:Replay", "replays", checked_on="mlp"),
            StrategyInfo("penalty-of-old", f"{__name__}:Penalty", "penalises", unusable="")]
'''
CHANGES = {  # what its author changes
    "clbench.errors": "clbench.core.errors", "clbench.hookspecs": "clbench.core.hookspecs",
    "clbench.memory": "clbench.strategy.replay", "Rehearsal": "ReplayMemory",
    "clbench.consolidation": "clbench.strategy.regularization", "Consolidated": "QuadraticPenalty",
    "Samples, Scenario": "Samples\nfrom clbench.core.scenario import Scenario",
    "starts_over": "not_resumable", "frozen()": "frozen_modules()", "frozen(self)": "frozen_modules(self)",
    ".recall(": ".sample(", ".remember(": ".offer(", ".fixed()": ".materialized()", ".some(": ".subset(",
    ".hold(": ".anchor_here(", "checked_on": "check_model", "unusable": "unavailable",
}
OLD_IN_DOCS = [
    "clbench.classmeans.class_means", "clbench.consolidation.Consolidated", "clbench.distillation.Distilled",
    "clbench.memory.Stored", "clbench.metrics.acc", "clbench.models.pretrained.load_weights",
    "clbench.pertask.PerTaskStrategy", "clbench.plugins.Registry", "clbench.plugins.discover",
    "clbench.report.markdown.escape", "clbench.samplewise.mean_gradients", "clbench.tracking.run_id",
    "clbench_lora.rerun.evaluate_tasks",
]
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
        ("clbench.errors.PluginError", "from clbench.errors import PluginError"),
        ("clbench.hookspecs.StrategyInfo", "from clbench.hookspecs import StrategyInfo, hookimpl"),
        ("clbench.hookspecs.hookimpl", "from clbench.hookspecs import StrategyInfo, hookimpl"),
        ("clbench.memory.Rehearsal", "from clbench.memory import Rehearsal"),
        ("clbench.consolidation.Consolidated", "from clbench.consolidation import Consolidated"),
        ("clbench.strategy.Scenario", "from clbench.strategy import Samples, Scenario"),
        ("Replay.starts_over", "class Replay(Rehearsal):"),
        ("Replay.frozen", "class Replay(Rehearsal):"),
        ("Replay.frozen", "return [*super().frozen(), self.model.blocks[0]]"),
        ("Replay.recall", "extended = batch.extended(self.recall(4)) if len(self.memory_y) else batch"),
        ("Replay.remember", "self.remember(Samples(batch.x, batch.y, batch.tasks))"),
        ("Samples.fixed", "train = task.train.fixed().some(10, self.world.generator)"),
        ("Samples.some", "train = task.train.fixed().some(10, self.world.generator)"),
        ("Penalty.hold",
         "self.hold({name: torch.full_like(p, len(train) / 10) for name, p in self.named_parameters()})"),
        ("StrategyInfo(checked_on=...)",
         'return [StrategyInfo("replay-of-old", f"{__name__}:Replay", "replays", checked_on="mlp"),'),
        ("StrategyInfo(unusable=...)",
         'StrategyInfo("penalty-of-old", f"{__name__}:Penalty", "penalises", unusable="")]'),
    }


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_every_old_name_leads_to_the_new_one():
    for old, homes in moved.MODULES.items():
        assert importlib.import_module(old).__spec__.loader is moved.OldModules, f"{old} is still there"
        for home in map(importlib.import_module, homes):
            for name, value in vars(home).items():
                if not name.startswith("_") and getattr(value, "__module__", "") == home.__name__:
                    assert getattr(importlib.import_module(old), name) is value
    for old, new in moved.NAMES.items():
        assert named(old) is named(new)


@pytest.mark.parametrize("path", OLD_IN_DOCS)
def test_what_the_documentation_named_is_there_under_the_old_name(path):
    with pytest.warns(DeprecationWarning, match=re.escape(path)):
        assert named(path).__module__ != path.rpartition(".")[0]


@pytest.mark.parametrize("path", STILL_IN_DOCS)
def test_what_the_documentation_named_and_has_not_moved_says_nothing(path):
    named(path)


def test_one_line_is_told_once_and_every_line_is_told():
    code = "from clbench.memory import Rehearsal\n" * 2 + "for _ in range(3):\n    from clbench.metrics import acc\n"
    done = subprocess.run([sys.executable, "-W", "default", "-c", code], capture_output=True, text=True, check=True)
    assert re.findall(r"<string>:(\d): DeprecationWarning: (\S+) is (\S+) now; the old name .* 0.3", done.stderr) == [
        ("1", "clbench.memory.Rehearsal", "clbench.strategy.replay.ReplayMemory"),
        ("2", "clbench.memory.Rehearsal", "clbench.strategy.replay.ReplayMemory"),
        ("4", "clbench.metrics.acc", "clbench.results.metrics.acc")]


def test_what_never_was_there_is_an_error():
    with pytest.raises(ImportError, match=r"cannot import name 'Absent' from 'clbench\.memory'"):
        from clbench.memory import Absent  # noqa: F401
    with pytest.raises(ModuleNotFoundError, match=r"clbench\.memories"):
        importlib.import_module("clbench.memories")
    with pytest.raises(AttributeError, match=r"module 'clbench\.strategy' has no attribute 'Absent'"):
        named("clbench.strategy.Absent")


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
