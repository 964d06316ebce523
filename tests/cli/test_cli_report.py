import pytest
from helpers.records import make_record

from clbench import cli
from clbench.results.store import Store


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
    assert cli.call(["report", str(tmp_path / "not there")]) == 2
    assert capsys.readouterr().err.endswith(f"clbench run --out '{tmp_path / 'not there'}' makes some\n")
    assert cli.call(["report", str(tmp_path), "--format", "mdd"]) == 2
    assert "did you mean 'md'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["report", "compare"])
def test_a_folder_of_run_folders_lists_them(command, tmp_path, capsys):
    for name in ("b", "deep/a"):
        Store(tmp_path / "runs" / name).write(make_record())
    assert cli.call([command, str(tmp_path / "runs")]) == 2
    first, *rest = capsys.readouterr().err.splitlines()
    assert first.endswith(f"but there are run folders below {tmp_path / 'runs'}; choose one:")
    assert rest == [f"Error: clbench {command} {tmp_path / 'runs' / name}" for name in ("b", "deep/a")]


@pytest.mark.slow
def test_formats_and_figures_are_lists_and_written_beside_one_another(folder, tmp_path, capsys):
    out = tmp_path / "elsewhere"
    assert cli.call(["report", str(folder), "--format", "md,latex", "--format", "csv,json", "--figures", "pdf,png",
                     "--out", str(out)]) == 0
    said = capsys.readouterr().out
    names = {path.name for path in out.iterdir()}
    assert names == {"report.md", "report.tex", "report.csv", "report.json", "figures"}
    drawn = {path.name for path in (out / "figures").iterdir()}
    assert drawn == {"split-mnist-5k-task-mlp-curves.svg", *(f"split-mnist-5k-task-mlp-{kind}.{suffix}" for kind in
                     ("curves", "heatmaps", "forgetting") for suffix in ("pdf", "png"))}
    assert all(f"figure: {out / 'figures' / name}" in said for name in drawn)
    pdf = (out / "figures" / "split-mnist-5k-task-mlp-heatmaps.pdf").read_bytes()
    assert b"/TrueType" in pdf or b"/CIDFontType2" in pdf
    assert b"/Type3" not in pdf
    assert not (folder / "report.md").exists()


def test_several_runs_are_one_report(folder, tmp_path, capsys):
    other = tmp_path / "other"
    for seed in range(2):
        Store(other).write(make_record("er", seed))
    assert cli.call(["report", str(folder), str(other)]) == 2
    assert "--out DIR" in capsys.readouterr().err
    assert cli.call(["report", str(folder), str(other), str(folder), "--out", str(tmp_path / "both")]) == 0
    text = (tmp_path / "both" / "report.md").read_text()
    assert "| er " in text and "| lora " in text
    assert not (folder / "report.md").exists() and not (other / "report.md").exists()
    Store(other).write(make_record("lora", 1, status="diverged"))
    assert cli.call(["report", str(folder), str(other), "--out", str(tmp_path / "third")]) == 2
    assert f"lora, seed 1 (split-mnist-5k, task, mlp) differs between {folder} and {other}" in capsys.readouterr().err
    assert not (tmp_path / "third").exists()


def test_a_tilde_is_the_home_folder(folder, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.chdir(folder)
    assert cli.call(["report", "~", "--out=~/made"]) == 0
    assert (folder / "made" / "report.md").exists() and not (folder / "~").exists()


def test_an_unknown_file_format_is_named(folder, capsys):
    assert cli.call(["report", str(folder), "--figures", "pnf"]) == 2
    assert "no file format 'pnf'; did you mean 'png'" in capsys.readouterr().err
