import datetime
import errno
import os
import queue
import subprocess
import sys
import types

import pytest
import torch
from helpers.hostile import install_hostile
from helpers.records import make_record

from clbench.core.errors import PluginError, SpecError, StoreError
from clbench.core.hookspecs import StrategyInfo, hookimpl
from clbench.core.registry import Registry, discover
from clbench.execution import run
from clbench.execution.workers.plan import Listener, PreflightChecks, TrialQueue, WorkerPlan
from clbench.execution.workers.pool import Pool, WorkerError, WorkerHandle
from clbench.execution.workers.process import WORKER, Process, Worker
from clbench.execution.workers.protocol import Finished, Prepared, Refused, Run, Start, record_failure
from clbench.experiment.execution_settings import ExecutionSettings
from clbench.experiment.overrides import merge
from clbench.experiment.plan import plan
from clbench.experiment.search import Searched
from clbench.experiment.spec import build
from clbench.experiment.trial import PlannedTrial
from clbench.results.records import Failure
from clbench.strategy.base import Strategy


class Log(Listener):
    def __init__(self):
        self.events = []

    def ready(self, device, workers, threads, nodes=0, again=False):
        self.events.append(("ready", device, workers, threads))

    def note(self, text):
        self.events.append(("note", text))

    def started(self, planned):
        self.events.append(("started", planned.label))

    def progress(self, event):
        self.events.append(("progress", event.task, event.tasks, event.score))

    def finished(self, record):
        self.events.append(("finished", record.label))

    def named(self, name):
        return [e[1:] for e in self.events if e[0] == name]


