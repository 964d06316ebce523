import math

import pytest
from helpers.records import make_record

from clbench.core.registry import discover
from clbench.execution.workers import protocol
from clbench.execution.workers.plan import ACCELERATOR_STACK, TrialQueue
from clbench.execution.workers.protocol import Finished, Run, Running, Start
from clbench.execution.workers.ray_cluster import Cluster
from clbench.experiment.execution_settings import ExecutionSettings
from clbench.experiment.plan import plan
from clbench.experiment.spec import build
from clbench.experiment.trial import PlannedTrial, Progress


@pytest.mark.parametrize(("stack", "device", "size"), [(None, "cpu", 1), (None, "cuda:0", 5), (2, "cpu", 2),
                                                       (3, "cuda:0", 3)])
def test_a_stack_is_seeds_of_one_method_in_one_setting(stack, device, size):
    planned = plan(build({"methods": "naive,ewc", "seeds": 5, "scenario": "task,class"}), discover())
    waiting, groups = TrialQueue(planned), []
    while waiting.left:
        groups.append(waiting.take(stack, device))
    assert max(map(len, groups)) == size <= ACCELERATOR_STACK
    assert sorted(p.trial.key for g in groups for p in g) == sorted(p.trial.key for p in planned)
    for group in groups:
        assert len({(p.trial.environment, p.label) for p in group}) == 1
        assert [p.trial.seed for p in group] == sorted({p.trial.seed for p in group})


def test_methods_that_differ_in_numbers_of_their_loss_are_one_stack():
    methods = [{"name": "ewc", "options": {"strength": [1.0, 10.0], "fisher_samples": [None, 20]}}, "naive"]
    planned = plan(build({"methods": methods, "seeds": 2, "scenario": "task,class"}), discover())
    waiting, groups = TrialQueue(planned), []
    while waiting.left:
        groups.append(waiting.take(3, "cuda"))
        waiting.took(groups[-1], 1.0)
    assert sorted(p.trial.key for g in groups for p in g) == sorted(p.trial.key for p in planned)
    rows = [[(p.trial.method.options.get("fisher_samples"), p.trial.method.options.get("strength"), p.trial.seed)
             for p in group] for group in groups[:len(groups) // 2]]
    assert rows == [[(None, 1.0, 0), (None, 1.0, 1), (None, 10.0, 0)], [(20, 1.0, 0), (20, 1.0, 1), (20, 10.0, 0)],
                    [(None, None, 0), (None, None, 1)], [(None, 10.0, 1)], [(20, 10.0, 1)]]


def test_infinite_options_reach_workers_and_come_back():
    record = make_record(options={"most": math.inf})
    asked, answer = Run(group=[PlannedTrial(record.trial, "x", False)]), Finished(records=[record])
    assert protocol.REQUESTS.validate_json(asked.line()) == asked
    assert protocol.EVENTS.validate_json(answer.line()) == answer


@pytest.mark.parametrize("accuracy", [None, 0.1 + 0.2])
def test_progress_comes_from_a_worker_as_it_was_sent(accuracy):
    said = Running(progress=Progress("key", task=1, tasks=3, score=accuracy))
    assert protocol.EVENTS.validate_json(said.line()) == said


def test_settings_reach_workers_as_the_user_made_them(tmp_path):
    settings = ExecutionSettings(data=tmp_path, executor="ray", gpus=0.25, compile=True)
    asked = Start(settings=settings, device="cpu", command="", threads=None, plugins=(tmp_path / "a.py",))
    got = protocol.REQUESTS.validate_json(asked.line())
    assert got == asked and got.settings == settings


@pytest.mark.parametrize(("gpus", "rooms"), [
    (1, [1, 4]), (2, [2]), (4, [1]), (0.5, [2, 8]), (0.3, [3, 12]), (0.2, [5, 20]), (0.1, [10, 40]), (0.6, [1, 4])])
def test_a_node_has_room_for_whole_workers_on_each_of_its_gpus(tmp_path, gpus, rooms):
    class Ray:
        def nodes(self):
            return [{"Alive": alive, "Resources": {"CPU": 64.0, "GPU": there}}
                    for alive, there in ((True, 1.0), (True, 4.0), (False, 8.0), (True, 0.0))]

    start = Start(settings=ExecutionSettings(executor="ray", gpus=gpus), device="cuda", command="", threads=1)
    assert Cluster(Ray(), start, tmp_path).nodes() == rooms


def test_long_trials_go_first_once_known_but_settings_stay_together():
    planned = plan(build({"methods": "naive,ewc,er", "seeds": 3, "scenario": "task,class"}), discover())
    waiting, order = TrialQueue(planned), []
    while waiting.left:
        group = waiting.take(None, "cpu")
        waiting.took(group, {"naive": 1.0, "ewc": 9.0, "er": 2.0}[group[0].label])
        order.append((group[0].trial.scenario, group[0].label))
    one = ["naive", "ewc", "er", "ewc", "ewc", "er", "er", "naive", "naive"]
    assert order == [(scenario, label) for scenario in ("task", "class") for label in one]
