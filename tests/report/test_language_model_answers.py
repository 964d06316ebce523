"""What reports show of language models besides the matrices: changes on general texts, and answers to prompts."""

import pytest
from helpers.records import make_lm_record, make_nll_matrix

from clbench.report import build
from clbench.report.analysis.learning import ANSWERS, LONGEST
from clbench.report.formats import markdown
from clbench.results.records import Answer

GENERAL = {"lora": [3.0, 3.1, 3.2, 3.25], "naive": [3.0, 4.0, 5.0, 6.5]}


def record(name, seed):
    made = make_lm_record(name, seed, make_nll_matrix(0.4 + 0.01 * seed, 1.0))
    answers = [Answer(task=task, prompt=f"prompt {task}.{i}", response="right", learned="right", end=f"{name} | wrong")
               for task in range(3) for i in range(2)]
    values = [value + 0.001 * seed for value in GENERAL[name]]
    return made.model_copy(update={"answers": answers, "general": {"english": {"nll": values}}})


@pytest.fixture(scope="module")
def section():
    return build([record(name, seed) for name in GENERAL for seed in range(3)], ids=True).sections[0]


def test_a_general_text_has_a_column_of_how_much_its_nll_changed(section):
    cells = dict(zip([row.label for row in section.comparison.rows],
                     section.comparison.cells("change of NLL on english"), strict=True))
    assert cells["lora"].mean == pytest.approx(0.25) and cells["naive"].mean == pytest.approx(3.5)
    headers = [column.header for column in section.comparison.columns]
    assert headers.index("change of NLL on english (nats) ↓") < headers.index("trainable parameters per task ↓")


def test_general_texts_of_the_same_name_are_compared_only_if_their_content_is_the_same():
    records = [record(name, seed).model_copy(update={"general_files": {"english": digest * 16}})
               for name, digest in (("lora", "a"), ("naive", "b")) for seed in range(3)]
    comparison = build(records, ids=True).sections[0].comparison
    columns = {column.title: dict(zip([row.label for row in comparison.rows], comparison.cells(column.title),
                                      strict=True)) for column in comparison.columns if "change" in column.title}
    assert set(columns) == {"change of NLL on english (aaaaaaaa)", "change of NLL on english (bbbbbbbb)"}
    cells = columns["change of NLL on english (aaaaaaaa)"]
    assert cells["lora"].mean == pytest.approx(0.25) and cells["naive"].mean is None


def test_the_first_answer_for_each_task_is_shown_once_per_method(section):
    table = next(table for table in section.details if table.title == ANSWERS)
    assert [row.label for row in table.rows] == ["lora"] * 3 + ["naive"] * 3
    assert [cell.text for cell in table.rows[1].cells][1:] == ["prompt 1.0", "right", "right", "lora | wrong"]
    text = markdown.render(build([record("lora", 0)], ids=True))
    assert "lora \\| wrong" in text  # a bar ends no cell


def test_a_long_answer_loses_its_middle_and_its_line_breaks():
    long = record("lora", 0)
    long = long.model_copy(update={"answers": [Answer(task=0, prompt="a\nb", response="x" * 500, learned="", end="")]})
    row, = next(t for t in build([long], ids=True).sections[0].details if t.title == ANSWERS).rows
    assert row.cells[1].text == "a b"
    assert LONGEST < len(row.cells[2].text) <= LONGEST + 5 and " ... " in row.cells[2].text


def test_without_them_there_are_no_such_parts():
    made = make_lm_record("lora", 0, make_nll_matrix(0.4, 1.0))
    section = build([made], ids=True).sections[0]
    assert ANSWERS not in {table.title for table in section.details}
    assert not any("change of" in column.title for column in section.comparison.columns)