@pytest.fixture(scope="module")
def plugins(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    install_hostile(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        patch.setenv("PYTHONPATH", str(folder))
        patch.setenv("OMP_NUM_THREADS", "1")
        yield discover()


def execute(registry, out, methods, workers, **settings):
    spec = build(merge({"seeds": 1, "device": "cpu"}, {"methods": methods, "iterations": 2, "workers": workers,
                                                       "threads": 1, **settings}))
    log = Log()
    records = run.execute(run.prepare(spec, registry, out), log, command="the command")
    return {r.label: r for r in records}, log


@pytest.fixture(scope="module")
def misbehaved(plugins, tmp_path_factory):
    return execute(plugins, tmp_path_factory.mktemp("run"), "boom,nan,die,chatty,unbuildable,naive", workers=1)


@pytest.mark.slow
def test_one_failing_trial_stops_no_other(misbehaved):
    records, log = misbehaved
    assert {label: r.status for label, r in records.items()} == {
        "boom": "failed", "nan": "diverged", "die": "failed", "chatty": "done", "unbuildable": "failed",
        "naive": "done"}
    assert [label for label, in log.named("finished")] == ["boom", "nan", "die", "chatty", "unbuildable", "naive"]


@pytest.mark.slow
def test_an_exception_is_kept_with_its_traceback(misbehaved):
    failure = misbehaved[0]["boom"].failure
    assert (failure.type, failure.message) == ("ValueError", "boom on purpose")
    assert "hostile_strategies.py" in failure.traceback
    assert len(misbehaved[0]["boom"].R) == 2
    assert "TypeError: not to be built" in misbehaved[0]["unbuildable"].failure.traceback


@pytest.mark.slow
def test_a_killed_worker_costs_its_trial_and_is_replaced(misbehaved):
    record = misbehaved[0]["die"]
    assert record.failure.message == ("the worker process was killed by SIGKILL (probably out of memory; fewer "
                                      "--workers need less), in 2 tries")
    assert "last words" in record.failure.traceback
    assert record.provenance.plugin == "hostile 1.0"
    assert record.provenance.command == "the command"


@pytest.mark.slow
def test_progress_tells_of_every_task(misbehaved):
    records, log = misbehaved
    last = log.events.index(("started", "naive"))
    told = [e for e in log.events[last:] if e[0] == "progress"]
    assert [e[1:3] for e in told] == [(task, 5) for task in range(6)]
    assert told[0][3] is None
    assert told[-1][3] == pytest.approx(sum(records["naive"].R[-1]) / 5)
    assert log.named("ready") == [("cpu", 1, 1)]


@pytest.mark.slow
def test_this_process_gives_the_same_records_as_a_worker(misbehaved, plugins, tmp_path):
    records, log = execute(plugins, tmp_path, "boom,naive", workers=0)
    assert records["naive"].facts() == misbehaved[0]["naive"].facts()
    assert records["boom"].failure.message == "boom on purpose"
    assert log.named("ready") == [("cpu", 0, 1)]
    assert [e[1] for e in log.events if e[0] in ("started", "finished")] == ["boom", "boom", "naive", "naive"]


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.slow
def test_bad_input_that_shows_late_stops_before_any_trial(plugins, tmp_path, workers):
    with pytest.raises(SpecError, match="rank"):
        execute(plugins, tmp_path, "naive,lora:rank=5000", workers)
    assert not (tmp_path / "records").exists()


class Silent(WorkerHandle):
    send = end = exit_reason = lambda self, *_: None


def start(folder, alone=None):
    return Start(settings=ExecutionSettings(data=folder), device="auto", command="", threads=2, alone=alone)


def pool_of(folder, log):
    return Pool(WorkerPlan(start(folder), workers=2, shrink=True, registry=Registry()), log, Silent)


@pytest.mark.slow
def test_how_long_trials_took_is_not_read_from_the_clock_on_the_wall(plugins, tmp_path):
    todo, pool = plan(build({"methods": "naive", "seeds": 1}), plugins), pool_of(tmp_path, Log())
    pool.waiting, link = TrialQueue(todo), Silent(pool.inbox)
    link.ask(Run(group=todo))
    link.since -= datetime.timedelta(days=1)
    pool.handle_message(link, Finished(records=[]))
    assert 0 <= max(pool.waiting.seconds.values()) < 3600


@pytest.mark.parametrize(("device", "alone", "threads"), [("cpu", 5, 2), ("meta", 5, 5), ("meta", None, 2)])
@pytest.mark.slow
def test_the_worker_that_stays_alone_on_an_accelerator_takes_all_cores(monkeypatch, tmp_path, device, alone, threads):
    said, given = [], torch.get_num_threads()
    monkeypatch.setattr("clbench.execution.trial_runner.pick_device", lambda _: torch.device(device))
    try:
        worker = Worker(start(tmp_path, alone), said.append)
        assert said[0].provenance.threads == torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(given)

    log = Log()
    pool = pool_of(tmp_path, log)
    pool.links = [Silent(pool.inbox), Silent(pool.inbox)]
    pool.handle_message(pool.links[1], said[0])
    assert log.named("ready") == [(str(worker.runner.device), 2 if device == "cpu" else 1, threads)]


class Fussy(Strategy):
    def __init__(self, model, stream_info, options):
        super().__init__(model, stream_info, options)
        if torch.rand(1, generator=stream_info.generator) < 0.5:  # seeds 0 and 1
            raise ValueError("cannot start with this draw")


@hookimpl
def clbench_strategies():
    return [StrategyInfo("fussy", Fussy, "")]


def test_a_trial_that_cannot_be_built_does_not_end_the_others_of_its_stack(tmp_path):
    plugin, said = types.ModuleType("fussy_plugin"), []
    plugin.clbench_strategies = clbench_strategies
    registry = discover([plugin])
    worker = Worker(Start(settings=ExecutionSettings(data=tmp_path), device="cpu", command="", threads=None),
                    said.append, registry)
    worker.run(plan(build({"methods": "fussy", "seeds": 3, "recipe": {"iterations": 1}}), registry))
    records = said[-1].records
    assert [(r.trial.seed, r.status) for r in records] == [(0, "failed"), (1, "failed"), (2, "done")]
    assert [r.failure and r.failure.message for r in records] == ["cannot start with this draw"] * 2 + [None]
    assert records[2].notes == ["ran alone: the stack of 3 trials failed with ValueError: cannot start with this draw"]


@pytest.mark.slow
def test_what_is_prepared_is_one_trial_of_each_setting_and_method(plugins):
    planned = plan(build({"methods": "naive,ewc", "scenario": "task,class"}), plugins)
    checks = PreflightChecks(planned, Listener())
    assert [(p.trial.scenario, p.label, p.trial.seed) for p in iter(checks.next, None)] == [
        ("task", "naive", 0), ("task", "ewc", 0), ("class", "naive", 0), ("class", "ewc", 0)]


@pytest.mark.slow
def test_all_refusals_are_told_at_once(plugins):
    checks = PreflightChecks(plan(build({"methods": "naive,ewc"}), plugins), Listener())
    for problem in ("one", "two"):
        checks.refused(checks.next(), SpecError(problem))
    with pytest.raises(SpecError, match=r"^one\ntwo$"):
        checks.next()


@pytest.mark.slow
def test_a_worker_ends_when_nobody_listens():
    worker = subprocess.Popen([sys.executable, "-m", "clbench.execution.workers.process"], stdin=subprocess.PIPE)
    worker.stdin.close()
    assert worker.wait(timeout=20) == 0


def test_a_worker_that_the_system_has_no_room_for_is_one_line(monkeypatch):
    def refuse(*args, **options):
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(subprocess, "Popen", refuse)
    with pytest.raises(WorkerError, match=r"^a worker process cannot be started \(Resource temporarily unavailable\): "
                                          r"use fewer --workers, or --workers 0 for none$"):
        Process(Start(settings=ExecutionSettings(), device="cpu", command="", threads=1), queue.SimpleQueue())


@pytest.mark.slow
def test_how_a_process_ended_is_put_into_words():
    process = Process.__new__(Process)
    process.popen = subprocess.Popen([sys.executable, "-c", "import os; os.abort()"], stderr=subprocess.DEVNULL)
    process.popen.wait()
    assert process.exit_reason() == "the worker process was killed by SIGABRT"
    process.popen.returncode = -40  # a real-time signal, which has no name
    assert process.exit_reason() == "the worker process was killed by signal 40"


def test_a_plugin_that_exits_fails_in_its_trial():
    worker, sent = Worker.__new__(Worker), []
    worker.send, worker.runner = sent.append, types.SimpleNamespace(prepare=lambda *_: sys.exit(3), registry=None)
    worker.prepare(types.SimpleNamespace(trial=None, label=""))
    assert sent == [Prepared(notes=[])]


def test_what_a_worker_refuses_is_raised_again():
    error = Refused(kind="OptionError", message="wrong").error()
    assert type(error) is SpecError and str(error) == "wrong"
    assert type(Refused(kind="StoreError", message="wrong").error()) is StoreError


def test_a_method_that_cannot_be_declared_fails_in_its_trial():
    def broken(*_):
        raise PluginError("no declaration")

    record = make_record("ewc")
    worker = Worker.__new__(Worker)
    registry = types.SimpleNamespace(origins={})
    worker.runner, worker.provenance = types.SimpleNamespace(run_stack=broken, registry=registry), record.provenance
    made, = worker._records([PlannedTrial(record.trial, "ewc", False)])
    assert (made.failure.message, made.provenance.plugin) == ("no declaration", "")


def test_messages_of_workers_can_be_sent_if_names_in_them_are_not_utf8():
    assert r"\\udce8" in Refused(kind="DataError", message="\udce8").line()
    assert r"\\udce8" in Prepared(notes=["\udce8"]).line()


def test_the_record_of_a_dead_worker_has_the_search_of_its_options():
    record = make_record("ewc")
    searched = Searched(candidates=3, validation=0.2, seeds=(1000,))
    planned = PlannedTrial(record.trial, "ewc", False, searched=searched)
    failure = Failure(type="WorkerError", message="died")
    assert record_failure(planned, record.provenance, record.provenance.started, failure).searched == searched


def test_a_worker_does_not_import_modules_of_the_user_instead_of_pythons(tmp_path):
    (tmp_path / "random.py").write_text("raise SystemExit('not the module of Python')")
    (tmp_path / "mine.py").write_text("")
    code = WORKER.replace("main()", "import mine; print(mine.__file__)")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == (f"{tmp_path / 'mine.py'}\n", "")
