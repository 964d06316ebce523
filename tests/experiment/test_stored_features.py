import pytest

from clbench.core.registry import discover
from clbench.experiment import spec
from clbench.experiment.plan import plan
from clbench.experiment.recipe import FEATURE_EPOCHS
from clbench.experiment.spec import Named, Recipe

ARRAYS = {"benchmark": "arrays:features.npz:tasks=3", "model": "linear", "methods": ["naive"]}


def recipe(**values):
    return spec.build({**ARRAYS, **values}).recipe


@pytest.mark.parametrize("benchmark", ["arrays:features.npz:tasks=3", {"name": "arrays:features.npz"},
                                       Named(name="arrays:features.npz")])
@pytest.mark.parametrize("model", ["linear", {"name": "linear"}])
def test_a_linear_model_on_stored_features_has_more_epochs(benchmark, model):
    assert recipe(benchmark=benchmark, model=model).epochs == FEATURE_EPOCHS == 300
    assert recipe(benchmark=benchmark, model=model, recipe={"lr": 0.1}).epochs == FEATURE_EPOCHS


@pytest.mark.parametrize(("values", "epochs"), [
    ({"recipe": {"epochs": 10}}, 10), ({"recipe": {"iterations": 50}}, None), ({"recipe": Recipe()}, 10),
    ({"online": True}, 1), ({"arrival": {"boundaries": "hidden"}}, 1), ({"model": "mlp"}, 10),
    ({"benchmark": "split-mnist-5k"}, 10), ({"benchmark": "table:data.csv"}, 10)])
def test_a_budget_that_is_given_wins_and_other_experiments_have_what_they_had(values, epochs):
    assert recipe(**values).epochs == epochs


def test_the_number_is_in_the_key_as_if_it_had_been_given():
    keys = [plan(spec.build({**ARRAYS, **values}), discover())[0].trial.key
            for values in ({}, {"recipe": {"epochs": FEATURE_EPOCHS}}, {"recipe": {"epochs": 10}})]
    assert keys[0] == keys[1] != keys[2]
