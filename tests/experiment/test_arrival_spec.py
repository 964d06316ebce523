import pytest

from clbench.core.errors import SpecError
from clbench.core.registry import discover
from clbench.experiment.arrival import Arrival
from clbench.experiment.overrides import read_spec
from clbench.experiment.plan import plan
from clbench.experiment.spec import build

FREE = "naive,er,er-ace,der,der++,mir,a-gem"


def planned(**values):
    return plan(build({"methods": "naive", "scenario": "class", "seeds": 1, **values}), discover())


def refusal(**values):
    with pytest.raises(SpecError) as found:
        planned(**values)
    return str(found.value).splitlines()


def test_the_defaults_are_no_part_of_a_trial():
    one = planned()[0].trial
    assert one.key == "7e49fc4d3d30fd4c"  # as before there was such a thing
    assert "arrival" not in one.model_dump(mode="json")
    assert planned(arrival={"blur": 0.0, "boundaries": "given", "imbalance": 1})[0].trial.key == one.key


def test_what_is_set_is_part_of_key_and_setting():
    plain, blurred, hidden = (planned(recipe={"epochs": 1}, arrival=a)[0].trial
                              for a in ({}, {"blur": 0.1}, {"boundaries": "hidden"}))
    trials = plain, blurred, hidden
    assert len({trial.key for trial in trials}) == len({trial.environment for trial in trials}) == 3
    assert type(blurred).model_validate(blurred.model_dump(mode="json")) == blurred
    assert str(Arrival(blur=0.1, boundaries="hidden")) == "blur 0.1, boundaries hidden" and str(Arrival()) == ""


def test_flags_and_files_say_the_same(tmp_path):
    path = tmp_path / "a.toml"
    path.write_text('methods = ["naive"]\nscenario = "class"\n[arrival]\nblur = 0.1\nboundaries = "hidden"\n')
    flags = {"methods": "naive", "scenario": "class", "blur": 0.1, "boundaries": "hidden"}
    assert read_spec(path, {}, {}, ()).arrival == read_spec(None, {}, flags, ()).arrival == Arrival(
        blur=0.1, boundaries="hidden")
    assert read_spec(path, {}, {"blur": 0.3}, ()).arrival == Arrival(blur=0.3, boundaries="hidden")
    with pytest.raises(SpecError, match=r"arrival\.blurr: no key of that name 'blurr'|arrival\.blurr: .*did you mean"):
        build({"methods": "naive", "arrival": {"blurr": 0.1}})


@pytest.mark.parametrize(("given", "recipe"), [
    ({"online": True}, (1, None, 10)), ({"online": True, "recipe": {"batch_size": 32}}, (1, None, 32)),
    ({"online": True, "recipe": {"epochs": 1}}, (1, None, 10)), ({"online": False}, (10, None, 128)),
    ({"arrival": {"boundaries": "hidden"}}, (1, None, 128)),
    ({"arrival": {"boundaries": "hidden"}, "online": True}, (1, None, 10)),
])
def test_one_pass_is_said_by_online_and_by_hidden_boundaries(given, recipe):
    found = build({"methods": "naive", **given}).recipe
    assert (found.epochs, found.iterations, found.batch_size) == recipe


def test_online_looks_at_the_accuracy_while_tasks_are_learned():
    assert build({"methods": ["er"], "online": True}).execution.evaluate_every == 50
    given = {"methods": ["er"], "online": True, "execution": {"evaluate_every": 7}}
    assert build(given).execution.evaluate_every == 7 and build({"methods": ["er"]}).execution.evaluate_every is None


def test_one_step_per_batch_may_be_said_with_hidden_boundaries():
    spec = build({"methods": ["er"], "arrival": {"boundaries": "hidden"}, "recipe": {"repeats": 1}})
    assert spec.recipe.repeats is None


