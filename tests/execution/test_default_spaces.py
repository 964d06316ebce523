"""What `clbench tune` searches where the experiment's file does not say it."""

import math
from typing import Annotated

import pytest
from pydantic import Field

from clbench import cli
from clbench.cli.tune import find_single_rates
from clbench.core import options as opt
from clbench.core.compat import tomllib
from clbench.core.errors import SpecError
from clbench.core.option_marks import PerMember, SearchValues, marks, search_values
from clbench.core.options import Options, Scalar
from clbench.core.registry import discover
from clbench.execution.candidates import spaces_of
from clbench.execution.samplers import Grid, corners
from clbench.execution.tuning import find_unsearched, rows_of
from clbench.experiment.plan import plan
from clbench.experiment.search import Choices
from clbench.experiment.spec import MethodSpec, Recipe, build, change_recipe

REGISTRY = discover()
TRIALS = 20  # the default of --trials


class Weighted(Options):
    weight: Annotated[Scalar, SearchValues(0.1, 1.0)] = Field(1.0, ge=0, description="of the penalty")
    size: int = 3


class Heavier(Weighted):
    weight: Scalar = 2.0  # declared again without values: nothing is searched


def values(space):
    return {option: axis.values for option, axis in space.items()}


def space_of(method, **spec):
    experiment = build({"methods": [method], **spec})
    return values(spaces_of(experiment, experiment.methods, REGISTRY, plan(experiment, REGISTRY))[0])


def test_values_stand_in_the_type_and_change_neither_option_nor_stacking():
    assert search_values(Weighted) == {"weight": (0.1, 1.0)} and search_values(Heavier) == {}
    assert list(marks(Weighted, PerMember)) == ["weight"]
    weight, size = opt.document(Weighted)
    assert (weight.type, weight.default, weight.searched, size.searched) == ("float >= 0", 1.0, (0.1, 1.0), ())
    assert Weighted().model_dump() == {"weight": 1.0, "size": 3}


def test_a_method_has_its_values_and_rates_around_its_own():
    assert space_of("ewc") == {"strength": (1e1, 1e3, 1e5, 1e7, 1e9), "recipe.lr": (1e-4, 3e-4, 1e-3, 3e-3)}
    assert space_of("naive", recipe={"lr": 0.05}) == {"recipe.lr": (0.005, 0.015, 0.05, 0.15)}
    assert space_of("naive:recipe.lr=0.1") == {"recipe.lr": (0.01, 0.03, 0.1, 0.3)}
    assert space_of("der++:beta=0.7") == {"alpha": (0.1, 0.5), "recipe.lr": (1e-4, 3e-4, 1e-3, 3e-3)}  # beta is given


def test_a_published_recipe_comes_along_whole():
    name = next(info.name for info in REGISTRY.strategies.values() if "lr" in info.recipe and len(info.recipe) > 1)
    recipe = REGISTRY.strategy(name).recipe
    method = {"name": name, "recipe": "published"}
    space = space_of(method)
    row, = rows_of(build({"methods": [method]}), REGISTRY, TRIALS)
    tried = change_recipe(Recipe(), row.candidate({"recipe.lr": 0.5}).own_recipe(recipe))[0]
    assert tried == Recipe.model_validate({**{k: v for k, v in recipe.items() if k != "lr_per"}, "lr": 0.5})
    assert space["recipe.lr"] == pytest.approx([factor * recipe["lr"] for factor in (0.1, 0.3, 1, 3)])


def test_a_closed_form_has_no_rate_and_may_have_nothing_to_search():
    experiment = build({"methods": ["ncm:base=random", "ranpac:base=random", "ncm", "naive"]})
    planned, pretrained = plan(experiment, REGISTRY), plan(experiment, REGISTRY, pretrained=True)
    spaces = spaces_of(experiment, experiment.methods, REGISTRY, planned)
    assert [list(space) for space in spaces] == [[], ["ridge"], ["recipe.lr"], ["recipe.lr"]]  # ncm trains a first task
    assert list(spaces_of(experiment, experiment.methods, REGISTRY, pretrained)[2]) == []  # with weights it does not
    rows = rows_of(experiment, REGISTRY, TRIALS)
    assert [row.label for row in rows] == ["ranpac:base=random", "ncm", "naive"]
    assert find_unsearched(rows, experiment, REGISTRY) == ["ncm"]


@pytest.mark.parametrize(("method", "rates"), [("ranpac", 4), ("aper", 4), ("simplecil", 0), ("ranpac:adapt=none", 0)])
def test_a_rate_is_searched_where_auto_means_a_first_session_that_trains(method, rates):
    experiment = build({"methods": [method], "model": "vit-tiny", "scenario": "class"})
    planned = plan(experiment, REGISTRY, pretrained=True, side=32)
    space, = spaces_of(experiment, experiment.methods, REGISTRY, planned)
    assert len(space["recipe.lr"].values if "recipe.lr" in space else ()) == rates


def test_methods_of_different_scenarios_have_their_own_spaces():
    experiment = build({"methods": [{"name": "ewc", "scenario": ["class"]}, {"name": "naive", "scenario": ["task"]},
                                    "ncm:base=random"], "scenario": ["task", "class"]})
    spaces = spaces_of(experiment, experiment.methods, REGISTRY, plan(experiment, REGISTRY))
    assert [sorted(space) for space in spaces] == [["recipe.lr", "strength"], ["recipe.lr"], []]


def test_tables_are_all_that_is_searched_where_there_are_some():
    experiment = build({"methods": ["ewc", "naive"], "tune": {"naive": {"recipe": {"lr": [0.1, 0.2]}}}})
    assert spaces_of(experiment, experiment.methods, REGISTRY, plan(experiment, REGISTRY)) == [
        {}, {"recipe.lr": Choices(values=(0.1, 0.2))}]


