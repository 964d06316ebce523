"""What trials are expected to take: from their work, from trials that ended, from records of the folder."""

import pytest
from helpers.records import make_record

from clbench.execution.time_left import TimeLeft, is_comparable, kind_of, read_times
from clbench.experiment.trial import PlannedTrial, Progress
from clbench.experiment.workload import Speed, WorkEstimate, Workload
from clbench.results.provenance import machine

STEP, RATE = 0.002, 5e9  # seconds of a step, FLOPs a second


def planned(method, seed=0, scenario="task"):
    record = make_record(method, seed, scenario=scenario)
    return PlannedTrial(record.trial, record.label, record.reference)


def work(steps, train, test=0):
    return Workload(steps=[steps] * 3, train_flops=[train] * 3, test_flops=[test] * 4)


def took(load):
    return sum(load.steps) * STEP + sum([*load.train_flops, *load.test_flops]) / RATE


WORKS = {"a": work(100, 10**9), "b": work(10, 10**10), "c": work(1000, 10**7), "d": work(50, 3 * 10**9, 10**9),
         "e": work(300, 2 * 10**9, 10**8)}


def test_a_share_of_the_work_counts_steps_training_and_the_rows_that_are_filled():
    load = Workload(steps=[10, 30], train_flops=[100, 300], test_flops=[40, 40, 40])
    assert load.share(0, 10.0) == 0
    assert load.share(1, 10.0) == pytest.approx((10 + (100 + 80) / 10) / (40 + (400 + 120) / 10))
    assert load.share(2, 10.0) == 1


def counted_works(speed):
    trials = {name: planned(name) for name in WORKS}
    left = TimeLeft(list(trials.values()))
    for name, load in WORKS.items():
        left.take_estimate(kind_of(trials[name].trial), WorkEstimate(workload=load, speed=speed))
    return left, {kind_of(trials[name].trial): took(load) for name, load in WORKS.items()}


def end(left, one, seconds):
    left.started(one.trial.key, 0.0)
    left.finished(one.trial.key, seconds)


def test_kinds_that_were_not_seen_take_what_their_work_says():
    left, expected = counted_works(Speed(step=STEP, flops=RATE))
    assert left.expected() == pytest.approx(expected), "at the speed that was measured"
    for name in "ab":
        end(left, planned(name), 3 * took(WORKS[name]))
    slower = {kind: 3 * seconds for kind, seconds in expected.items()}
    assert left.expected() == pytest.approx(slower), "at the speed that was seen"


def test_a_kind_without_work_takes_what_the_others_take():
    left, _ = counted_works(Speed(step=STEP, flops=RATE))
    del left.work[kind_of(planned("e").trial)]
    known = [took(WORKS[name]) for name in "abcd"]
    assert left.expected()[kind_of(planned("e").trial)] == pytest.approx(sum(known) / 4)


def test_a_method_takes_in_another_scenario_what_it_took_times_the_ratio_of_the_work():
    known, other, third = planned("er"), planned("er", scenario="class"), planned("ewc", scenario="class")
    left = TimeLeft([known, other, third])
    end(left, known, 8.0)
    assert left.expected() == {kind_of(p.trial): 8.0 for p in (known, other, third)}
    for one, flops in ((known, 10**10), (other, 3 * 10**10)):
        left.take_estimate(kind_of(one.trial), WorkEstimate(workload=Workload(
            steps=[0], train_flops=[flops], test_flops=[0, 0])))
    assert left.expected()[kind_of(other.trial)] == pytest.approx(24.0)


def test_records_of_the_folder_tell_before_anything_has_run():
    old = [make_record("er", seed, train_flops=[10**9] * 3, machine=machine()) for seed in range(2)]
    elsewhere = make_record("er", 2, machine="another")
    assert [is_comparable(r, "cpu", 1) for r in (*old, elsewhere)] == [True, True, False]
    assert not is_comparable(old[0], "cuda", 1) and not is_comparable(old[0], "cpu", 2)
    assert is_comparable(old[0], "cpu", None)
    load, seconds = read_times(old[0])
    assert seconds == pytest.approx(3 * 1.0 + 3 * 0.25 + 4 * 0.1)
    assert load.steps == [70] * 3 and load.train_flops == [10**9] * 3
    assert load.test_flops == [600 * 500] * 4, "600 test samples in each row"
    assert read_times(make_record("er", status="diverged")) is None
    left = TimeLeft([planned("er", seed) for seed in (5, 6, 7)])
    left.ready(2)
    left.known(old)
    assert left.seconds(0.0) == pytest.approx(2 * seconds)


def test_a_resumed_trial_has_its_share_of_the_work_left():
    trial = planned("er")
    left = TimeLeft([trial])
    left.take_estimate(kind_of(trial.trial), WorkEstimate(workload=Workload(
        steps=[1, 1, 8], train_flops=[0] * 3, test_flops=[0] * 4), speed=Speed(step=1.0, flops=1e9)))
    assert left.seconds(0.0) == pytest.approx(10)
    left.started(trial.trial.key, 0.0)
    left.progress(Progress(trial.trial.key, 2, 3, 0.5), 0.0)
    assert left.seconds(0.0) == pytest.approx(8), "not a third of the ten"
    assert not left.measured


def test_earlier_times_are_scaled_by_what_this_run_takes():
    old = [make_record(m, s, train_flops=[10**9] * 3, machine=machine()) for m in ("er", "ewc") for s in (0, 1)]
    seen = old[0].model_copy(update={"timings": old[0].timings.model_copy(update={"curve": [1.0, 2.0, 3.0]})})
    seconds = read_times(old[0])[1]
    assert read_times(seen)[1] == pytest.approx(seconds + 6)
    left = TimeLeft([planned("er", 5), planned("ewc", 5)])
    left.known(old)
    end(left, planned("er", 5), 3 * seconds)
    assert left.expected()[kind_of(planned("ewc").trial)] == pytest.approx(3 * seconds)
