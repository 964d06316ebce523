import re
import subprocess
import sys

import pytest
from helpers.records import make_record

from clbench.core.errors import SpecError
from clbench.core.hookspecs import TrackerInfo, hookimpl
from clbench.core.options import Options
from clbench.core.pretrained import Preprocessing
from clbench.core.registry import discover
from clbench.execution import run
from clbench.execution.run import RecordKeeper
from clbench.execution.workers.plan import Listener
from clbench.experiment.arrival import Arrival
from clbench.experiment.plan import plan
from clbench.experiment.spec import Recipe, build
from clbench.experiment.trial import Continued, Resolved, Trial, Weights
from clbench.results import tracking
from clbench.results.store import Store

R = [[0.5, 0.4], [0.75, 0.25], [0.25, 1.0]]


class ListOptions(Options):
    start: int = 0


class Tracking:
    """A plugin that brings the trackers `good`, which keeps what it sees, and `bad`, which fails."""

    def __init__(self):
        self.seen = []

    @hookimpl
    def clbench_trackers(self):
        return [TrackerInfo("good", self.good, "keeps them", ListOptions), TrackerInfo("bad", self.bad, "fails")]

    def good(self, options, folder):
        self.made = (options.start, folder)
        return type("Good", (), {"log": lambda _, record: self.seen.append(record)})()

    def bad(self, options, folder):
        return type("Bad", (), {"log": lambda _, record: 1 / 0})()


class Notes(Listener):
    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


def test_a_tracker_sees_each_record_and_a_failing_one_is_reported_once(tmp_path):
    plugin, listener = Tracking(), Notes()
    spec = build({"methods": "naive", "seeds": 1})
    ready = run.prepare(spec, discover([plugin]), tmp_path, "bad,good:start=3")
    assert plugin.made == (3, tmp_path)
    records = [make_record(seed=s) for s in range(2)]
    keeper = RecordKeeper(ready, listener)
    for record in records:
        keeper.finished(record)
    assert plugin.seen == records
    note, = listener.notes
    assert re.fullmatch(r"tracker bad failed: ZeroDivisionError: division by zero \(.*test_tracking.py:\d+.*\)",
                        note)
    assert len(Store(tmp_path).read()[0]) == 2


def test_what_was_done_before_is_shown_too_and_nothing_of_other_experiments(tmp_path):
    plugin = Tracking()
    registry = discover([plugin])
    spec = build({"methods": "naive", "seeds": 1, "device": "cpu"})
    trial = plan(spec, registry)[0].trial
    own = make_record("naive", tasks=5).model_copy(update={"trial": trial, "key": trial.key})
    for record in (own, make_record("lora")):
        Store(tmp_path).write(record)
    run.execute(run.prepare(spec, registry, tmp_path, ["good"]), Listener(), command="")
    assert plugin.seen == [own]


def test_no_tracker_is_made_that_no_run_names(tmp_path):
    plugin = Tracking()
    run.prepare(build({"methods": "naive"}), discover([plugin]), tmp_path)
    assert not hasattr(plugin, "made")


def test_a_tracker_is_named_once(tmp_path):
    with pytest.raises(SpecError, match="--log names good twice; keep one of them"):
        tracking.start("good,good:start=1", discover([Tracking()]), tmp_path)


def test_every_mistake_is_a_line_and_comes_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(SpecError) as caught:
        tracking.start("wandb,mlflow:experimnt=x,tensorbord", discover(), tmp_path)
    assert str(caught.value).splitlines() == [
        "tracker 'wandb' needs wandb, which is not installed: pip install 'clbench[wandb]'",
        "mlflow: no option 'experimnt'; did you mean 'experiment'? (clbench trackers mlflow lists all)",
        "no tracker 'tensorbord'; did you mean 'tensorboard'? (clbench trackers lists all)"]
    assert list(tmp_path.iterdir()) == []


def test_parameters_are_the_trial_flat():
    found = tracking.parameters(make_record("lora", 4, R, options={"rank": 8, "layers": None, "dora": False}))
    assert found | {"method": "lora", "method.rank": 8, "method.layers": "none", "method.dora": False, "seed": 4,
                    "benchmark": "split-mnist-5k", "benchmark.tasks": 2, "scenario": "task", "model": "mlp",
                    "recipe.lr": 1e-3, "recipe.iterations": "none", "weights": "none", "label": "lora"} == found