def test_methods_that_are_named_have_their_defaults_where_no_table_is_for_them():
    experiment = build({"methods": ["ewc", "naive", {"name": "er", "label": "mine"}, "ncm:base=random"],
                        "tune": {"naive": {"recipe": {"lr": [0.1, 0.2]}}}})

    def spaces(*only):
        return [sorted(space) for space in spaces_of(experiment, experiment.methods, REGISTRY,
                                                     plan(experiment, REGISTRY), only)]

    assert spaces("naive", "ewc", "mine") == [["recipe.lr", "strength"], ["recipe.lr"], ["recipe.lr"], []]
    assert spaces("er") == [[], ["recipe.lr"], ["recipe.lr"], []]
    assert [row.label for row in rows_of(experiment, REGISTRY, TRIALS, ["ewc"])] == ["ewc"]
    with pytest.raises(SpecError, match="--methods ncm: nothing says what to search; add a table"):
        rows_of(experiment, REGISTRY, TRIALS, ["ncm"])


@pytest.mark.parametrize("name", sorted(REGISTRY.strategies))
def test_every_default_space_is_valid_and_a_grid_of_the_default_size(name):
    info = REGISTRY.strategy(name)
    if any(field.is_required() for field in info.options.model_fields.values()):
        pytest.skip("its options have no defaults")
    experiment = build({"methods": [name]})
    space, = spaces_of(experiment, experiment.methods, REGISTRY, plan(experiment, REGISTRY, pretrained=True))
    candidates = corners(space)
    assert len(candidates) <= TRIALS
    for candidate in candidates:
        method = MethodSpec(name=name).with_options(candidate)
        opt.validate(info.options, method.options, name, "")
    for option, tried in search_values(info.options).items():  # the default lies among them
        default = info.options.model_fields[option].default
        assert default is None or min(tried) <= default <= max(tried), option
        assert all(value == "none" or math.isfinite(value) for value in tried)


def test_a_file_without_tables_is_tuned(tmp_path, capsys):
    (tmp_path / "mine.toml").write_text(
        'model = "mlp:width=16"\nseeds = 1\nmethods = ["naive", "ncm:base=random"]\n[recipe]\niterations = 3\n')
    command = ["tune", str(tmp_path / "mine.toml"), "--out", str(tmp_path / "search"), "--seeds", "1",
               "--workers", "0", "--device", "cpu", "--widen", "0"]
    assert cli.call([*command, "--dry-run"]) == 0
    *trials, last = (line for line in capsys.readouterr().out.splitlines() if "naive:" in line or "round" in line)
    assert [line.split()[1] for line in trials] == [f"naive:recipe.lr={lr}" for lr in ("1e-4", "3e-4", "1e-3", "3e-3")]
    assert all(line.split()[3:5] == ["1000", "missing"] for line in trials)
    assert last.startswith("These are the candidates of the first round.") and not (tmp_path / "search").exists()
    assert cli.call(command) == 0
    err = capsys.readouterr().err
    assert "ncm: it has nothing to search and stays as it is" in err
    assert f"Not tuned, with the settings of {tmp_path / 'mine.toml'} in tuned.toml: ncm\n" in err
    tuned = tomllib.loads((tmp_path / "search" / "tuned.toml").read_text())
    assert tuned["methods"][0]["recipe"]["lr"] in (1e-4, 3e-4, 1e-3, 3e-3)
    assert build(tuned).methods[1] == MethodSpec(name="ncm", options={"base": "random"})
    assert len(build(tuned).tuning[0].tried) == 4
    assert isinstance(rows_of(build({"methods": ["naive"]}), REGISTRY, TRIALS)[0].sampler, Grid)


@pytest.mark.parametrize(("values", "noted"), [
    ({}, ["naive"]), ({"recipe": {"head_lr": 0.01}}, []), ({"recipe": {"optimizer": "sgd"}}, []),
    ({"tune": {"naive": {"recipe": {"lr": [1e-5], "head_lr": [1e-3]}}}}, []),
    ({"tune": {"naive": {"recipe": {"lr": [1e-5, 3e-5]}}}}, ["naive"]), ({"weights": None}, []),
    ({"methods": [{"name": "naive", "recipe": {"head_lr": 0.01}}, "er"]}, ["er"]),
    ({"methods": [{"name": "naive", "recipe": {"head_lr": 0.01}}, "er"],  # each row has a rate of its heads
      "tune": {"naive": {"recipe": {"lr": [1e-5]}}, "er": {"recipe": {"lr": [1e-5], "head_lr": [1e-3]}}}}, [])])
def test_one_rate_for_a_pretrained_backbone_and_its_heads_is_noted(values, noted, tmp_path):
    file = tmp_path / "backbone.safetensors"
    file.write_bytes(b"planning reads only the hash")
    spec = build({"methods": ["naive"], "model": "mlp", "weights": str(file), **values})
    assert find_single_rates(rows_of(spec, REGISTRY, TRIALS), spec, REGISTRY) == noted


def test_methods_shows_what_is_tried(capsys):
    assert cli.call(["methods", "ewc"]) == 0
    assert ("tuned by default strength = 10, 1e3, 1e5, 1e7, 1e9; recipe.lr = 0.1, 0.3, 1, 3 times the configured rate "
            "package" in " ".join(capsys.readouterr().out.split()))
    assert cli.call(["methods", "ranpac"]) == 0
    assert "ridge = none, 100, 1e4, 1e6; recipe.lr = 0.1, 0.3, 1, 3 times the configured rate, if something is " \
           "trained by steps" in " ".join(capsys.readouterr().out.split())
