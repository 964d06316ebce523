import pytest
from factories import make_record

from clbench import cli
from clbench.store import Store


@pytest.fixture
def folder(tmp_path):
    for method in ("lora", "naive"):
        for seed in range(2):
            Store(tmp_path).write(make_record(method, seed))
    return tmp_path


def test_records_are_rendered_again(folder, capsys):
    assert cli.call(["report", str(folder)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.index("lora") < out.index("naive")
    assert f"report: {folder / 'report.md'}" in out and f"report: {folder / 'report.html'}" in out
    first = (folder / "report.md").read_text()
    assert "lora" in first
    cli.call(["report", str(folder), "--format", "md"])
    assert (folder / "report.md").read_text() == first


def test_figures_are_drawn_beside_the_report_and_named(folder, capsys):
    for seed in range(2):
        Store(folder).write(make_record("ewc", seed, trainable=[5000] * 3))
    assert cli.call(["report", str(folder)]) == 0
    path = folder / "figures" / "split-mnist-5k-task-mlp-pareto.svg"
    assert f"figure: {path}" in capsys.readouterr().out
    assert "](figures/split-mnist-5k-task-mlp-pareto.svg)" in (folder / "report.md").read_text()
    first = path.read_bytes()
    cli.call(["report", str(folder)])
    assert path.read_bytes() == first


def test_corrupt_files_are_named_and_left_alone(folder, capsys):
    bad = folder / "records" / "bad.json"
    bad.write_text("{")
    assert cli.call(["report", str(folder)]) == 0
    out, err = capsys.readouterr()
    assert err.startswith(f"Warning: {bad} is left alone: not a record")
    assert "naive" in out
    assert bad.read_text() == "{"


def test_a_folder_without_records_and_an_unknown_format_are_errors(tmp_path, capsys):
    assert cli.call(["report", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.startswith(f"Error: no records in {tmp_path / 'none' / 'records'}")
    assert cli.call(["report", str(tmp_path), "--format", "mdd"]) == 2
    assert "did you mean 'md'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
