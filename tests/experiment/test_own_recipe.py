"""A method's own recipe: part of its row and of its key, no section of its own."""

import pytest

from clbench import cli
from clbench.core.errors import SpecError
from clbench.core.hookspecs import StrategyInfo
from clbench.core.registry import discover
from clbench.experiment.overrides import set_options
from clbench.experiment.plan import plan
from clbench.experiment.spec import Recipe, build, change_recipe
from clbench.experiment.trial import Trial
from clbench.report.analysis.notes import own_recipe
from clbench.results.store import Store


def planned(methods, options=(), **values):
    return plan(set_options(build({"methods": methods, "seeds": 1, **values}), options), discover())


def test_it_is_in_the_key_and_not_in_what_makes_a_section():
    plain, = planned(["lora"])
    for written in (planned(["lora:recipe.lr=0.01"]), planned(["lora"], ["lora.recipe.lr=0.01"]),
                    planned([{"name": "lora", "recipe": {"lr": 0.01}}]), planned(["lora"], {"lora.recipe.lr": 0.01})):
        own, = written
        assert own.label == "lora:recipe.lr=0.01" and own.trial.own_recipe == {"lr": 0.01}
        assert own.trial.recipe == plain.trial.recipe and own.trial.environment == plain.trial.environment
        assert own.trial.trained_by == Recipe(lr=0.01)
        assert own.trial.key != plain.trial.key and own.family != plain.family
        assert own.trial.method_config != plain.trial.method_config
    assert len({p[0].trial.key for p in (planned(["lora:recipe.lr=0.01"]), planned(["lora"], ["lora.recipe.lr=0.01"]))}
               ) == 1


def test_what_the_experiment_has_anyway_makes_no_difference():
    same, = planned([{"name": "ewc", "recipe": {"lr": 1e-3, "optimizer": "adam"}}])
    assert same.trial.own_recipe == {} and same.trial.key == planned(["ewc"])[0].trial.key and same.label == "ewc"


def test_another_budget_or_optimizer_replaces_what_does_not_go_with_it():
    sgd = Recipe(optimizer="sgd", momentum=0.9, lr=0.05, epochs=3)
    new, own = change_recipe(sgd, {"optimizer": "adam", "iterations": 70})
    assert new == Recipe(optimizer="adam", lr=0.05, iterations=70)
    assert own == {"optimizer": "adam", "momentum": 0.0, "epochs": None, "iterations": 70}


def test_settings_of_an_optimizer_and_its_momentum_hold_in_any_order():
    adam = [{"name": "ewc", "recipe": {"optimizer": "adamw"}}]
    settings = ["ewc.recipe.momentum=0.9", "ewc.recipe.optimizer=sgd"]
    for options in (settings, settings[::-1]):
        assert planned(adam, options)[0].trial.own_recipe == {"optimizer": "sgd", "momentum": 0.9}


def test_settings_of_a_published_recipe_and_its_parts_hold_in_any_order():
    settings = ["acl.recipe.lr=0.5", "acl.recipe=published"]
    for options in (settings, settings[::-1]):
        method, = set_options(build({"methods": "acl"}), options).methods
        assert method.recipe == {"published": True, "lr": 0.5}


def test_a_budget_replaces_the_methods_own():
    er = {"name": "er", "recipe": {"iterations": 6}}
    assert planned([er], ["er.recipe.epochs=2"])[0].trial.trained_by.epochs == 2
    with pytest.raises(SpecError, match="epochs and iterations both set the budget"):
        planned([er], ["er.recipe.epochs=2", "er.recipe.iterations=3"])


def test_one_milestone_is_a_list():
    row, = planned(["ewc"], ["ewc.recipe.schedule=steps", "ewc.recipe.milestones=0.5"])
    assert row.trial.trained_by.milestones == (0.5,)


def test_a_rate_is_swept():
    labels = [p.label for p in planned(["ewc"], ["ewc.recipe.lr=0.01,0.1"])]
    assert labels == ["ewc:recipe.lr=0.01", "ewc:recipe.lr=0.1"]


@pytest.mark.parametrize(("method", "line"), [
    ("ewc:recipe.lr=-1", "method 'ewc': recipe.lr: should be greater than 0, got -1"),
    ("ewc:recipe.lrr=1", "methods.0: no key of a recipe 'lrr'; did you mean 'lr' or 'lr_per'? (docs/toml-keys.md "
                         "lists all)"),
    ("ewc:recipe.momentum=0.9", "method 'ewc': recipe: momentum is an option of sgd, which adam does not "
                             "use: leave it out, or choose sgd"),
    ("ewc:recipe=published", "method 'ewc': recipe = published, but none is known for it; write it out, as in recipe = "
                             "{lr = 0.01}"),
    ("cls-er:recipe=default", "methods.0: cls-er: recipe = default: write recipe=published, or a part of the recipe, "
                              "as in recipe.lr=0.01"),
    ("ewc:recipe=3", "methods.0: ewc: recipe = 3: write recipe=published, or a part of the recipe, as in "
                     "recipe.lr=0.01"),
    ("ewc:batch_size=3", "ewc: batch_size belongs to the training configuration; write ewc:recipe.batch_size=3, or "
                         "--batch-size for all methods"),
])
def test_mistakes_are_told(method, line):
    with pytest.raises(SpecError) as caught:
        planned([method])
    assert str(caught.value) == line


