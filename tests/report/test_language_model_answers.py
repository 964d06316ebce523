"""What reports show of language models besides the matrices: general ability, and answers to prompts."""

import csv as csv_files
import io

import numpy as np
import pytest
from helpers.records import make_lm_record, make_nll_matrix
from scipy import stats

from clbench.report import build
from clbench.report.analysis.learning import ANSWERS, LONGEST
from clbench.report.figures.draw import draw_report
from clbench.report.formats import csv, html, json, markdown
from clbench.report.results import Results
from clbench.results.item_scores import ItemScores
from clbench.results.items import cross
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
    assert section.general == () and "general" not in json.data(build([made], ids=True))["sections"][0]


TEXTS = 30  # items of the file of general prompts


def with_items(name, seed):
    """A record with a file of general prompts, whose NLL and exact match get worse from task to task."""
    rng = np.random.default_rng([len(name), seed])
    nll = (np.linspace(1, 3, TEXTS) + np.arange(4)[:, None] * (2 if name == "naive" else 0.1)
           + rng.normal(0, 0.1, (4, TEXTS))).astype(np.float32)
    by_metric = {"nll": nll, "exact": (nll < 2.5).astype(np.float32)}
    scores = ItemScores.of({"nll": np.ones(3, np.float32)}, "ids").with_general(
        {"facts": {metric: values.tolist() for metric, values in by_metric.items()}})
    means = {metric: values.mean(axis=1, dtype=float).tolist() for metric, values in by_metric.items()}
    made = make_lm_record(name, seed, make_nll_matrix(0.4, 1.0))
    return made.model_copy(update={"general": {"facts": means}, "item_scores": scores}), by_metric


def tables_of(section):
    return {(general.metric.name, general.text): general for general in section.general}


def test_general_ability_is_shown_before_training_and_after_each_task(section):
    general = tables_of(section)["nll", "english"]
    assert [column.title for column in general.table.columns] == [
        "before training", "after task 1: dates", "after task 2: codes", "after task 3: sums"]
    row, = (row for row in general.table.rows if row.label == "naive")
    assert [cell.mean for cell in row.cells] == pytest.approx([3.001, 4.001, 5.001, 6.501])
    interval = stats.t.interval(0.95, 2, 3.001, stats.sem([3.0, 3.001, 3.002]))
    assert general.over == "seeds" and (row.cells[0].low, row.cells[0].high) == pytest.approx(interval)


def test_general_ability_has_intervals_over_seeds_and_items():
    made = {name: [with_items(name, seed) for seed in range(3)] for name in GENERAL}
    section = build([record for seeds in made.values() for record, _ in seeds], ids=True).sections[0]
    for metric in ("nll", "exact"):
        general = tables_of(section)[metric, "facts"]
        row, = (row for row in general.table.rows if row.label == "naive")
        for i, cell in enumerate(row.cells):
            items = [by_metric[metric][i] for _, by_metric in made["naive"]]
            expected = cross([float(values.mean(dtype=float)) for values in items], items).interval
            assert general.over == "seeds and items"
            assert (cell.mean, cell.low, cell.high) == pytest.approx((expected.mean, expected.low, expected.high))
    titles = [column.header for column in section.comparison.columns if "facts" in column.title]
    assert titles == ["change of NLL on facts (nats) ↓", "change of exact match on facts (points) ↑"]
    change = dict(zip([row.label for row in section.comparison.rows],
                      section.comparison.cells("change of exact match on facts"), strict=True))["lora"]
    items = [by_metric["exact"][3] - by_metric["exact"][0] for _, by_metric in made["lora"]]
    expected = cross([float(values.mean(dtype=float)) for values in items], items).interval
    assert (change.mean, change.low, change.high) == pytest.approx((expected.mean, expected.low, expected.high))