def test_online_as_a_flag_replaces_the_budget_of_a_file(tmp_path):
    path = tmp_path / "a.toml"
    path.write_text('methods = ["naive"]\n[recipe]\niterations = 100\nbatch_size = 64\nlr = 0.1\n')
    found = read_spec(path, {}, {"online": True}, ()).recipe
    assert (found.epochs, found.iterations, found.batch_size, found.lr) == (1, None, 10, 0.1)
    assert read_spec(path, {}, {"online": True, "batch_size": 5}, ()).recipe.batch_size == 5
    path.write_text('methods = ["naive"]\nonline = true\n')
    assert read_spec(path, {}, {"online": False}, ()).recipe.epochs == 10


@pytest.mark.parametrize(("given", "words"), [
    ({"online": True, "recipe": {"epochs": 3}}, "online learning is one pass in batches of 10, so epochs = 3 does "
                                                "not apply: leave one"),
    ({"online": True, "recipe": {"iterations": 50}}, "so iterations = 50 does not apply"),
    ({"arrival": {"boundaries": "hidden"}, "recipe": {"epochs": 10}},
     r"boundaries = hidden the stream passes once.*so epochs = 10 does not apply: leave it out"),
    ({"arrival": {"boundaries": "hidden"}, "recipe": {"repeats": 2}}, "one step per batch, so repeats = 2 does not "
                                                                      "apply"),
    ({"arrival": {"blur": 1.5}}, "arrival.blur: .*1.5"), ({"arrival": {"imbalance": 0.5}}, "arrival.imbalance"),
    ({"arrival": {"boundaries": "none"}}, "arrival.boundaries: should be 'given' or 'hidden'"),
    ({"arrival": {"repeat": True}}, "arrival.repeat"),
])
def test_what_does_not_go_together_is_one_line(given, words):
    with pytest.raises(SpecError, match=words) as found:
        build({"methods": "naive", **given})
    assert len(str(found.value).splitlines()) == 1


def test_scenario_task_refuses_what_leaves_no_task():
    for arrival in ({"blur": 0.1}, {"repeat": 0.1}, {"boundaries": "hidden"}):
        line, = refusal(scenario="task", arrival=arrival)
        assert "choose --scenario class or domain" in line
    assert planned(scenario="task", arrival={"imbalance": 10})  # which leaves every class in its task


def test_methods_with_a_part_for_each_task_refuse_a_line_each():
    lines = refusal(methods="naive,lora,pnn,frozen,ewc", arrival={"blur": 0.1})
    assert [line.split("'")[1] for line in lines] == ["lora", "pnn", "frozen"]
    assert all("has a part for each task" in line for line in lines)
    assert planned(methods="lora", arrival={"imbalance": 10})


def test_who_needs_boundaries_refuses_a_line_each():
    lines = refusal(methods="naive,ewc,joint,ncm,lora,er:outputs=own,der:outputs=all",
                    arrival={"boundaries": "hidden"})
    assert [line.split("'")[1] for line in lines] == ["ewc", "joint", "ncm", "lora", "er:outputs=own",
                                                      "der:outputs=all"]
    assert "base = task1 trains the base on the first task" in lines[2] and "outputs = own" in lines[4]
    assert "outputs = all has classes of tasks that are still to come" in lines[5]
    assert len(planned(methods=f"{FREE},ncm:base=random,slda:base=random", arrival={"boundaries": "hidden"})) == 9
    for own in ({"epochs": 2}, {"repeats": 2}):
        line, = refusal(methods=[{"name": "naive", "recipe": own}], arrival={"boundaries": "hidden"})
        assert "boundaries = hidden is one pass" in line


@pytest.mark.parametrize("recipe", ["epochs=5", "iterations=7"])
def test_online_learning_is_one_pass_for_methods_with_their_own_recipe_too(recipe):
    line, = refusal(online=True, methods=f"naive:recipe.{recipe}")
    assert line.endswith(f"{recipe}': online = true is one pass; leave the budget out of its recipe")


def test_online_is_true_or_false():
    assert refusal(online=1) == ["online: should be a valid boolean, got 1"]
