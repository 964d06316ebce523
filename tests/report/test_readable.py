"""Reports call methods by display names; ids are labels without recipes, if the rest distinguishes them."""

import pytest
from helpers.records import make_record

from clbench.core.errors import SpecError
from clbench.report.analysis.grouping import group_by_setting
from clbench.report.analysis.readable import name_settings, row_ids
from clbench.report.frames import comparison
from clbench.report.tables import build


def own(label, lr, seed=0, **settings):
    """Return a record of a method with a learning rate of its own."""
    return make_record(label.partition(":")[0], seed, label=label, own_recipe={"lr": lr}, **settings)


def called(records):
    """Return the ids of the methods of records."""
    found = [m.id for setting in name_settings(records) for m in setting.methods]
    assert found == [m.label for setting in name_settings(records, ids=True) for m in setting.methods]
    return found


def test_a_recipe_that_tells_no_methods_apart_is_left_out():
    records = [own("ewc:recipe.lr=3e-5", 3e-5), own("er:recipe.lr=0.1:recipe.momentum=0.9", 0.1),
               make_record("naive", 0)]
    assert called(records) == ["ewc", "er", "naive"]
    assert [m.label for m in group_by_setting(records)[0].methods] == [
        "ewc:recipe.lr=3e-5", "er:recipe.lr=0.1:recipe.momentum=0.9", "naive"]  # the names in an experiment stay


def test_a_recipe_that_tells_methods_apart_stays():
    assert called([own("er:recipe.lr=0.1", 0.1), own("er:recipe.lr=0.2", 0.2), own("ewc:recipe.lr=0.1", 0.1)]) == [
        "er:recipe.lr=0.1", "er:recipe.lr=0.2", "ewc"]
    assert called([make_record("er", 0), own("er:recipe.lr=0.2", 0.2)]) == ["er", "er:recipe.lr=0.2"]


def test_a_method_has_one_name_in_all_settings():
    searched = [own("er:recipe.lr=0.1", 0.1), own("er:recipe.lr=0.2", 0.2, scenario="domain")]
    assert called(searched) == ["er", "er"]  # each setting's own rate of one method
    apart = [*searched, own("er:recipe.lr=0.1", 0.1, scenario="domain")]
    assert called(apart) == ["er:recipe.lr=0.1", "er:recipe.lr=0.2", "er:recipe.lr=0.1"]


def test_every_part_of_a_report_has_the_same_names():
    """Tables, first lines and notes of records agree; what the row leaves out a note says."""
    noted = own("ewc:recipe.lr=3e-5", 3e-5)
    noted = noted.model_copy(update={"notes": ("keeps two networks",)})
    section, = build([noted, own("mas:recipe.lr=3e-5", 3e-5), make_record("naive", 0)]).sections
    assert [row.label for row in section.comparison.rows][:2] == ["EWC", "MAS"]
    assert "EWC: keeps two networks." in section.notes
    assert "EWC, MAS: trained with lr 3e-5 instead of 1e-3." in section.notes
    assert not any("recipe.lr" in text for _, text in section.headline)


def test_a_baseline_can_be_given_by_either_name():
    records = [one for seed in range(3) for one in (own("ewc:recipe.lr=3e-5", 3e-5, seed), make_record("er", seed))]
    for name in ("ewc", "EWC", "ewc:recipe.lr=3e-5"):
        assert name_settings(records, name)[0].baseline == "EWC"
        assert name_settings(records, name, ids=True)[0].baseline == "ewc"  # CSV and JSON files have ids
        assert set(comparison(records, name, ["ACC"])["baseline"]) == {"ewc"}
    with pytest.raises(SpecError, match=r"no method 'ewc:recipe\.lr=1'"):
        name_settings(records, "ewc:recipe.lr=1")


def test_no_records_have_no_ids():
    assert row_ids([]) == {}
