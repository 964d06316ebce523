import pytest

from clbench.core.errors import SpecError
from clbench.core.registry import discover
from clbench.experiment.overrides import merge, set_options
from clbench.experiment.plan import plan
from clbench.experiment.spec import build

FILE = {"methods": ["lora", {"name": "ewc", "label": "mild", "options": {"strength": 10.0}},
                    {"name": "ewc", "options": {"strength": 1e5}}],
        "recipe": {"iterations": 100, "lr": 0.01}, "seeds": 5}


def test_what_is_given_replaces_what_the_file_says():
    merged = merge(FILE, {"seeds": "2", "lr": 0.1, "benchmark": "permuted-mnist", "scenario": None})
    assert merged == {**FILE, "seeds": "2", "benchmark": "permuted-mnist", "recipe": {"iterations": 100, "lr": 0.1}}


def test_one_budget_replaces_the_other_but_two_given_ones_are_a_mistake():
    assert merge(FILE, {"epochs": 2})["recipe"] == {"lr": 0.01, "epochs": 2}
    with pytest.raises(SpecError, match="epochs and iterations both set the budget"):
        build(merge(FILE, {"epochs": 2, "iterations": 3}))


def test_a_bare_name_picks_the_files_methods():
    assert merge(FILE, {"methods": "mild"})["methods"] == [FILE["methods"][1]]
    assert merge(FILE, {"methods": "ewc,naive"})["methods"] == [*FILE["methods"][1:], "naive"]
    assert merge(FILE, {"methods": "ewc:strength=3"})["methods"] == ["ewc:strength=3"]


@pytest.mark.parametrize("written", [
    "ewc:strength=1e3:fisher=sampled", "ewc:fisher=sampled:strength=1000", "ewc:strength=1000.0:fisher=sampled",
    "ewc:strength=1e3:fisher=sampled:recipe.lr=3e-5", "ewc"])
def test_a_method_as_tables_call_it_is_the_files_with_its_recipe(written):
    method = {"name": "ewc", "options": {"fisher": "sampled", "strength": 1000.0}, "recipe": {"lr": 3e-5}}
    assert merge({"methods": ["lora", method]}, {"methods": written})["methods"] == [method]


@pytest.mark.parametrize("written", ["ewc:strength=1e3", "ewc:strength=2e3:fisher=sampled", "lora:rank=8",
                                     "avalanche:SI"])
def test_a_method_with_other_options_is_not_the_files(written):
    known = [{"name": "ewc", "options": {"fisher": "sampled", "strength": 1000.0}, "recipe": {"lr": 3e-5}},
             "lora:rank=4", "avalanche:EWC", {"name": "avalanche:GDumb", "recipe": "published"}]
    assert merge({"methods": known}, {"methods": written})["methods"] == [written]


def test_methods_of_the_file_are_found_where_they_are_written_or_have_a_published_recipe():
    known = ["lora:rank=4:alpha=8", "avalanche:EWC:ewc_lambda=1", {"name": "avalanche:GDumb", "recipe": "published"}]
    for method, written in zip(known, ("lora:alpha=8:rank=4", "avalanche:EWC:ewc-lambda=1", "avalanche:GDumb"),
                               strict=True):
        assert merge({"methods": known}, {"methods": written})["methods"] == [method]


def test_a_list_is_the_files_as_tables_write_it_and_another_recipe_is_not():
    method = {"name": "lora", "options": {"targets": ["q", "v"]}, "recipe": {"lr": 3e-5}}
    assert merge({"methods": [method]}, {"methods": ["lora:targets=q+v"]})["methods"] == [method]
    for written in ("lora:targets=q+v:recipe=published", "lora:targets=q+v:recipe.lr=0.1", "lora:targets=q"):
        assert merge({"methods": [method]}, {"methods": [written]})["methods"] == [written]


@pytest.mark.parametrize(("given", "expected"), [
    ({"optimizer": "adam"}, {"schedule": "steps", "milestones": [0.5], "decay": 0.2}),
    ({"schedule": "cosine"}, {"momentum": 0.9}),
    ({"schedule": "steps", "decay": 0.5}, {"momentum": 0.9, "milestones": [0.5]}),
    ({"optimizer": "sgd", "momentum": 0.5}, {"schedule": "steps", "milestones": [0.5], "decay": 0.2})])
def test_another_optimizer_or_schedule_replaces_what_belonged_to_the_one_of_the_file(given, expected):
    recipe = {"optimizer": "sgd", "momentum": 0.9, "schedule": "steps", "milestones": [0.5], "decay": 0.2}
    merged = merge({"methods": ["lora"], "recipe": recipe}, given)["recipe"]
    assert merged == {"optimizer": "sgd", "schedule": "steps", **expected, **given}
    build({"methods": ["lora"], "recipe": merged})


