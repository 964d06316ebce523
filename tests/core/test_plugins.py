import re
import types

import pytest

from clbench.core.entry_points import resolve
from clbench.core.errors import PluginError, SpecError, unknown
from clbench.core.hookspecs import StrategyInfo, hookimpl
from clbench.core.registry import discover


def plugin(name, strategies):
    module = types.ModuleType(name)

    @hookimpl
    def clbench_strategies():
        return strategies()

    module.clbench_strategies = clbench_strategies
    return module


def test_our_own_plugins_are_found_with_their_origin():
    registry = discover()
    assert {"naive", "joint", "ewc", "er", "lora", "pnn", "shared-private"} <= registry.strategies.keys()
    assert not registry.broken
    assert registry.origins["method", "lora"].distribution == "clbench"
    assert all(callable(resolve(info.strategy, name)) for name, info in registry.strategies.items())


def test_a_plugin_may_be_given_by_hand():
    registry = discover([plugin("mine", lambda: [StrategyInfo("mine", "clbench.strategy:Strategy", "mine")])])
    assert registry.strategy("mine").summary == "mine"


def test_a_broken_plugin_is_shown_and_stops_only_who_asks_for_it():
    def explode():
        raise RuntimeError("boom")

    registry = discover([plugin("clbench_bad", explode)])
    assert list(registry.broken) == ["clbench_bad"]
    assert re.fullmatch(r"RuntimeError: boom \(\S*test_plugins.py:\d+ in explode\)", registry.broken["clbench_bad"])
    assert registry.strategy("lora")
    with pytest.raises(SpecError, match="'bad': its plugin 'clbench_bad' is broken: RuntimeError: boom"):
        registry.strategy("bad")


@pytest.mark.parametrize(("returned", "error"), [
    (["lora"], "expected StrategyInfo"),
    ([StrategyInfo("mine", "x:y", "one"), StrategyInfo("mine", "x:z", "two")],
     "the plugin odd already has a method 'mine'; choose another name"),
    ([StrategyInfo("lora", "x:y", "a second lora")], "plugin clbench_lora already has a method 'lora'"),
])
def test_a_plugin_that_returns_something_else_is_broken(returned, error):
    registry = discover([plugin("odd", lambda: returned)])
    assert error in registry.broken["odd"]
    assert registry.strategy("lora").strategy == "clbench_lora.strategy:LoRA"


def test_a_misspelled_hook_is_caught():
    module = types.ModuleType("misspelled")

    @hookimpl
    def clbench_strategy():
        return []

    module.clbench_strategy = clbench_strategy
    assert "clbench_strategy" in discover([module]).broken["misspelled"]


def test_a_function_without_hookimpl_is_no_hook():
    module = types.ModuleType("unmarked")
    module.clbench_strategies = lambda: [StrategyInfo("unmarked", "clbench.strategy:Strategy", "mine")]
    registry = discover([module])
    assert "it has no hook, such as clbench_strategies with @hookimpl" in registry.broken["unmarked"]
    assert "unmarked" not in registry.strategies


def test_a_declaration_that_names_nothing():
    with pytest.raises(PluginError, match=r"cannot load clbench\.strategy:Nothing"):
        resolve("clbench.strategy:Nothing", "method 'x'")


def test_unknown_names_get_near_ones():
    assert unknown("method", "loraa", ["lora", "ewc"], "clbench methods") == (
        "no method 'loraa'; did you mean 'lora'? (clbench methods lists all)")
    assert unknown("method", "zzz", ["lora"], "clbench methods") == "no method 'zzz' (clbench methods lists all)"


def test_the_budget_of_a_method_is_whole_and_gives_the_authors_steps():
    budget = {"epochs": 20, "batch_size": 48, "samples": 2500}
    assert StrategyInfo("mine", "a:B", "", budget=budget).authors_steps == 20 * 53
    assert StrategyInfo("mine", "a:B", "").authors_steps == 0
    for wrong in ({"epochs": 20}, {**budget, "epochs": 0}, {**budget, "lr": 1}):
        with pytest.raises(PluginError, match="'mine': budget needs batch_size, epochs, samples, each above 0"):
            StrategyInfo("mine", "a:B", "", budget=wrong)
