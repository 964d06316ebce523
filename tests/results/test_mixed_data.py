"""Records whose benchmark's data changed between seeds."""

import numpy as np
import pytest
from helpers.records import make_matrix, make_record

from clbench.report import build
from clbench.report.analysis.families import have_same_items, mixes_data
from clbench.report.analysis.grouping import group_by_setting
from clbench.results.items import ItemResults


def records(data, **options):
    """Return records of two methods whose seeds have these hashes of the data."""
    made = []
    for method, shift in (("lora", 0.0), ("ewc", -0.1)):
        for seed, digest in enumerate(data):
            record = make_record(method, seed, make_matrix(2, shift + 0.001 * seed))
            trial = record.trial.model_copy(update={"benchmark": record.trial.benchmark.model_copy(
                update={"options": record.trial.benchmark.options | options})})
            made.append(record.model_copy(update={
                "trial": trial, "key": trial.key, "stream": record.stream.model_copy(update={"data": digest}),
                "items": ItemResults.of([np.arange(200)], np.arange(200) % 4 > 0, "images")}))
    return made


@pytest.mark.parametrize(("data", "options", "mixed"), [
    ("aaaa", {}, False), ("abcd", {}, False), ("aabb", {}, True), ("aaab", {}, True),
    (["", "", "a", "a"], {}, False), ("aabc", {"class_order": "seed"}, False)])
def test_seeds_have_the_same_data_or_each_its_own(data, options, mixed):
    found = records(data, **options)
    assert mixes_data(found) is mixed and have_same_items(found) is not mixed
    setting, = group_by_setting(found)
    test, = {pair.test for pair in setting.tests(setting.final, setting.compared(setting.final)).pairs}
    assert (test == "crossed") is not mixed
    notes = build(found, ids=True).sections[0].notes
    assert any("data changed between seeds" in note for note in notes) is mixed
