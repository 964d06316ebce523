import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import ROOT, TESTS
from helpers.streams import permuted, raw

from clbench import report
from clbench.core.errors import DataError
from clbench.core.registry import discover
from clbench.data.raw import RawStream, Split, hold_out
from clbench.data.stream import load_stream, to_stream
from clbench.execution.trial_runner import TrialRunner
from clbench.experiment.execution_settings import ExecutionSettings
from clbench.experiment.plan import plan
from clbench.experiment.spec import build
from clbench.experiment.trial import Resolved, Trial

TINY = {"benchmark": "split-mnist-5k", "model": "mlp:width=8", "recipe": {"iterations": 1}, "seeds": 1}


def samples(split):
    """The samples of a split as a set of bytes, its labels with them."""
    return {x.numpy().tobytes() + bytes([y]) for x, y in zip(split.x, split.y.tolist(), strict=True)}


def big(n=200):
    return raw(n=n)


def test_what_is_held_out_is_not_trained_on_and_nothing_is_lost():
    whole = big()
    split = hold_out(whole, 0.1, 3, "raw")
    for before, train, held in zip(whole.train, split.train, split.test, strict=True):
        assert not samples(train) & samples(held)
        assert samples(train) | samples(held) == samples(before)
        assert len(train.y) + len(held.y) == len(before.y)


def test_every_class_gives_its_share_and_rare_ones_a_sample():
    y = torch.tensor([0] * 50 + [1] * 30 + [2] * 3 + [3] * 2)
    x = torch.arange(len(y)).view(-1, 1)
    one = RawStream((Split(x, y),), (Split(x, y),), ((0, 1, 2, 3),))
    held = hold_out(one, 0.2, 0, "raw").test[0]
    assert torch.bincount(held.y).tolist() == [10, 6, 1, 1]
    assert torch.bincount(hold_out(one, 0.9, 0, "raw").train[0].y).tolist() == [5, 3, 1, 1]
    with pytest.raises(DataError, match="'raw': task 1's training experience has one sample of class 4"):
        hold_out(RawStream((Split(x[:3], torch.tensor([0, 0, 4])),), one.test, ((0, 4),)), 0.5, 0, "raw")
    with pytest.raises(DataError, match="has one sample of class owl"):
        hold_out(RawStream((Split(x[:3], torch.tensor([0, 0, 1])),), one.test, ((0, 1),), class_names=("ant", "owl")),
                 0.5, 0, "raw")


def test_the_test_set_is_never_looked_at():
    whole = big()
    other = RawStream(whole.train, tuple(Split(255 - s.x, s.y) for s in whole.test), whole.orders)
    assert to_stream(whole, "task", "raw").fingerprint != to_stream(other, "task", "raw").fingerprint
    first, second = (to_stream(hold_out(r, 0.1, 0, "raw"), "task", "raw") for r in (whole, other))
    assert first.fingerprint == second.fingerprint
    seen = set().union(*map(samples, [*hold_out(whole, 0.1, 0, "raw").train, *hold_out(whole, 0.1, 0, "raw").test]))
    assert not seen & set().union(*map(samples, whole.test))


def test_the_seed_alone_chooses():
    whole = big()
    held = [[samples(s) for s in hold_out(whole, 0.1, seed, "raw").test] for seed in (0, 0, 1)]
    assert held[0] == held[1] != held[2]


def test_permuted_tasks_hold_the_same_images_out_and_share_them_still():
    whole, orders = permuted(n=40)
    split = hold_out(whole, 0.25, 0, "permuted")
    assert all(s.x is split.train[0].x for s in split.train) and all(s.x is split.test[0].x for s in split.test)
    stream = to_stream(split, "domain", "permuted")
    first = split.test[0].x.flatten(1)
    for task, order in zip(stream.tasks[1:], orders[1:], strict=True):
        assert torch.equal(task.test.x.flatten(1), first[:, order])
        assert len(task.train.x) == 30


def of_patients(tmp_path, benchmark, scenario, **options):
    """A stream with a validation split whose first input is the patient of each sample."""
    lines = [f"P{i // 5},{i // 5},{i / 7},{'xy'[i % 2]},{'abcd'[i // 5 % 4]}" for i in range(200)]
    (tmp_path / "t.csv").write_text("\n".join(["patient,number,value,site,label", *lines]))
    registry = discover()
    values = registry.benchmark(benchmark).options(group="patient", **options).model_dump()
    return load_stream(Resolved(name=benchmark, options=values), scenario, 0, tmp_path, registry, 0.2)


@pytest.mark.parametrize(("scenario", "options"), [
    ("class", {"tasks": 2, "leave_out": ["site"]}), ("domain", {"task_column": "site"}),
    ("domain", {"task_column": "site", "target_column": "value", "leave_out": ["label"]})])