def test_general_ability_of_one_seed_has_intervals_over_items():
    (record, by_metric), (other, _) = with_items("lora", 0), with_items("naive", 0)
    section = build([record, other], ids=True).sections[0]
    general = tables_of(section)["nll", "facts"]
    values = by_metric["nll"][2].astype(float)
    cell = next(row for row in general.table.rows if row.label == "lora").cells[2]
    interval = stats.t.interval(0.95, TEXTS - 1, values.mean(), stats.sem(values))
    assert general.over == "items" and "intervals over items" in general.table.title
    assert (cell.low, cell.high) == pytest.approx(interval) and cell.n == 1
    exact = next(row for row in tables_of(section)["exact", "facts"].table.rows if row.label == "naive").cells[-1]
    wilson = stats.binomtest(round(exact.mean * TEXTS), TEXTS).proportion_ci(method="wilson")
    assert (exact.low, exact.high) == pytest.approx((wilson.low, wilson.high))
    ends = f"{100 * wilson.low:.2f} to {100 * wilson.high:.2f}"
    assert exact.text == f"{100 * exact.mean:.2f} ({ends})"


def test_exact_match_that_is_the_same_on_every_seed_has_the_interval_of_its_test_items():
    none = [[0.0] * 3] * 4
    records = [make_lm_record(name, seed, make_nll_matrix(0.4 + 0.01 * seed, 1.0), exact)
               for name, exact in (("lora", None), ("naive", none)) for seed in range(3)]
    section = build(records, ids=True).sections[0]
    note, = (note for note in section.notes if "exact match" in note and "Every seed" in note)
    items = sum(records[0].stream.test_samples)
    wilson = stats.binomtest(0, items).proportion_ci(method="wilson")
    assert f"naive 0.00 (0.00 to {100 * wilson.high:.2f})" in note
    assert "lora" not in note


def test_scores_of_items_that_are_not_those_of_the_record_count_as_unknown():
    records = [with_items(name, seed)[0] for name in GENERAL for seed in range(3)]
    lines = {metric: [value + 0.5 for value in values] for metric, values in records[0].general["facts"].items()}
    records[0] = records[0].model_copy(update={"general": {"facts": {"nll": lines["nll"]}}})
    assert tables_of(build(records, ids=True).sections[0])["nll", "facts"].over == "seeds"


def test_every_format_and_the_figure_show_general_ability():
    records = [with_items(name, seed)[0] for name in GENERAL for seed in range(2)]
    report = build(records, ids=True)
    name = "instructions-acme-task-hf-base-general-nll-facts"
    files = draw_report(report)
    assert b"NLL on facts" in files[f"{name}.svg"] and f"{name.replace('nll', 'exact')}.svg" in files
    text = markdown.render(report)
    assert f"](figures/{name}.svg)" in text and "over seeds and items, and dashed lines are references" in text
    assert "**Exact match on facts, before training and after each task (intervals over seeds and items)**" in text
    assert 'data-first="0"' in html.render(report) and "Exact match on facts, before training" in html.render(report)
    assert "before training" in json.render(report)
    rows = [row for row in csv_files.DictReader(io.StringIO(csv.render(report)))
            if row["metric"] == "exact on facts" and row["method"] == "naive" and row["seed"] == "1"]
    naive = next(record for record in records if record.name == "naive/1")
    assert [(row["after_task"], float(row["value"])) for row in rows] == [
        (str(i), value) for i, value in enumerate(naive.general["facts"]["exact"])]


def test_general_ability_has_a_data_frame():
    pandas = pytest.importorskip("pandas")
    made, _ = with_items("naive", 0)
    frame = Results([made, record("naive", 1)]).general_frame()
    assert isinstance(frame, pandas.DataFrame)
    assert list(frame.columns[-5:]) == ["seed", "learned", "text", "nll", "exact"]
    facts = frame[frame.text == "facts"]
    assert list(facts.learned) == [0, 1, 2, 3] and list(facts.nll) == made.general["facts"]["nll"]
    assert frame[frame.text == "english"].exact.isna().all()
