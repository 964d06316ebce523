import sys
import threading
import types

import pytest
from helpers.records import make_record

from clbench.core.errors import SpecError, StoreError
from clbench.core.files import lock
from clbench.core.registry import discover
from clbench.execution import run
from clbench.execution.workers.plan import Listener
from clbench.experiment.execution_settings import ExecutionSettings
from clbench.experiment.plan import plan
from clbench.experiment.spec import build
from clbench.results import looks
from clbench.results.records import Failure
from clbench.results.store import Store


def record_of(planned, **changes):
    """Return a record whose trial is the planned one."""
    return make_record(planned.trial.method.name, tasks=5).model_copy(
        update={"trial": planned.trial, "key": planned.trial.key, "label": planned.label, **changes})


@pytest.fixture(scope="module")
def registry():
    return discover()


@pytest.fixture
def spec():
    return build({"methods": "naive,ewc", "seeds": 2, "device": "cpu"})


def test_only_what_is_missing_or_failed_is_run(registry, spec, tmp_path):
    planned = plan(spec, registry)
    for item, status in zip(planned[:3], ("done", "failed", "diverged"), strict=True):
        Store(tmp_path).write(record_of(item, status=status))
    ready = run.prepare(spec, registry, tmp_path)
    assert ready.missing == [planned[1], planned[3]]


def test_results_come_by_method_and_the_study_has_the_rest_behind_them(registry, spec, tmp_path):
    other = make_record("lora")
    for item in plan(spec, registry):
        Store(tmp_path).write(record_of(item))
    Store(tmp_path).write(other)
    ready = run.prepare(spec, registry, tmp_path)
    assert [(r.label, r.trial.seed) for r in ready.results()] == [("naive", 0), ("naive", 1), ("ewc", 0), ("ewc", 1)]
    assert ready.study() == [*ready.results(), other]


def test_half_a_line_of_an_interrupted_process_does_not_lock_the_folder(tmp_path):
    records = [make_record("ewc", seed) for seed in (0, 1)]
    looks.note(tmp_path, records[:1])
    log = tmp_path / looks.FILE
    whole = log.read_text()
    log.write_text(whole + whole[:-20])
    assert len(looks.read(tmp_path)) == 1
    looks.note(tmp_path, records)
    assert [line["seeds"] for line in looks.read(tmp_path)] == [{"ewc": [0]}, {"ewc": [0, 1]}]
    log.write_text("no log\n")
    with pytest.raises(StoreError, match="is no log of reports"):
        looks.read(tmp_path)


def test_the_report_has_the_records_that_other_jobs_wrote_meanwhile(registry, spec, tmp_path):
    jobs = [run.prepare(spec, registry, tmp_path, shard=f"{i}/2") for i in (1, 2)]
    for job in jobs:
        for planned in job.planned:
            run.RecordKeeper(job, Listener()).finished(record_of(planned))
    for job in jobs:
        run.write_report(job)
        assert looks.read(tmp_path)[-1]["seeds"] == {"ewc": [0, 1], "naive": [0, 1]}
        assert "| seeds | 0, 1 |" in (tmp_path / "report.md").read_text()
    assert len(looks.read(tmp_path)) == 1


def failing(error, after=(), keep=0):
    """Return an executor that stores the first `keep` trials, runs `after`, and then fails."""
    def execute(todo, plan, listener):
        for planned in todo[:keep]:
            plan.claim(planned)
            listener.finished(record_of(planned))
        for action in after:
            action()
        raise error
    return types.SimpleNamespace(execute=execute)


def test_a_failed_start_removes_the_log_of_its_own_new_folder_only(registry, spec, tmp_path, monkeypatch):
    def start(folder, after=(), keep=0):
        experiment = run.prepare(spec, registry, folder)
        monkeypatch.setitem(sys.modules, run.EXECUTORS["local"], failing(StoreError("the disk is full"), after, keep))
        with pytest.raises(StoreError, match="the disk is full"):
            run.execute(experiment, Listener(), command="")

    start(tmp_path / "new")
    assert not (tmp_path / "new").exists()
    start(tmp_path / "begun", keep=1)
    assert [line["seeds"] for line in looks.read(tmp_path / "begun")] == [[0, 1]]
    held = []
    start(tmp_path / "shared", [lambda: held.append(lock(tmp_path / "shared" / "locks" / "other.lock"))])
    held[0].release()
    assert len(looks.read(tmp_path / "shared")) == 1
    start(tmp_path / "shared")  # another process may have logged these seeds
    assert len(looks.read(tmp_path / "shared")) == 1


@pytest.mark.parametrize("workers", [0, 1])
def test_a_path_that_no_worker_can_be_told_is_refused(registry, tmp_path, workers):
    data = tmp_path / b"th\xe8se".decode("utf-8", "surrogateescape")
    spec = build({"methods": "naive", "seeds": 1, "device": "cpu", "execution": {"data": data, "workers": workers}})
    with pytest.raises(SpecError, match=r"th\\xe8se is not UTF-8, as messages to workers must be: rename it"):
        run.execute(run.prepare(spec, registry, tmp_path / "run"), Listener(), command="")
    assert not (tmp_path / "run").exists()