def test_groups_stay_whole_in_a_validation_split(scenario, options, tmp_path):
    for _ in range(2):  # built, then read from the cache
        stream = of_patients(tmp_path, "table:t.csv", scenario, standardise=False, **options)
        trained, held = (set(torch.cat([getattr(task, part).x[:, 0] for task in stream.tasks]).tolist())
                         for part in ("train", "test"))
        assert held and not trained & held
        assert sum(len(task.test) for task in stream.tasks) == 5 * len(held)
        assert any(f"held out as {len(held)} of 32 whole groups" in note for note in stream.notes)


def test_groups_that_cannot_be_held_out_are_an_error_or_a_note():
    x, y = torch.arange(8).view(-1, 1), torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])

    def grouped(*groups):
        return RawStream((Split(x, y, groups=torch.tensor(groups)),), (Split(x, y),), ((0, 1),), class_names=("a", "b"))

    with pytest.raises(DataError, match="no validation sample is left for task 1, because groups are kept whole"):
        hold_out(grouped(*[3] * 8), 0.5, 0, "raw")
    held = hold_out(grouped(0, 0, 1, 1, 2, 2, 2, 2), 0.5, 0, "raw")
    assert held.test[0].y.tolist() == [0, 0]
    assert held.notes[-1] == "no validation samples: b"
    whole = grouped(0, 0, 1, 1, 2, 2, 2, 2)
    assert hold_out(replace(whole, class_names=()), 0.5, 0, "raw").notes[-1] == "no validation samples: 1"
    twice = replace(whole, train=whole.train * 2, test=whole.test * 2, orders=((0, 1), (0, 1)))
    assert hold_out(twice, 0.5, 0, "raw").notes[-1] == "no validation samples: b (task 1), b (task 2)"
    assert grouped(*range(8)).digest != grouped(0, *range(7)).digest  # results with other splits are stale


def test_random_transforms_are_drawn_for_the_samples_that_stay(monkeypatch):
    monkeypatch.syspath_prepend(TESTS)
    stream = load_stream(Resolved(name="helpers.tiny_benchmarks:flipping"), "task", 5, Path(), discover(), 0.2)
    train = stream.tasks[0].train
    assert (len(train), len(stream.tasks[0].test)) == (32, 8)
    rows = torch.arange(len(train))
    for _ in range(3):
        drawn = train.take(rows).x
        assert torch.equal(drawn.sort(-1).values, train.x.sort(-1).values)  # a flip of the very same image
    assert any("one draw of each" in note for note in stream.notes)


def test_all_methods_of_a_seed_have_the_same_split_and_each_seed_its_own(tmp_path):
    registry = discover()
    planned = plan(build({**TINY, "methods": "naive,joint,lora", "seeds": 2, "validation": 0.1}), registry)
    runner = TrialRunner(ExecutionSettings(data=tmp_path), "cpu", "test", registry)
    records = [runner.run(p) for p in planned]
    prints = {(r.trial.seed, r.stream.fingerprint) for r in records}
    assert len(prints) == len({f for _, f in prints}) == 2
    plain = runner.run(plan(build({**TINY, "methods": "naive"}), registry)[0])
    assert records[0].stream.train_samples != plain.stream.train_samples
    for held, train, before in zip(records[0].stream.test_samples, records[0].stream.train_samples,
                                   plain.stream.train_samples, strict=True):
        assert held + train == before and held == pytest.approx(before / 10, abs=2)
    whole = report.build([*records, plain])
    assert [s.title for s in whole.sections] == ["split-mnist-5k, Task-IL, mlp, validation",
                                                 "split-mnist-5k, Task-IL, mlp"]
    summary = dict(whole.sections[0].setting)
    assert summary["accuracy on"].startswith("10% of the training samples, held out")
    assert summary["budget"].startswith("1 step per task")
    assert "validation" not in whole.sections[1].summary
    assert {name for name, _ in whole.sections[0].settings} >= {"accuracies on", "validation samples per task"}


def test_keys_without_a_validation_split_are_what_they_were():
    path = sorted((ROOT / "reports/split_mnist_5k/records").glob("*.json"))[0]
    kept = json.loads(path.read_text())["trial"]
    assert "validation" not in kept
    trial = Trial.model_validate(kept)
    assert trial.key == path.stem
    held = trial.model_copy(update={"validation": 0.1})
    assert held.key != trial.key and held.environment != trial.environment
    assert held.key != trial.model_copy(update={"validation": 0.2}).key


@pytest.mark.parametrize("share", [1, -0.1, "some"])
def test_a_share_is_a_share(share):
    from clbench.core.errors import SpecError

    with pytest.raises(SpecError, match="validation: "):
        build({"methods": "naive", "validation": share})
