"""Names of classes in records and in what a report says of them."""

import json
import re

import pytest
from helpers.records import NAMES, make_record, with_names
from pydantic import ValidationError

from clbench.report.analysis.names import LONGEST, NamedTasks, named_tasks
from clbench.report.formats import html, markdown
from clbench.report.formats import json as json_format
from clbench.report.tables import build
from clbench.results.records import Record


def test_a_record_without_names_is_written_as_before_and_one_with_names_comes_back():
    plain, named = make_record(), with_names()
    assert "class_names" not in plain.model_dump_json(by_alias=True)
    assert Record.model_validate_json(plain.model_dump_json(by_alias=True)) == plain
    text = named.model_dump_json(by_alias=True)
    assert Record.model_validate_json(text) == named and json.loads(text)["stream"]["class_names"] == NAMES


def test_names_are_no_outcome():
    assert with_names().outcome() == make_record().outcome()
    assert "class_names" not in with_names().facts()["stream"]


@pytest.mark.parametrize("names", [[["a", "b"]], [["a"], ["b", "c"], ["d", "e"]]])
def test_every_class_has_a_name_or_none_has(names):
    with pytest.raises(ValidationError, match="one name for each class"):
        with_names(names)


def test_every_format_is_the_same_without_names():
    records = [make_record("ewc", s) for s in range(2)]
    section, = build(records).sections
    assert not any("class" in note for note in section.notes) and section.task_classes == ()
    assert "classes" not in dict(section.settings)
    assert "task_classes" not in json_format.render(build(records))
    page = html.render(build(records)).partition("<script>")[0]
    tips = re.findall(r'<th [^>]*data-title="([^"]*)"[^>]*? title="([^"]*)"', page)
    assert tips and page.count(" title=") == len(tips)
    assert not [tip for title, tip in tips if "task " in title], "no tooltip of a task without names of classes"


def test_notes_settings_and_columns_tell_the_classes():
    report = build([with_names(method="ewc", seed=s) for s in range(2)])
    section, = report.sections
    told = "task 1 cat, dog; task 2 hen, cow; task 3 <b>ox</b>, pig"
    assert section.notes[-1] == f"classes: {told}." and dict(section.settings)["classes"] == told
    assert section.task_classes == ("cat, dog", "hen, cow", "<b>ox</b>, pig")
    assert f"\n- classes: {markdown.escape(told)}.\n" in markdown.render(report)
    page = html.render(report)
    assert page.count(' title="hen, cow"') == 4  # R, and accuracy, forgetting, parameters by task
    assert ' title="&lt;b&gt;ox&lt;/b&gt;, pig"' in page and "<b>ox" not in page
    assert json_format.data(report)["sections"][0]["task_classes"] == section.task_classes


def test_seeds_with_other_orders_are_told_apart():
    other = [NAMES[1], NAMES[0], NAMES[2]]
    found = named_tasks([with_names(seed=3), with_names(other, seed=4), make_record(seed=5)])
    assert found.note.startswith("classes of seed 3 (other seeds have another order): task 1 cat, dog; ")
    assert found.hints == ()


def test_tasks_with_the_same_classes_are_told_once():
    assert NamedTasks((("day", "night"),) * 3).note == "classes: in every task day, night"


@pytest.mark.parametrize(("tasks", "each"), [(10, 10), (20, 5), (100, 2), (1, 1000), (5, 100)])
def test_a_long_note_is_folded_and_says_where_all_names_are(tasks, each):
    names = tuple(tuple(f"class number {t * each + c}" for c in range(each)) for t in range(tasks))
    found = NamedTasks(names)
    assert len(found.note) < 1.4 * LONGEST and found.note.endswith("(all of them: Settings of the report)")
    assert "task 1 class number 0, " in found.note and " more" in found.note
    kind, whole = found.settings
    assert kind == "classes" and all(f"class number {i}" in whole for i in range(tasks * each))
    assert all(len(hint) < 500 for hint in found.hints)


def test_one_name_more_is_not_folded():
    assert NamedTasks((tuple("abcdefghijklmnopqrstu"),)).hints == (", ".join("abcdefghijklmnopqrstu"),)