def test_a_swept_recipe_is_checked_too():
    with pytest.raises(SpecError, match=r"^cls-er: recipe = publised: write recipe=published"):
        planned(["cls-er"], ["cls-er.recipe=publised"])


def test_a_published_recipe_is_used_where_it_is_asked_for():
    registry = discover()
    info = StrategyInfo("mine", "clbench.strategy:Strategy", "", recipe={"optimizer": "sgd", "lr": 0.5})
    registry.strategies["mine"] = info
    plain, own = plan(build({"methods": ["mine", {"name": "mine", "recipe": "published"}], "seeds": 1}), registry)
    assert (plain.trial.own_recipe, own.trial.own_recipe) == ({}, {"optimizer": "sgd", "lr": 0.5})
    assert own.label == "mine:recipe=published"


@pytest.mark.parametrize("changes", [{}, {"recipe.lr": 0.2}, {"recipe.optimizer": "adam"}])
def test_a_published_recipe_inherits_only_budget_and_precision(changes):
    experiment = {"optimizer": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4, "schedule": "steps",
                  "milestones": [0.5], "decay": 0.2, "head_lr": 0.7, "warmup_ratio": 0.1, "max_grad_norm": 1.0,
                  "optimizer_state": "keep", "iterations": 40, "batch_size": 16, "precision": "bf16"}
    for name in ("cls-er", "slca"):
        method = {"name": name, "recipe": {"published": True, **{k.partition(".")[2]: v for k, v in changes.items()}}}
        budget = {part: experiment[part] for part in ("iterations", "batch_size", "precision")}
        alone, inherited = planned([method], recipe=budget)[0].trial, planned([method], recipe=experiment)[0].trial
        assert inherited.trained_by == alone.trained_by


def test_methods_of_clbench_have_recipes_that_are_valid():
    for info in discover().strategies.values():
        change_recipe(Recipe(), info.recipe)


def test_a_record_has_the_row_of_its_planned_trial():
    registry = discover()
    names = [name for name, info in registry.strategies.items() if info.recipe]
    methods = [{"name": name, "recipe": "published"} for name in names]
    spec = build({"methods": methods, "seeds": 1, "scenario": "class"})
    rows = {item.trial.method_config: item.trial for item in plan(spec, registry)}
    assert any("recipe.milestones=[" in row for row in rows)
    for row, trial in rows.items():
        read = Trial.model_validate_json(trial.model_dump_json())
        assert (read, read.key, read.method_config) == (trial, trial.key, row)


def test_a_run_trains_by_it_and_its_report_says_so(tmp_path):
    code = cli.call(["run", "--benchmark", "split-mnist-5k", "--model", "mlp:width=8", "--seeds", "1", "--workers", "0",
                     "--iterations", "4", "--methods", "naive,er,er:recipe.iterations=6", "--out", str(tmp_path)])
    assert code == 0
    steps = {r.label: r.costs.steps for r in Store(tmp_path).read()[0]}
    assert steps == {"naive": [4] * 5, "er": [4] * 5, "er:recipe.iterations=6": [6] * 5}
    text = (tmp_path / "report.md").read_text()
    assert text.count("## split-mnist-5k") == 1
    assert "ER (200, recipe.iterations=6) ¶" in text
    assert "trained with iterations 6 instead of 4, so it had another budget" in text


def test_a_note_describes_what_differs_from_the_experiment():
    plain, one = planned(["naive", {"name": "er", "recipe": {"lr": 0.5}}])
    assert own_recipe(plain.trial) == "" and own_recipe(one.trial) == "trained with lr 0.5 instead of 1e-3"


@pytest.mark.parametrize("methods", [
    ["acl:recipe=published:recipe.lr=0.5"], [{"name": "acl", "recipe": {"published": True, "lr": 0.5}}],
])
def test_a_part_changes_the_published_recipe_and_keeps_the_rest(methods):
    published, = planned(["acl:recipe=published"])
    row, = planned(methods)
    assert row.trial.own_recipe == {**published.trial.own_recipe, "lr": 0.5}
    assert row.label == "acl:recipe=published:recipe.lr=0.5"
    assert planned([row.label])[0].trial.key == row.trial.key
    swept, = planned([{"name": "acl", "recipe": "published"}], ["acl.recipe.lr=0.5"])
    assert (swept.label, swept.trial.key) == (row.label, row.trial.key)


@pytest.mark.parametrize("recipe", [
    {"iterations": 7}, {"schedule": "steps", "milestones": [0.5]}, {"schedule": "steps", "milestones": [0.5, 0.8]},
])
def test_the_label_of_a_row_with_its_own_recipe_can_be_given_back(recipe):
    row, = planned([{"name": "naive", "recipe": recipe}])
    again, = planned([row.label])
    assert (again.label, again.trial.key) == (row.label, row.trial.key)