def test_whatever_defines_a_trial_is_among_its_parameters():
    record = make_record("lora", 4, options={"rank": 8})
    other = {"benchmark": Resolved(name="other"), "scenario": "class", "model": Resolved(name="cnn"),
             "weights": Weights(path="w", sha256="1"), "preprocessing": Preprocessing(mean=(0.5,), std=(0.5,)),
             "recipe": Recipe(lr=1.0), "own_recipe": {"lr": 2.0}, "method": Resolved(name="ewc"), "seed": 5,
             "validation": 0.1, "arrival": Arrival(blur=0.1),
             "continues": Continued(parent="0" * 16, benchmarks=[], tasks=0, outputs=0)}
    assert other.keys() == Trial.model_fields.keys()
    for name, value in other.items():
        changed = record.model_copy(update={"trial": record.trial.model_copy(update={name: value})})
        assert tracking.parameters(changed) != tracking.parameters(record), name
        named = ("scenario", "seed", "validation", "arrival")
        assert (tracking.run_name(changed) != tracking.run_name(record)) == (name in named)
    first, second = (record.model_copy(update={"trial": record.trial.model_copy(
        update={"weights": Weights(path="w", sha256=sha256)})}) for sha256 in ("1", "2"))
    assert tracking.parameters(first) != tracking.parameters(second)


def test_a_group_is_what_differs_in_the_seed_only():
    same = {tracking.group_name(make_record("lora", s, options={"rank": 8})) for s in range(3)}
    others = {tracking.group_name(make_record("lora", options={"rank": 4})),
              tracking.group_name(make_record("lora", options={"rank": 8}, model="cnn"))}
    assert len(same) == 1 and len(same | others) == 3


def test_steps_count_the_tasks_learned():
    first, second, third = tracking.steps(make_record(R=R, kept_bytes={"base": 40, "replay": 2}))
    assert (first.tasks, second.tasks, third.tasks) == (0, 1, 2)
    assert first.values == {"accuracy/task1": 0.5, "accuracy/task2": 0.4, "time/evaluate": 0.1}
    assert third.values == {
        "accuracy/task1": 0.25, "accuracy/task2": 1.0, "accuracy/seen": 0.625, "cost/trainable": 1000,
        "cost/parameters": 1000, "cost/bytes": 42, "time/train": 1.0, "time/consolidate": 0.25, "time/evaluate": 0.1}
    assert second.values["accuracy/seen"] == 0.75
    assert third.seconds == pytest.approx(0.1 + 2 * (1.0 + 0.25 + 0.1))


def test_only_a_whole_matrix_has_final_figures():
    assert tracking.final(make_record(R=R)) == {"ACC": 0.625, "forgetting": 0.5, "BWT": -0.5}
    assert tracking.final(make_record(R=[[0.5], [1.0]])) == {"ACC": 1.0}
    assert tracking.final(make_record(R=R, status="diverged")) == {}


def test_a_diverged_trial_has_costs_of_a_step_without_accuracies():
    record = make_record(R=[*R[:2], R[2]], status="diverged")
    cut = record.model_copy(update={"R": record.R[:1], "costs": record.costs.model_copy(update={"bytes": []})})
    assert [set(s.values) for s in tracking.steps(cut)][1] == {"cost/trainable", "cost/parameters", "time/train",
                                                               "time/consolidate", "time/evaluate"}


def test_two_trainings_of_a_trial_are_two_runs():
    record = make_record()
    later = record.model_copy(update={"provenance": record.provenance.model_copy(
        update={"started": record.provenance.started.replace(second=59)})})
    assert tracking.run_id(record) == f"{record.key}-20260102T030405"
    assert tracking.run_id(later) != tracking.run_id(record)


def test_tensorboard_is_imported_only_when_asked_for_and_torch_never(tmp_path):
    code = ("import sys, pathlib\nfrom clbench.execution import run as experiment\n"
            "from clbench.core.registry import discover\n"
            "from clbench.experiment.spec import build\nregistry, spec = discover(), build({'methods': 'naive'})\n"
            f"for log in ('', 'tensorboard'):\n    experiment.prepare(spec, registry, pathlib.Path({str(tmp_path)!r}),"
            " log)\n    print([m for m in ('torch', 'wandb', 'mlflow', 'tensorboard') if m in sys.modules])")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", "['tensorboard']"]


def test_steps_have_flops_and_processor_time():
    made = make_record(R=R, train_flops=[10, 20])
    times = made.timings.model_copy(update={"train_cpu": [1.0, 2.0], "consolidate_cpu": [3.0, 4.0],
                                            "evaluate_cpu": [5.0, 6.0, 7.0]})
    *_, last = tracking.steps(made.model_copy(update={"timings": times}))
    assert [last.values[name] for name in ("cost/train_flops", "cost/inference_flops", "cpu/train",
                                           "cpu/consolidate", "cpu/evaluate")] == [20, 500, 2.0, 4.0, 7.0]
