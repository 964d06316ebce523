import re
import subprocess

import pytest
from helpers.records import make_record

from clbench.core.registry import discover
from clbench.experiment.trial import Resolved
from clbench.results import provenance
from clbench.results.provenance import code_of, describe_changes, git_commit, machine


@pytest.fixture(autouse=True)
def forgotten():
    known = machine, git_commit
    for function in known:
        function.cache_clear()
    yield
    for function in known:
        function.cache_clear()


@pytest.mark.parametrize(("changed", "dirty"), [
    ("clbench/code.py", True), ("plugins/clbench_mine/code.py", True), ("reports/report.md", False), (None, False)])
def test_a_checkout_is_dirty_where_its_code_changed(tmp_path, monkeypatch, changed, dirty):
    def git(*arguments):
        return subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments], cwd=tmp_path,
                              check=True, capture_output=True, text=True).stdout.strip()

    for name in ("clbench/code.py", "plugins/clbench_mine/code.py", "reports/report.md"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("before")
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "all")
    if changed:
        (tmp_path / changed).write_text("after")
    monkeypatch.setattr(provenance, "PACKAGE", tmp_path / "clbench")
    assert git_commit() == git("rev-parse", "HEAD") + ("+dirty" if dirty else "")


def test_a_checkout_may_have_a_space_in_its_path(tmp_path, monkeypatch):
    checkout = tmp_path / "my repository"
    (checkout / "clbench").mkdir(parents=True)
    git = ["git", "-C", str(checkout), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "all"], check=True)
    monkeypatch.setattr(provenance, "PACKAGE", checkout / "clbench")
    assert re.fullmatch("[0-9a-f]{40}", git_commit() or "")


def test_outside_a_checkout_there_is_no_commit(tmp_path, monkeypatch):
    (tmp_path / "clbench").mkdir()
    monkeypatch.setattr(provenance, "PACKAGE", tmp_path / "clbench")
    assert git_commit() is None


def test_a_machine_without_preloaded_libraries(monkeypatch):
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    assert "preloaded" not in machine()


@pytest.mark.parametrize("value", ["/opt/lib/libtcmalloc.so.4:/opt/lib/libiomp5.so", " libtcmalloc.so.4  libiomp5.so"])
def test_preloaded_libraries_are_named(monkeypatch, value):
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    bare = machine()
    machine.cache_clear()
    monkeypatch.setenv("LD_PRELOAD", value)
    assert machine() == f"{bare}, libtcmalloc.so.4, libiomp5.so preloaded"


def test_an_edited_configuration_of_a_text_model_makes_results_stale(tmp_path):
    config, pooling = tmp_path / "config.json", tmp_path / "1_Pooling" / "config.json"
    pooling.parent.mkdir()
    config.write_text("{}")
    pooling.write_text("{}")
    record, registry = make_record("naive"), discover()
    trial = record.trial.model_copy(update={"model": Resolved(name=f"hf:{tmp_path}")})

    def made_with(code):
        return record.model_copy(update={"provenance": record.provenance.model_copy(update={"code": code})})

    before = code_of(trial, registry)
    assert describe_changes(made_with(before), code_of(trial, registry)) == []
    pooling.write_text('{"pooling_mode_cls_token": true}')
    after = code_of(trial, registry)
    assert describe_changes(made_with(before), after) == [
        "the model's configuration (config.json, 1_Pooling/config.json)"]
    older = {part: code for part, code in before.items() if part != "configuration"}
    assert describe_changes(made_with(older), after) == []
    config.unlink()
    assert "configuration" not in code_of(trial, registry)
