import contextlib
import errno
import json
import math
import os
import shutil
import time

import pytest
from helpers.records import make_record
from pydantic import ValidationError

from clbench.core.errors import StoreError
from clbench.results.records import Record
from clbench.results.store import Store, read_record


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "run")


def test_an_impossible_task_inference_is_named():
    record = make_record("lora", task_inference=[[0.5] * 3] * 4).model_dump(by_alias=True)
    for values, message in ((1.5, "task_inference is not within its bounds"), (0.5, None)):
        record["task_inference"] = [[values] * 3] * 4
        with pytest.raises(ValidationError, match=message) if message else contextlib.nullcontext():
            Record.model_validate(record)


def test_what_is_written_is_read_again(store):
    records = [make_record(seed=s) for s in range(3)]
    for record in records:
        store.write(record)
    found, problems = store.read()
    assert sorted(found, key=lambda r: r.trial.seed) == records
    assert problems == []
    assert store.get(records[1].key) == records[1]
    assert {p.name for p in store.records.iterdir()} == {f"{r.key}.json" for r in records}


def test_infinite_options_are_kept(store):
    records = [make_record(options={"least": -math.inf, "deep": {"most": most}}) for most in (math.inf, 2.0, None)]
    for record in records:
        store.write(record)
    assert [store.get(record.key) for record in records] == records
    assert len({record.key for record in records}) == 3


def test_an_absent_folder_is_empty_and_reading_makes_nothing(store):
    assert store.read() == ([], [])
    assert store.get("0" * 16) is None
    assert not store.directory.exists()


def test_a_probe_leaves_the_folder_and_nothing_in_it(store):
    store.check_writable()
    assert list(store.records.iterdir()) == []


def test_what_a_killed_process_left_half_written_is_ignored_and_cleared_when_old(store):
    store.check_writable()
    old, new = store.records / ".abc-1.tmp", store.records / ".abc-2.tmp"
    mark, live = store.directory / ".seen-by-nodes-1", store.directory / ".seen-by-nodes-2"  # that of a long run
    for path, hours in ((old, 2), (new, 0), (mark, 24 * 40), (live, 24 * 5)):
        path.write_text('{"schema": 1, "ke')
        os.utime(path, (time.time() - 3600 * hours,) * 2)
    assert store.read() == ([], [])
    store.check_writable()
    assert [path.exists() for path in (old, new, mark, live)] == [False, True, False, True]


def test_a_folder_that_cannot_be_made_is_one_line_and_leaves_nothing(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match=r"cannot write to .*records: .*; choose another folder with --out"):
        Store(tmp_path / "file" / "run").check_writable()
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_folder_whose_path_is_not_utf_8_is_refused(tmp_path):
    with pytest.raises(StoreError, match=r"is not UTF-8: \S*/th\\xe8se/run; choose another folder with --out"):
        Store(tmp_path / b"th\xe8se".decode("utf-8", "surrogateescape") / "run").check_writable()
    assert list(tmp_path.iterdir()) == []


def test_folders_made_for_a_probe_that_fails_are_removed(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("clbench.results.store.tempfile.NamedTemporaryFile", full)
    with pytest.raises(StoreError, match="the disk is full"):
        Store(tmp_path / "a" / "b").check_writable()
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_keeps_the_old_record_and_no_half_file(store, monkeypatch):
    old = make_record(status="failed")
    store.write(old)

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("clbench.results.store.os.fsync", full)
        with pytest.raises(StoreError, match=r"^the disk is full, so .*run the same command again$"):
            store.write(make_record())
    assert store.read() == ([old], [])
    assert len(list(store.records.iterdir())) == 1


def test_corrupt_and_foreign_files_are_named_and_left_alone(store):
    good, other = make_record(), make_record(seed=1)
    store.write(good)
    contents = {"notes.txt": "mine", "0123.json": '{"schema": 1, "key"', "a" * 16 + ".json": good.model_dump_json(
        by_alias=True), "b" * 16 + ".json": '{"schema": 9}', f"{other.key}.json": ""}
    for name, text in contents.items():
        (store.records / name).write_text(text)
    (store.records / "folder").mkdir()
    records, problems = store.read()
    assert records == [good]
    assert {p.path.name for p in problems} == {*contents, "folder"}
    reasons = {p.path.name: str(p) for p in problems}
    assert f"its name is not that of its trial, {good.key}.json" in reasons["a" * 16 + ".json"]
    assert all("\n" not in reason for reason in reasons.values())
    with pytest.raises(StoreError, match=r"left alone.*move the file away and run again"):
        store.write(other)
    assert {name: (store.records / name).read_text() for name in contents} == contents


def test_a_record_of_a_later_schema_is_a_problem(store):
    path = store.write(make_record())
    path.write_text(path.read_text().replace('"schema": 1', '"schema": 2'))
    assert "schema 2, this clbench reads 1" in read_record(path).reason


def test_a_field_of_a_newer_clbench_is_told_as_such(store):
    path = store.write(make_record())
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 0,\n  "later": 1'))
    assert read_record(path).reason == ("not a record (trial.later: this clbench does not know this field; if a newer "
                                        "clbench wrote the file, update clbench)")


def test_a_time_without_a_zone_is_a_problem_because_it_has_no_place_in_the_order(store):
    edited, other = store.write(make_record()), make_record(seed=1)
    store.write(other)
    started = json.loads(edited.read_text())["provenance"]["started"]
    edited.write_text(edited.read_text().replace(started, "2026-11-30T12:00:00"))
    records, problems = store.read()
    assert records == [other] and "provenance.started" in problems[0].reason


def test_stores_merge_by_copying_files(tmp_path):
    one, two = Store(tmp_path / "one"), Store(tmp_path / "two")
    one.write(make_record(seed=0))
    two.write(make_record(seed=1))
    shutil.copytree(two.records, one.records, dirs_exist_ok=True)
    assert {r.trial.seed for r in one.read()[0]} == {0, 1}
