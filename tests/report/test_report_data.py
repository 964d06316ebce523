import csv as csv_module
import io
import json as json_module

import pytest
from helpers import ROOT
from helpers.records import make_matrix, make_record

from clbench.report import build
from clbench.report.formats.csv import HEADER, inert, render
from clbench.report.formats.json import render as render_json
from clbench.results import metrics

R = [[0.1 + 0.2, 1 / 3], [0.9, 2 / 7], [0.7, 0.8]]


def lines(records):
    return list(csv_module.DictReader(io.StringIO(render(build(records, ids=True)))))


def pick(found, **wanted):
    return [line for line in found if all(line[k] == str(v) for k, v in wanted.items())]


def test_every_number_of_every_trial_has_a_row_with_all_its_digits():
    found = lines([make_record("lora", 3, R, trainable=[7, 5], kept_bytes={"base": 40, "heads": 2}),
                   make_record("naive", 3, make_matrix(2))])
    assert tuple(found[0]) == HEADER
    acc, = pick(found, method="lora", metric="ACC")
    assert float(acc["value"]) == metrics.acc(R) and acc["unit"] == "fraction" and acc["seed"] == "3"
    assert (acc["setting"], acc["scenario"]) == ("split-mnist-5k, Task-IL, mlp", "task")
    assert acc["reference"] == "false"
    assert {(int(a["after_task"]), int(a["task"])): float(a["value"])
            for a in pick(found, method="lora", metric="accuracy")} == {
        (i, j + 1): R[i][j] for i in range(3) for j in range(2)}
    assert [a["value"] for a in pick(found, method="lora", metric="trainable params")] == ["7", "5"]
    assert [a["value"] for a in pick(found, method="lora", metric="final bytes kept")] == ["42"]
    assert [a["value"] for a in pick(found, method="lora", metric="bytes kept")] == ["42", "42"]
    assert len({(a["metric"], a["after_task"] != "") for a in found}) == len({a["metric"] for a in found})
    assert pick(found, method="naive")[0]["reference"] == "true"


def test_a_trial_without_a_result_has_a_row_that_says_so():
    found = lines([make_record("lora", 0), make_record("lora", 1), make_record("er", 1, status="failed")])
    assert [(line["seed"], line["status"], line["value"]) for line in pick(found, method="er")] == [
        ("0", "no result", ""), ("1", "no result", "")]


def test_a_figure_that_a_seed_lacks_has_no_row_for_it():
    found = lines([make_record("lora", 0), make_record("lora", 1), make_record("joint", 1)])
    assert [line["seed"] for line in pick(found, method="lora", metric="intransigence")] == ["1"]


@pytest.mark.parametrize("label", ["=1+1", "+1", "-1", "@SUM(A1)", "\N{FULLWIDTH EQUALS SIGN}1"])
def test_no_label_is_a_formula(label):
    assert inert(label) == f"'{label}"
    assert {line["method"] for line in lines([make_record("lora", label=label)])} == {f"'{label}"}


def test_separators_and_quotes_survive():
    label = 'a,"b";c\tü 漢'
    assert {line["method"] for line in lines([make_record("lora", label=label)])} == {'a,"b";c ü 漢'}


def test_json_is_the_model_with_raw_numbers_and_the_same_every_time():
    records = [make_record(m, s, R, label="ü" if m == "er" else m) for s in (0, 1) for m in ("lora", "er", "naive")]
    text = render_json(build(records))
    assert text == render_json(build(records)) and "ü" in text
    found = json_module.loads(text)
    assert list(found)[:3] == ["schema", "title", "sections"] and found["schema"] == 1
    page = (ROOT / "docs/reports.md").read_text(encoding="utf-8")
    assert all(f"`{key}`" in page.partition("**JSON.**")[2].partition("##")[0] for key in found)
    section, = found["sections"]
    assert section["summary"] == "; ".join(f"{name}: {value}" for name, value in section["setting"])
    assert section["results"][0]["R"] == [R, R]
    row = section["comparison"]["rows"][0]
    assert row["cells"][1]["values"] == [metrics.acc(R)] * 2 and row["cells"][1]["text"] == "75.00 ± 0.00"
    assert {p["kind"] for p in section["pictures"]} == {"curves", "forgetting", "heatmaps"}
    assert not any("results" in p for p in section["pictures"])
