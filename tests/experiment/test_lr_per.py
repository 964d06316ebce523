"""`lr_per`: a rate for so many samples becomes the rate of the batches before keys and records are made."""

import pytest

from clbench.core.errors import SpecError
from clbench.core.registry import discover
from clbench.execution.candidates import default_space
from clbench.experiment.overrides import merge, set_options
from clbench.experiment.plan import plan
from clbench.experiment.recipe import Recipe
from clbench.experiment.references import Reference
from clbench.experiment.spec import build

PER_256 = {"lr": 0.03, "lr_per": 256, "batch_size": 32}


def trial(method="naive", options=(), **recipe):
    spec = set_options(build({"methods": [method], "seeds": 1, "recipe": recipe}), options)
    return plan(spec, discover())[0].trial


def test_the_rate_of_an_experiment_is_that_of_its_batches_and_keys_have_no_lr_per():
    found = trial(**PER_256)
    assert found.recipe.lr == 0.03 * 32 / 256 and "lr_per" not in found.recipe.model_dump()
    assert found.key == trial(lr=0.00375, batch_size=32).key


def test_a_methods_own_batch_size_decides_on_its_rate():
    found = trial("naive:recipe.batch_size=64", **PER_256)
    assert found.own_recipe == {"batch_size": 64, "lr": 0.03 * 64 / 256}
    assert trial("naive:recipe.lr=0.03:recipe.lr_per=256", batch_size=64).own_recipe == {"lr": 0.03 * 64 / 256}
    # The samples that er replays are not new samples of a step.
    assert trial("er", **PER_256).recipe.lr == 0.00375


def test_an_explicit_rate_cancels_an_inherited_lr_per():
    assert trial("naive:recipe.lr=0.01", **PER_256).trained_by.lr == 0.01
    assert trial("naive", {"naive.recipe.lr": 0.01}, **PER_256).trained_by.lr == 0.01
    own = {"name": "naive", "recipe": {"lr": 0.03, "lr_per": 256}}
    assert trial(own, {"naive.recipe.lr": 0.01}, batch_size=32).trained_by.lr == 0.01
    both = ["naive.recipe.lr=0.01", "naive.recipe.lr_per=64"]
    hyphen = ["naive.recipe.lr-per=64", "naive.recipe.lr=0.01"]
    for options in (both, both[::-1], hyphen):
        assert trial(own, options, batch_size=32).trained_by.lr == 0.005
    assert merge({"recipe": PER_256}, {"lr": 0.01})["recipe"] == {"lr": 0.01, "batch_size": 32}
    assert merge({"recipe": PER_256}, {"lr": 0.01, "lr_per": 64})["recipe"] == {**PER_256, "lr": 0.01, "lr_per": 64}
    assert merge({"recipe": PER_256}, {"batch_size": 64})["recipe"] == {**PER_256, "batch_size": 64}


def test_each_rate_of_a_sweep_keeps_its_lr_per():
    method = {"name": "naive", "recipe": {"lr": [0.1, 0.2], "lr_per": 256}}
    rows = plan(build({"methods": [method], "seeds": 1}), discover())
    assert [row.trial.trained_by.lr for row in rows] == [0.05, 0.1]


def test_a_cell_of_a_reference_with_its_own_rate_does_not_inherit_lr_per():
    cell = {"scenario": "class", "method": {"name": "naive"}, "published": 50.0, "sem": 1.0}
    reference = Reference.model_validate({
        "title": "t", "paper": "p", "source": "s", "url": "u", "seeds": 2, "cells": [cell, {
            **cell, "method": {"name": "ewc"}, "recipe": {"lr": 1e-3}}], "experiment": {"recipe": PER_256}})
    rates = [rows[0].trial.trained_by.lr for rows in reference.plan(reference.cells, discover())]
    assert rates == [0.00375, 1e-3]


@pytest.mark.parametrize(("method", "options", "rate"), [
    ("l2p", {}, 0.03 * 16 / 256), ("dualprompt", {"e_length": 20}, 0.005 * 16 / 256)])
def test_published_rates_of_prompts_are_those_of_google_research_l2p(method, options, rate):
    info = discover().strategy(method)
    assert {name: info.options().model_dump().get(name) for name in options} == options
    spec = build({"methods": [{"name": method, "recipe": "published"}], "seeds": 1, "model": "vit-tiny",
                  "scenario": "class", "recipe": {"batch_size": 16}})
    row, = plan(spec, discover())
    assert row.trial.trained_by.lr == rate and row.trial.trained_by.max_grad_norm == 1.0
    assert row.label == f"{method}:recipe=published"
    space = default_space(spec.methods[0], spec, discover(), row.trial.method.options)
    assert min(abs(value / rate - 1) for value in space["recipe.lr"].values) < 0.003 and "recipe.lr_per" not in space


def test_it_is_a_whole_number_above_0():
    for wrong in (0, -1, 0.5):
        with pytest.raises(SpecError, match="lr_per"):
            trial(lr_per=wrong)
    assert Recipe().lr_per is None
