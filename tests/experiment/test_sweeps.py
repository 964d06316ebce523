from typing import Any, Literal

import numpy as np
import pytest

from clbench.core.errors import SpecError
from clbench.core.hookspecs import StrategyInfo, hookimpl
from clbench.core.options import Options
from clbench.core.registry import discover
from clbench.experiment.overrides import read_spec, set_options
from clbench.experiment.plan import plan
from clbench.experiment.spec import build


class ManyOptions(Options):
    number: int = 1
    share: float | None = None
    flag: bool = False
    mode: Literal["slow", "fast", "a,b"] = "slow"
    pattern: str = "all"
    sizes: list[int] = [1]  # noqa: RUF012 - pydantic copies it
    pair: tuple[int, int] = (1, 2)
    either: int | str = 0
    anything: Any = None
    grid: list[list[int]] = [[1]]  # noqa: RUF012
    maybe: list[int] | None = None


class Plugin:
    __name__ = "many"

    @hookimpl
    def clbench_strategies(self):
        return (StrategyInfo("many", "nowhere:Many", "", ManyOptions),)


@pytest.fixture(scope="module")
def registry():
    return discover([Plugin()])


def rows(registry, methods, settings=()):
    return plan(set_options(build({"methods": methods, "seeds": 1}), settings), registry)


def labels(registry, methods, settings=()):
    return [p.label for p in rows(registry, methods, settings)]


def values(registry, option, settings):
    return [p.trial.method.options[option] for p in rows(registry, "many", settings)]


def test_one_setting_makes_a_row_for_each_value_and_names_it(registry):
    planned = rows(registry, "lora,ewc", ["lora.rank=1,2,4,8,16,32"])
    assert [p.label for p in planned] == [*(f"lora:rank={r}" for r in (1, 2, 4, 8, 16, 32)), "ewc"]
    assert [p.trial.method.options["rank"] for p in planned[:-1]] == [1, 2, 4, 8, 16, 32]
    default = rows(registry, "lora")[0]
    assert default.trial.key == planned[2].trial.key, "the label is no part of the key"


def test_several_sweeps_of_a_method_give_every_combination(registry):
    assert labels(registry, "many", ["many.number=1,2", "many.flag=true,false"]) == [
        "many:number=1:flag=true", "many:number=1:flag=false", "many:number=2:flag=true", "many:number=2:flag=false"]


@pytest.mark.parametrize(("option", "written", "expected"), [
    ("number", "1,2", [1, 2]), ("number", "1, 2", [1, 2]), ("number", "[1, 2]", [1, 2]), ("number", "3", [3]),
    ("share", "1e-1,none,2", [0.1, None, 2.0]), ("flag", "true,false", [True, False]),
    ("mode", "slow,fast", ["slow", "fast"]), ("mode", "a,b", ["a,b"]), ("mode", '["a,b", "slow"]', ["a,b", "slow"]),
    ("pattern", "a{1,2}", ["a{1,2}"]), ("pattern", '["a{1,2}", "b"]', ["a{1,2}", "b"]),
    ("sizes", "[1, 2]", [[1, 2]]), ("pair", "[3, 4]", [(3, 4)]),
    ("sizes", "[[1], [2, 3]]", [[1], [2, 3]]), ("sizes", "[[]]", [[]]), ("pair", "[[3, 4], [5, 6]]", [(3, 4), (5, 6)]),
    ("grid", "[[1], [2]]", [[[1], [2]]]), ("maybe", "[[1], [2]]", [[1], [2]]), ("anything", "[[1], [2]]", [[[1], [2]]]),
    ("either", "1,2", ["1,2"]), ("either", "[1, 2]", [1, 2]),
    ("anything", "[1, 2]", [[1, 2]]), ("anything", "1,2", ["1,2"]),
])
def test_the_type_of_the_option_decides_what_is_a_sweep(registry, option, written, expected):
    assert values(registry, option, [f"many.{option}={written}"]) == expected


def test_a_list_in_a_file_makes_rows_behind_the_methods_label(registry):
    written = [{"name": "lora", "options": {"rank": [1, 2]}},
               {"name": "lora", "label": "mine", "options": {"rank": [4, 8]}},
               {"name": "lora", "options": {"layers": ["all", "a,b"], "rank": 16}}]
    assert labels(registry, written) == ["lora:rank=1", "lora:rank=2", "mine:rank=4", "mine:rank=8",
                                         "lora:rank=16:layers=all", "lora:rank=16:layers=a,b"]


def test_values_in_python_keep_their_types(registry):
    assert values(registry, "flag", {"many.flag": [True, False]}) == [True, False]
    assert values(registry, "share", {"many.share": (None, 0.5)}) == [None, 0.5]
    assert values(registry, "pattern", {"many.pattern": "a,b"}) == ["a,b"]
    assert values(registry, "number", {"many.number": range(1, 4)}) == [1, 2, 3]
    assert values(registry, "share", {"many.share": np.array([0.25, 0.5])}) == [0.25, 0.5]
    assert values(registry, "number", {"many.number": np.int64(3)}) == [3]
    assert build({"methods": "many", "seeds": np.int64(2)}).seeds == (0, 1)


