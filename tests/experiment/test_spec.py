import math

import numpy as np
import pytest

from clbench.core.compat import tomllib
from clbench.core.errors import SpecError
from clbench.experiment.spec import build, read_toml


def mistakes(values):
    with pytest.raises(SpecError) as caught:
        build(values, "x.toml")
    return str(caught.value).splitlines()


def test_defaults_are_the_offline_benchmark_and_three_seeds():
    spec = build({"methods": "lora,ewc"})
    assert spec.benchmark.name == "split-mnist-5k"
    assert spec.seeds == (0, 1, 2)
    assert [m.name for m in spec.methods] == ["lora", "ewc"]
    assert spec.recipe.epochs and spec.recipe.iterations is None


def test_all_mistakes_are_listed_with_their_place():
    lines = mistakes({"methods": "lora", "scenario": "tsk", "seeds": "0,x", "recipe": {"lr": -1, "lrr": 3}, "oops": 1})
    assert lines == [
        "x.toml: scenario.0: should be 'task', 'class' or 'domain', got 'tsk'",
        "x.toml: recipe.lr: should be greater than 0, got -1",
        "x.toml: recipe.lrr: no key 'lrr'; did you mean 'lr' or 'lr_per'? (docs/toml-keys.md lists all)",
        "x.toml: seeds: expected a number of seeds or a list such as 0,1,2, got '0,x'",
        "x.toml: oops: no key 'oops' (docs/toml-keys.md lists all)",
    ]


@pytest.mark.parametrize(("method", "advice"), [
    ({"infer": "entropy"}, 'options = {infer = "entropy"}'),
    ({"targets": ["q", "v"]}, 'options = {targets = ["q", "v"]}'), ({"rank": 4}, "options = {rank = 4}"),
    ({"lr": 0.1}, "recipe = {lr = 0.1}"), ({"n_epochs": 3}, "recipe = {epochs = 3}"),
    ({"decay": 0.99}, "options = {decay = 0.99}"),  # an option of lae as well
    ({"rank": [np.int64(3)]}, 'options = {rank = ["3"]}'),
])
def test_an_option_beside_the_name_is_told_its_table(method, advice):
    line, = mistakes({"methods": [{"name": "lora", **method}]})
    name, table = next(iter(method)), advice.partition(" ")[0]
    assert line == f"x.toml: methods.0.{name}: write it under {table}, as in {advice}"
    assert tomllib.loads(advice)


@pytest.mark.parametrize(("given", "seeds"), [(2, (0, 1)), ("2", (0, 1)), ("4,7", (4, 7)), ([5], (5,))])
def test_seeds_are_a_number_or_a_list(given, seeds):
    assert build({"methods": "lora", "seeds": given}).seeds == seeds


@pytest.mark.parametrize("seeds", [0, "0", [], [1, 1], [-1], "x", 2.5])
def test_bad_seeds_are_refused(seeds):
    assert mistakes({"methods": "lora", "seeds": seeds})


@pytest.mark.parametrize("seeds", [1001, "1000000000", 2 ** 63, 10 ** 30])
def test_a_number_of_seeds_that_would_fill_the_memory_is_refused(seeds):
    assert mistakes({"methods": "lora", "seeds": seeds}) == [
        f"x.toml: seeds: expected at most 1000 seeds, got {seeds}; a list such as 0,1000 names single seeds"]
    assert len(build({"methods": "lora", "seeds": 1000}).seeds) == 1000


def test_a_scenario_is_named_once():
    assert mistakes({"methods": "lora", "scenario": "task,class,task"}) == [
        "x.toml: scenario: give at least one, and each only once; got task, class, task"]


def test_one_budget():
    mistake, = mistakes({"methods": "a", "recipe": {"epochs": 1, "iterations": 2}})
    assert "epochs and iterations both set the budget" in mistake
    assert build({"methods": "a", "recipe": {"iterations": 7}}).recipe.epochs is None


@pytest.mark.parametrize("name", ["lr", "weight_decay"])
def test_a_recipe_is_finite(name):
    assert mistakes({"methods": "a", "recipe": {name: math.inf}}) == [
        f"x.toml: recipe.{name}: should be a finite number, got inf"]


@pytest.mark.parametrize("values", [
    {"recipe": {"weight_decay": True}}, {"recipe": {"epochs": True}}, {"validation": False},
    {"tune": {"a": {"rank": {"low": True, "high": 3}}}}])
def test_a_boolean_is_no_number(values):
    line, = mistakes({"methods": "a", **values})
    assert "expected a number, got " in line


def test_a_value_of_another_kind_is_named_with_what_is_expected():
    assert mistakes({"methods": ["er", 3], "benchmark": ["a", "b"], "model": 3, "tune": {"er": {"capacity": 5}},
                     "recipe": {"lr": [1, 2]}, "execution": 4}) == [
        "x.toml: benchmark: expected a name or a table, got ['a', 'b']",
        "x.toml: model: expected a name or a table, got 3",
        "x.toml: recipe.lr: should be a valid number, got [1, 2]",
        "x.toml: execution: expected a table, got 4",
        "x.toml: methods.1: expected a name or a table, got 3",
        "x.toml: tune.er.capacity: expected a list or a table, got 5"]


def test_methods_are_needed():
    assert mistakes({}) == ['x.toml: methods: this key is missing: add it, as in methods = ["lora", "ewc"]']
    assert mistakes({"methods": []})


def test_a_method_may_stand_twice_with_other_options():
    spec = build({"methods": ["lora", {"name": "lora", "options": {"rank": 8}, "label": "wide"}]})
    assert [m.label for m in spec.methods] == [None, "wide"]
    assert spec.methods[1].options == {"rank": 8}


def test_a_file_that_is_no_toml_or_not_there(tmp_path):
    with pytest.raises(SpecError, match="no experiment file"):
        read_toml(tmp_path / "none.toml")
    bad = tmp_path / "bad.toml"
    bad.write_text("methods = [")
    with pytest.raises(SpecError, match="cannot be read as TOML"):
        read_toml(bad)
    bad.write_bytes(b"\xff\xfe")
    with pytest.raises(SpecError, match="cannot be read as TOML"):
        read_toml(bad)
    with pytest.raises(SpecError, match="directory; to train on your own data, name it with --benchmark"):
        read_toml(tmp_path)