def test_a_trial_that_stands_in_two_rows_is_refused(registry, tmp_path):
    methods = ["naive", {"name": "ewc", "label": "a"}, {"name": "ewc", "options": {"gamma": 1.0}, "label": "b"}]
    with pytest.raises(SpecError, match=r"^methods 'a' and 'b' have the same options and so the same results: leave "
                                        r"one of them out$"):
        run.prepare(build({"methods": methods}), registry, tmp_path)
    apart = [{**method, "scenario": scenario} for method, scenario in zip(methods[1:], ("task", "class"), strict=True)]
    assert len(run.prepare(build({"methods": apart, "scenario": "task,class"}), registry, tmp_path).planned) == 6


def test_a_finished_trial_takes_the_label_it_has_now(registry, tmp_path):
    first, second = (build({"methods": [{"name": "ewc", "label": label}], "seeds": 1}) for label in ("old", "new"))
    Store(tmp_path).write(record_of(plan(first, registry)[0]))
    ready = run.prepare(second, registry, tmp_path)
    records = run.execute(ready, Listener(), command="")
    assert [r.label for r in records] == ["new"]
    assert Store(tmp_path).read()[0] == records == [record_of(ready.planned[0])]


def test_a_record_that_another_process_wrote_meanwhile_is_relabeled_as_it_stands(registry, tmp_path):
    store, spec = Store(tmp_path), build({"methods": [{"name": "ewc", "label": "mine"}], "seeds": 2})
    read, unread = (record_of(p, label="theirs") for p in plan(spec, registry))
    store.write(read)
    ready = run.prepare(spec, registry, tmp_path)
    for record in (read, unread):
        store.write(record.model_copy(update={"notes": ["written meanwhile"]}))
    keeper, busy = run.RecordKeeper(ready, Listener()), lock(store.locks / f"{read.key}.lock")
    threading.Timer(0.1, busy.release).start()
    keeper.relabel()
    assert not keeper.claims.take(ready.planned[1])
    assert [(r.label, r.notes) for r in ready.results()] == [("mine", ["written meanwhile"])] * 2
    assert sorted(store.read()[0], key=lambda r: r.trial.seed) == ready.results()
    assert not store.locks.exists()


@pytest.mark.parametrize(("failure", "kept"), [(None, False), ("ValueError", False), ("WorkerDied", True),
                                               ("OutOfMemoryError", True), ("WriteError", True),
                                               ("StoreError", False)])
def test_a_trial_that_the_next_run_may_finish_keeps_its_checkpoint(registry, spec, tmp_path, failure, kept):
    ready = run.prepare(spec, registry, tmp_path)
    record = record_of(ready.planned[0]) if failure is None else record_of(
        ready.planned[0], status="failed", failure=Failure(type=failure, message=""))
    folder = ready.store.checkpoints / record.key
    folder.mkdir(parents=True)
    run.RecordKeeper(ready, Listener()).finished(record)
    assert folder.exists() is kept


def test_a_corrupt_file_in_the_way_stops_the_run_and_another_does_not(registry, spec, tmp_path):
    records = tmp_path / "records"
    records.mkdir()
    (records / "other.json").write_text("{")
    assert [p.path.name for p in run.prepare(spec, registry, tmp_path).problems] == ["other.json"]
    wanted = records / f"{plan(spec, registry)[0].trial.key}.json"
    wanted.write_text("{")
    with pytest.raises(StoreError, match=f"{wanted.name} is left alone.*move the file away and run again"):
        run.prepare(spec, registry, tmp_path)
    assert wanted.read_text() == "{"


def test_threads_and_workers_do_not_depend_on_what_is_done_already(registry, spec, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "usable_cores", lambda: 8)
    ready = run.prepare(spec, registry, tmp_path)

    def shares(**settings):
        ready.spec = spec.model_copy(update={"execution": ExecutionSettings(**settings)})
        plan = run.plan_workers(ready, "")
        return plan.workers, plan.start.threads, plan.start.alone, plan.shrink

    assert shares() == (4, 2, 8, True)
    ready.records = {p.trial.key: record_of(p) for p in ready.planned[:3]}
    assert shares() == (4, 2, 8, True)
    assert shares(workers=3) == (3, 2, None, False)
    assert shares(workers=0) == (0, None, None, False)
    assert shares(threads=1) == (4, 1, None, True)
    assert shares(executor="ray") == (4, 1, None, True)
    assert shares(executor="ray", threads=3, workers=9) == (9, 3, None, False)
    spec = spec.model_copy(update={"device": "cuda"})
    assert shares() == (1, 8, 8, True)


def test_the_default_run_folder_is_named_after_the_file_or_the_benchmark(tmp_path):
    spec = build({"methods": "naive", "benchmark": "my.package:stream"})
    assert str(run.default_out(spec, None)) == "runs/my.package-stream"
    assert str(run.default_out(spec, tmp_path / "mine.toml")) == "runs/mine"
