"""Sections of a report are titled by what differs."""

from helpers.records import make_record

from clbench.experiment.trial import PlannedTrial
from clbench.report.analysis.names import describe_other_settings, titles


def changed(record, **recipe):
    trial = record.trial.model_copy(update={"recipe": record.trial.recipe.model_copy(update=recipe)})
    return record.model_copy(update={"trial": trial})


def test_settings_of_one_title_are_told_apart_by_what_differs():
    one = make_record("ewc", 0)
    other = changed(one, lr=0.5, batch_size=7)
    plain = titles([one])[0]
    assert titles([one, other]) == [f"{plain}, lr 1e-3, batch size 128", f"{plain}, lr 0.5, batch size 7"]


def test_what_differs_alone_in_the_scenario_needs_no_more_words():
    domain = make_record("ewc", 0, scenario="domain")
    assert titles([make_record("ewc", 0), domain])[1].endswith("Domain-IL, mlp")


def test_more_differences_than_a_title_names_are_numbered():
    one = changed(make_record("ewc", 0), lr=0.5, batch_size=7, weight_decay=0.1, schedule="cosine")
    other = changed(one, batch_size=8)
    third = changed(one, lr=0.25, weight_decay=0.2, schedule="constant")
    names = titles([one, other, third])
    assert names[0].endswith("(1 of 3)") and names[1].endswith("(2 of 3)") and "of 3" not in names[2]


def test_a_setting_of_the_folder_is_named_by_its_difference_to_the_planned_one():
    one, other = make_record("ewc", 0), changed(make_record("ewc", 0), lr=0.5)
    planned = [PlannedTrial(one.trial, "ewc", False)]
    assert describe_other_settings(planned, [one]) == []
    assert ", lr 0.5). " in describe_other_settings(planned, [other])[0]
    assert describe_other_settings(planned, [one, other]) == describe_other_settings(planned, [other])