@pytest.mark.parametrize(("methods", "sweep"), [
    ("lora:rank=1,2", "lora.rank=1,2"), ("naive,lora:alpha=2:rank=1,2,4,ewc", "lora.rank=1,2,4"),
    ("many:mode=slow,fast", "many.mode=slow,fast"), ("ewc:recipe.lr=0.01,0.1", "ewc.recipe.lr=0.01,0.1"),
    ("many:share=1,none", "many.share=1,none"), ("many:number=0,none", None), ("many:pattern=a,b", None),
    ("lora:rank=1,eww", None), ("many:pattern=a:1,b:2", None)])
def test_values_in_the_list_of_methods_lead_to_set(registry, methods, sweep):
    with pytest.raises(SpecError) as caught:
        labels(registry, methods)
    line, = str(caught.value).splitlines()
    if sweep is None:
        assert line.startswith("no method")
    else:
        assert line.endswith(f"a comma begins the next method; a row for each value is --set {sweep}")


def test_milestones_with_a_comma_lead_to_a_plus(registry):
    with pytest.raises(SpecError, match=r"recipe\.milestones=0\.5,0\.8: a comma begins the next method; a list of "
                       r"values is recipe\.milestones=0\.5\+0\.8"):
        labels(registry, "ewc:recipe.schedule=steps:recipe.milestones=0.5,0.8")


def test_after_an_option_and_a_recipe_the_advice_names_neither(registry):
    with pytest.raises(SpecError, match=r"lora: a comma begins the next method, so 0\.2 is no further value; a row for "
                       r"each value is --set lora\.OPTION=VALUE,VALUE"):
        labels(registry, "lora:rank=4:recipe.lr=0.1,0.2")


def test_a_class_is_swept_by_its_name(tmp_path, registry):
    (tmp_path / "mine.py").write_text("""
from __future__ import annotations
from typing import TYPE_CHECKING
from clbench import Options, Strategy
if TYPE_CHECKING:
    from torch import Tensor

class MineOptions(Options):
    strength: float = 1.0

class Mine(Strategy):
    mean: Tensor
    options: MineOptions
""")
    name = f"{tmp_path / 'mine.py'}:Mine"
    planned = plan(set_options(build({"methods": [name], "seeds": 1}), [f"{name}.strength=1,2"]), registry)
    assert [p.trial.method.options["strength"] for p in planned] == [1.0, 2.0]


def test_wrong_values_are_named_each_and_an_empty_sweep_is_none(registry):
    with pytest.raises(SpecError) as caught:
        labels(registry, "many,lora", {"many.sizes": [], "many.pattern": [], "lora.rank": "0,2"})
    assert str(caught.value).splitlines() == [
        "many.pattern: a sweep needs at least one value, got []",
        "lora.rank: should be greater than or equal to 1, got 0"]
    with pytest.raises(SpecError, match=r"^many\.number: should be a valid integer.*got 'x'$"):
        labels(registry, "many", ["many.number=1,x"])
    with pytest.raises(SpecError, match="two methods have the label 'many:number=1'"):
        labels(registry, "many", ["many.number=1,1"])


def test_lists_of_words_are_swept_and_told_from_methods(registry):
    assert labels(registry, "lora", ["lora.targets=q+v,mlp"]) == ["lora:targets=q+v", "lora:targets=mlp"]
    assert labels(registry, [{"name": "lora", "options": {"targets": ["v", "q"]}}]) == ["lora:targets=q+v"]
    with pytest.raises(SpecError, match=r"^lora:targets=q,k\+v: a comma begins the next method; a row for each "
                                        r"value is --set lora\.targets=q,k\+v; a list of them is targets=q\+k\+v$"):
        rows(registry, "lora:targets=q,k+v")
    assert labels(registry, "lora:targets=q+v,ewc") == ["lora:targets=q+v", "ewc"]


def test_lists_of_lists_are_swept_from_a_file_and_from_a_flag(registry, tmp_path):
    expected = ["lora:targets=q+v", "lora:targets=q+k+v", "lora:targets=[]"]
    path = tmp_path / "sweep.toml"
    path.write_text('seeds = 1\nmethods = [{name = "lora", options = {targets = [["q", "v"], ["q", "k", "v"], []]}}]\n')
    planned = plan(read_spec(path, {}, {}, []), registry)
    assert [p.label for p in planned] == expected
    assert len({p.trial.key for p in planned}) == 3
    assert labels(registry, "lora", ['lora.targets=[["q", "v"], ["q", "k", "v"], []]']) == expected
    for one in planned:  # a label is a method as it is written
        assert rows(registry, one.label)[0].trial == one.trial
    message = r"lora\.targets: should be 'q', 'k', 'v', 'proj', 'mlp' or 'all-linear', got 'qkv'"
    with pytest.raises(SpecError, match=message):
        rows(registry, "lora", {"lora.targets": [["q"], ["qkv"]]})


def test_values_with_a_colon_are_methods_options_and_swept_as_a_list(registry):
    for written in ("lora:layers=last:4:rank=8", "lora:rank=8:layers=last:4"):
        one, = rows(registry, written)
        assert (one.label, one.trial.method.options["layers"]) == ("lora:rank=8:layers=last:4", "last:4")
        assert rows(registry, one.label)[0].trial == one.trial
    with pytest.raises(SpecError) as caught:
        rows(registry, "lora:layers=last:1,last:2,ewc")
    assert str(caught.value) == ("lora:layers=last:1,last:2: a comma begins the next method; a row for each value is "
                                 "--set 'lora.layers=[\"last:1\", \"last:2\"]'")
    assert labels(registry, "lora", ['lora.layers=["last:1", "blocks:2"]']) == ["lora:layers=last:1",
                                                                              "lora:layers=blocks:2"]
