import sys
from types import SimpleNamespace

import pytest

import clbench
from clbench.core.errors import SpecError
from clbench.core.hookspecs import TrackerInfo, hookimpl
from clbench.core.registry import discover
from clbench.execution import api
from clbench.execution.api import format_call
from clbench.results.store import Store

SMALL = {"seeds": 2, "iterations": 2, "device": "cpu", "workers": 0, "threads": 1}


def test_a_run_returns_its_records_and_keeps_them(tmp_path, capsys):
    file = tmp_path / "mine.toml"
    file.write_text('methods = ["naive", "lora"]\nscenario = "class"\n')
    records = clbench.run(file, methods=["lora"], set={"lora.rank": 2}, out=tmp_path / "run", **SMALL)
    assert [(r.label, r.trial.seed, r.trial.scenario, r.status) for r in records] == [
        ("lora:rank=2", s, "class", "done") for s in range(2)]
    assert records[0].provenance.command.startswith("clbench.run(")
    assert sorted(Store(tmp_path / "run").read()[0], key=lambda r: r.trial.seed) == records
    assert (tmp_path / "run" / "report.md").exists()
    assert "<!DOCTYPE html>" in (tmp_path / "run" / "report.html").read_text()
    assert capsys.readouterr() == ("", "")
    assert isinstance(records, clbench.Results) and clbench.load(tmp_path / "run") == sorted(
        records, key=lambda r: r.trial.seed)
    again = clbench.run(file, methods="lora", set=["lora.rank=2"], out=tmp_path / "run", progress=True, **SMALL)
    assert again == records


def test_a_sweep_is_a_row_for_each_value_and_a_figure(tmp_path):
    records = clbench.run(methods="lora", set={"lora.rank": [1, 2]}, out=tmp_path, **{**SMALL, "seeds": 1})
    assert [(r.label, r.trial.method.options["rank"]) for r in records] == [("lora:rank=1", 1), ("lora:rank=2", 2)]
    assert records[0].costs.trainable[-1] < records[1].costs.trainable[-1]
    assert "set={'lora.rank': [1, 2]}" in records[0].provenance.command
    drawn = {path.name for path in (tmp_path / "figures").iterdir()}
    assert drawn == {f"split-mnist-5k-task-mlp-{kind}.svg" for kind in ("pareto", "growth", "curves")}
    assert all(f"](figures/{name})" in (tmp_path / "report.md").read_text() for name in drawn)
    again = clbench.run(methods="lora", set="lora.rank=1,2", out=tmp_path, **{**SMALL, "seeds": 1})
    assert again == records


def test_the_same_run_gives_the_same_facts(tmp_path):
    runs = [clbench.run(methods="naive", out=tmp_path / name, **SMALL) for name in "ab"]
    assert [r.facts() for r in runs[0]] == [r.facts() for r in runs[1]]


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.toml").write_text('methods = ["lora"]\n')
    records = clbench.run("~/mine.toml", out="~/run", **{**SMALL, "seeds": 1})
    assert clbench.load("~/run") == clbench.load(tmp_path / "run") == records
    assert isinstance(clbench.load_model("~/run", task=0), clbench.Network) and not (tmp_path / "~").exists()


def test_a_mistyped_setting_is_named(tmp_path):
    with pytest.raises(SpecError, match="no setting 'sedes'; did you mean 'seeds'"):
        clbench.run(methods="naive", sedes=3, out=tmp_path)


def test_corrupt_files_are_warned_of(tmp_path):
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "bad.json").write_text("{")
    with pytest.warns(UserWarning, match="bad.json is left alone"):
        clbench.run(methods="naive", out=tmp_path, **{**SMALL, "seeds": 1})


def test_the_call_is_written_as_it_stood(tmp_path):
    settings = {"methods": "lora,ewc", "seeds": 3, "out": None}
    assert format_call(None, settings) == "clbench.run(methods='lora,ewc', seeds=3)"
    assert format_call(tmp_path / "a.toml", {}) == f"clbench.run('{tmp_path}/a.toml')"


def test_loggers_are_named_as_on_the_command_line_or_in_any_collection(tmp_path, monkeypatch):
    plugin = SimpleNamespace(clbench_trackers=hookimpl(lambda: [
        TrackerInfo(name, lambda *_, name=name: SimpleNamespace(log=lambda _: named.append(name)), "")
        for name in ("one", "two")]))
    monkeypatch.setattr(api, "discover", lambda files: discover([plugin]))
    for log, written in (("one", ["one"]), ("one,two", ["one", "two"]), (["two"], ["two"]),
                         (("two", "one"), ("two", "one")), (iter(["two", "one"]), ["two", "one"])):
        named, folder = [], tmp_path / type(log).__name__ / str(written)
        record, = clbench.run(methods="naive", out=folder, log=log, **{**SMALL, "seeds": 1})
        assert named == [*written] and f", log={written}, " in record.provenance.command


def test_progress_is_shown_where_somebody_looks_on(monkeypatch, tmp_path, capsys):
    monkeypatch.delattr(sys, "ps1", raising=False)
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: None))
    assert not api.notebook() and not api.is_interactive()
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    assert not api.notebook() and api.is_interactive()
    clbench.run(methods="naive", out=tmp_path, **{**SMALL, "seeds": 1})
    out, err = capsys.readouterr()
    assert not out and "[1/1] naive seed 0: ACC" in err
    clbench.run(methods="naive", out=tmp_path, progress=False, **SMALL)
    assert capsys.readouterr() == ("", "")
    monkeypatch.delattr(sys, "ps1")
    shell = SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    assert api.notebook() and api.is_interactive()
    clbench.run(methods="naive", out=tmp_path, **{**SMALL, "seeds": [2]})
    out, err = capsys.readouterr()
    assert not err and "[1/1] naive seed 2: ACC" in out
