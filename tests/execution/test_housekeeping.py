"""Run folders at a glance, and what nothing refers to any more."""

import io
import os
from pathlib import Path

import pytest
from helpers.records import make_record

from clbench import cli
from clbench.core.files import lock
from clbench.core.registry import discover
from clbench.data import stream_cache
from clbench.execution.housekeeping import garbage, size_of, survey
from clbench.results.store import Store, run_folders


@pytest.fixture
def run(tmp_path: Path) -> Store:
    """Return a run folder with two records, of which one failed."""
    store = Store(tmp_path / "runs" / "deep" / "mine")
    store.write(make_record("ewc", 0))
    store.write(make_record("er", 1).model_copy(update={"status": "failed"}))
    return store


def fill(folder: Path, size: int) -> Path:
    folder.mkdir(parents=True)
    (folder / "file").write_bytes(b"x" * size)
    return folder


def test_a_run_folder_is_told_in_a_line(run, capsys):
    fill(run.checkpoints / "begun", 5)
    (run.directory / "locks").mkdir()
    held = lock(run.locks / "elsewhere")
    facts = survey(run.directory)
    assert (facts.methods, facts.seeds, facts.resumable, facts.running, facts.unreadable) == (2, 2, 1, 1, 0)
    assert dict(facts.states) == {"done": 1, "failed": 1}
    assert facts.bytes == sum(p.stat().st_size for p in run.directory.rglob("*") if p.is_file())
    assert cli.call(["runs", str(run.directory.parents[1])]) == 0
    held.release()
    out = capsys.readouterr().out
    assert "runs/deep/mine" in out and "1 done, 1 failed, 1 running, 1 interrupted" in out


def test_only_what_nothing_refers_to_is_removed(run, tmp_path, capsys):
    done, failed = make_record("ewc", 0).key, make_record("er", 1).key
    gone = [fill(run.checkpoints / done, 10), fill(run.artifacts / "nobody", 20)]
    os.utime(run.checkpoints / done / "file", (0, 0))
    kept = [fill(run.checkpoints / failed, 1), fill(run.artifacts / done, 1), fill(run.artifacts / failed, 1),
            fill(run.checkpoints / "begun", 1), fill(run.artifacts / "begun", 1)]
    streams = tmp_path / "data" / "streams"
    streams.mkdir(parents=True)
    trial = make_record("ewc", 0).trial
    used = streams / f"{stream_cache.key_of(trial.benchmark, trial.seed, discover())}.safetensors"
    for path in (used, streams / "old.safetensors", streams / "index.json"):
        path.write_bytes(b"x" * 30)
    folders = run_folders([tmp_path / "runs"])
    assert folders == [run.directory]
    found = garbage(folders, tmp_path / "data", discover())
    assert {one.path: one.bytes for one in found} == {gone[0]: 10, gone[1]: 20, streams / "old.safetensors": 30}
    command = ["gc", str(tmp_path / "runs"), "--data", str(tmp_path / "data")]
    assert cli.call([*command, "--dry-run"]) == 0 and all(path.exists() for path in gone)
    assert "60 B could be freed" in capsys.readouterr().out
    assert cli.call([*command, "--yes"]) == 0
    assert "freed 60 B" in capsys.readouterr().out
    assert not any(path.exists() for path in (*gone, streams / "old.safetensors"))
    assert all(path.exists() for path in (*kept, used, streams / "index.json")) and len(run.read()[0]) == 2
    assert cli.call([*command, "--yes"]) == 0 and capsys.readouterr().out == "nothing to remove\n"


def test_what_is_being_run_is_left_alone(run, tmp_path):
    key = make_record("ewc", 0).key
    fill(run.checkpoints / key, 10)
    os.utime(run.checkpoints / key / "file", (0, 0))
    held = lock(run.locks / key)
    assert garbage([run.directory], tmp_path, discover()) == []
    held.release()


def test_the_checkpoint_of_a_trial_that_is_trained_again_is_left_alone(run, tmp_path):
    key = make_record("ewc", 0).key
    fill(run.checkpoints / key, 10)
    os.utime(run.path(key), (0, 0))
    assert garbage([run.directory], tmp_path, discover()) == []
    run.write(make_record("ewc", 0))
    os.utime(run.checkpoints / key / "file", (0, 0))
    assert [unused.path for unused in garbage([run.directory], tmp_path, discover())] == [run.checkpoints / key]


def test_a_file_that_disappears_has_no_size(tmp_path, monkeypatch):
    fill(tmp_path / "run", 5)
    monkeypatch.setattr(Path, "rglob", lambda folder, _: [folder / "file", folder / ".gone.tmp"])
    assert size_of(tmp_path / "run") == 5 and size_of(tmp_path / "gone") == 0


def test_no_stream_is_removed_while_a_trial_without_a_record_runs(run, tmp_path):
    fill(tmp_path / "streams" / "old.safetensors", 5)
    held = lock(run.locks / "begun")
    assert garbage([run.directory], tmp_path, discover()) == []
    held.release()
    assert [one.path.name for one in garbage([run.directory], tmp_path, discover())] == ["old.safetensors"]


def test_without_a_yes_nothing_is_removed(run, tmp_path, monkeypatch):
    gone = fill(run.artifacts / "nobody", 20)
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert cli.call(["gc", str(run.directory), "--data", str(tmp_path)]) == 130
    assert gone.exists()


def test_a_folder_that_is_not_there_is_one_line(capsys):
    assert cli.call(["runs", "nowhere"]) == 2
    assert capsys.readouterr().err == "Error: there is no folder nowhere: check the path\n"
