import pytest
from helpers.hostile import install_hostile

from clbench.core.registry import discover
from clbench.execution import run as experiment
from clbench.execution.workers.plan import Listener
from clbench.experiment.overrides import merge
from clbench.experiment.spec import build


class Notes(Listener):
    def __init__(self):
        self.notes = []

    def note(self, text):
        if "optimizer steps a task" not in text:
            self.notes.append(text)


@pytest.fixture
def run(tmp_path, monkeypatch):
    install_hostile(tmp_path / "site")
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    registry = discover()

    def execute(methods, seeds=1, **how):
        spec = build(merge({"seeds": seeds, "device": "cpu"}, {"methods": methods, "iterations": 2, "workers": 1,
                                                               "threads": 1, **how}))
        listener = Notes()
        records = experiment.execute(experiment.prepare(spec, registry, tmp_path / "run"), listener, command="")
        return records, listener.notes

    return execute


@pytest.mark.slow
def test_the_trial_of_a_worker_that_died_is_tried_again(run):
    records, notes = run("once")
    assert [r.status for r in records] == ["done"]
    assert notes == ["once seed 0: the worker process was killed by SIGKILL (probably out of memory; fewer --workers "
                     "need less). clbench tries again"]


@pytest.mark.slow
def test_without_retries_it_has_failed(run):
    records, notes = run("once", retries=0)
    assert [(r.status, r.failure.type, r.failure.message) for r in records] == [
        ("failed", "WorkerDied", "the worker process was killed by SIGKILL (probably out of memory; fewer --workers "
                                 "need less)")]
    assert notes == []


@pytest.mark.slow
def test_a_stack_whose_worker_died_is_halved(run):
    records, notes = run("hungry", seeds=2, stack=2)
    assert [(r.trial.seed, r.status) for r in records] == [(0, "done"), (1, "done")]
    assert notes == ["hungry seed 0, 1: the worker process was killed by SIGKILL (probably out of memory; fewer "
                     "--workers need less). clbench tries again with half as many trials at once"]
