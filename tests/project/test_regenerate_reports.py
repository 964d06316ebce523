"""benchmarks/regenerate_reports.py: committed reports are what their records give."""

import runpy

import pytest
from helpers import ROOT
from helpers.records import folder, make_matrix, make_record

from clbench.report import build
from clbench.report.formats.markdown import render

main = runpy.run_path(str(ROOT / "benchmarks" / "regenerate_reports.py"))["main"]


@pytest.fixture
def study(tmp_path):
    records = [make_record(m, s, make_matrix(3, 0.01 * s), trainable=[cost] * 3) for m, cost in
               (("ewc", 90), ("lora", 10)) for s in (0, 1)]
    (folder(tmp_path / "deep" / "study", *records) / "report.md").write_text("old")
    folder(tmp_path / "without", *records)  # of which no report is committed
    return records


def test_reports_are_written_from_their_records_and_then_do_not_differ(study, tmp_path, capsys):
    where = tmp_path / "deep" / "study"
    assert main(tmp_path, ["--check"]) == 1
    assert (where / "report.md").read_text() == "old" and not (where / "figures").exists()
    assert "deep/study/report.md" in capsys.readouterr().out.splitlines()
    (where / "figures").mkdir()
    (where / "figures" / "gone.svg").write_text("")
    assert main(tmp_path, []) == 0
    assert (where / "report.md").read_text() == render(build(study))
    assert {path.name for path in (where / "figures").iterdir()} == {
        "split-mnist-5k-task-mlp-curves.svg", "split-mnist-5k-task-mlp-pareto.svg"}
    assert not (tmp_path / "without" / "report.md").exists()
    capsys.readouterr()
    assert main(tmp_path, ["--check", "deep/study"]) == 0
    assert capsys.readouterr().out == "0 files differ\n"


def test_a_folder_with_a_broken_record_is_an_error(study, tmp_path):
    (tmp_path / "deep" / "study" / "records" / "bad.json").write_text("{")
    with pytest.raises(SystemExit, match=r"bad\.json"):
        main(tmp_path, [])