@pytest.mark.parametrize("text", ["mine:strength=1e4", "mine:strength=10000", "ewc:strength=1e4"])
def test_a_row_of_a_sweep_keeps_the_label_the_recipe_and_the_scenario_of_the_file(text):
    method = {"name": "ewc", "label": "mine", "options": {"strength": [1e3, 1e4]}, "scenario": "class",
              "recipe": {"epochs": 2}}
    values, notes = {"methods": ["lora", method], "scenario": ["task", "class"], "seeds": 1}, []
    everything = {p.label: p.trial.key for p in plan(build(values), discover())}
    row, = plan(build(merge(values, {"methods": text}, note=notes.append)), discover())
    assert (row.label, row.trial.scenario, row.trial.own_recipe) == ("mine:strength=1e4", "class", {"epochs": 2})
    assert row.trial.key == everything[row.label] and not notes


def test_a_value_of_a_swept_recipe_is_selected():
    method = {"name": "lora", "options": {"rank": [1, 8]}, "recipe": {"lr": [0.1, 0.01]}}
    labels = [p.label for p in plan(build(merge({"methods": [method]}, {"methods": "lora:rank=8:recipe.lr=0.1"})),
                                    discover())]
    assert set(labels) == {"lora:rank=8:recipe.lr=0.1"}


def test_methods_that_a_file_writes_as_text_are_selected_by_name():
    values = merge({"methods": "lora:rank=8, ewc"}, {"methods": "lora"})
    assert [(m.name, m.options) for m in build(values).methods] == [("lora", {"rank": 8})]


@pytest.mark.parametrize(("text", "expected"), [
    ("lora:rank=9", ["lora:rank=9 is none of the file's methods (lora:rank=1, lora:rank=8), so it is added, with the "
                     "experiment's recipe and scenarios"]),
    ("gem", []), ("lora", []), ("lora:rank=8", [])])
def test_a_note_says_that_a_variant_of_a_method_was_added(text, expected):
    notes = []
    merge({"methods": [{"name": "lora", "options": {"rank": [1, 8]}}]}, {"methods": text}, note=notes.append)
    assert notes == expected


def test_a_row_of_the_file_that_two_names_pick_is_there_once():
    rank_1 = {"name": "lora", "options": {"rank": 1}}
    assert merge({"methods": ["lora", rank_1]}, {"methods": "lora:rank=1,lora"})["methods"] == [rank_1, "lora"]


def test_a_broken_recipe_is_left_for_validation_to_name():
    with pytest.raises(SpecError, match="recipe"):
        build(merge({"methods": ["lora"], "recipe": 3}, {"lr": 0.1}))


def test_settings_reach_every_method_of_a_name_or_one_label():
    spec = build(FILE)
    by_name = set_options(spec, ["ewc.strength=7", "ewc.fisher-samples=20"])
    assert [m.options for m in by_name.methods] == [{}, *[{"strength": 7, "fisher_samples": 20}] * 2]
    by_label = set_options(spec, ["mild.mode=online"])
    assert by_label.methods[1].options == {"strength": 10.0, "mode": "online"}
    assert by_label.methods[2] == spec.methods[2]
    written = set_options(build({"methods": "lora:rank=4,lora:rank=2"}), ["lora:rank=4.alpha=0.5"])
    assert [m.options for m in written.methods] == [{"rank": 4, "alpha": 0.5}, {"rank": 2}]


def test_several_settings_of_a_row_that_is_named_with_its_options():
    for settings in (["lora:rank=4.alpha=0.5", "lora:rank=4.recipe.lr_per=64", "lora:rank=4.recipe.lr=0.01"],
                     {"lora:rank=4.alpha": 0.5, "lora:rank=4.recipe.lr_per": 64, "lora:rank=4.recipe.lr": 0.01}):
        method, other = set_options(build({"methods": "lora:rank=4,lora:rank=2"}), settings).methods
        assert (method.options, method.recipe) == ({"rank": 4, "alpha": 0.5}, {"lr": 0.01, "lr_per": 64})
        assert (other.options, other.recipe) == ({"rank": 2}, {})
    renamed, = set_options(build({"methods": "lora"}), ["lora.rank=4", "lora:rank=4.alpha=0.5"]).methods
    assert renamed.options == {"rank": 4, "alpha": 0.5}


def test_a_mapping_sets_values_as_they_are():
    spec = set_options(build(FILE), {"lora.rank": [1, 2], "mild.fisher-samples": None})
    assert spec.methods[0].options == {"rank": [1, 2]}
    assert spec.methods[1].options == {"strength": 10.0, "fisher_samples": None}
    with pytest.raises(SpecError, match=r"--set lora\.rank=3: expected METHOD\.OPTION=VALUE"):
        set_options(build(FILE), {"lora.rank=3": 4})


def test_every_wrong_setting_is_a_line():
    with pytest.raises(SpecError) as caught:
        set_options(build(FILE), ["er.capacity=3", "rank=4", "lora.rank"])
    assert str(caught.value).splitlines() == [
        "--set er.capacity=3: the experiment has no method 'er'; its methods are ewc, ewc:strength=10, "
        "ewc:strength=1e5, lora, mild",
        "--set rank=4: expected METHOD.OPTION=VALUE, e.g. lora.rank=4",
        "--set lora.rank: expected METHOD.OPTION=VALUE, e.g. lora.rank=4"]
