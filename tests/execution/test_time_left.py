import heapq

import pytest
from helpers.records import make_record

from clbench.execution.time_left import TimeLeft
from clbench.experiment.trial import PlannedTrial, Progress


def trials(**counts):
    """Trials of methods, with so many seeds of each: the planned ones, and their keys by method."""
    records = {name: [make_record(name, seed) for seed in range(n)] for name, n in counts.items()}
    return ([PlannedTrial(r.trial, r.label, r.reference) for own in records.values() for r in own],
            {name: [r.key for r in own] for name, own in records.items()})


def learn(left, key, began, seconds, tasks=5, resumed=0, overhead=0.0):
    """Let a trial learn tasks from `resumed` on, each in `seconds`, and return when the last was learned."""
    left.started(key, began)
    for k, task in enumerate(range(resumed, tasks + 1)):
        left.progress(Progress(key, task, tasks, None), began + overhead + k * seconds)
    return began + overhead + (tasks - resumed) * seconds


def test_there_is_an_estimate_once_a_task_has_been_learned():
    planned, keys = trials(er=2)
    left = TimeLeft(planned)
    assert left.seconds(0.0) is None
    left.started(keys["er"][0], 0.0)
    left.progress(Progress(keys["er"][0], 0, 5, None), 2.0)
    assert left.seconds(9.0) is None
    left.progress(Progress(keys["er"][0], 1, 5, 0.9), 12.0)
    assert left.seconds(12.0) == pytest.approx(40 + 52)  # four tasks, and another trial with its own two seconds
    assert left.seconds(17.0) == pytest.approx(35 + 52)


def test_what_was_done_before_a_run_goes_on_is_no_work_of_it():
    planned, keys = trials(er=2)
    left = TimeLeft(planned)
    left.started(keys["er"][0], 0.0)
    left.progress(Progress(keys["er"][0], 4, 5, 0.8), 2.0)
    assert left.seconds(3.0) is None  # four fifths are done, and nothing says how long they took
    left.progress(Progress(keys["er"][0], 5, 5, 0.8), 12.0)
    left.finished(keys["er"][0], 12.0)
    assert left.seconds(12.0) == pytest.approx(52)


def test_each_method_takes_its_own_time_and_unknown_ones_the_mean():
    planned, keys = trials(naive=2, gpm=2, joint=1)
    left = TimeLeft(planned)
    for name, seconds, began in (("naive", 2, 0.0), ("gpm", 20, 10.0)):
        left.finished(keys[name][0], learn(left, keys[name][0], began, seconds))
    assert left.seconds(110.0) == pytest.approx(10 + 100 + 55)


def test_the_first_trial_of_a_kind_may_be_slower_than_the_others():
    planned, keys = trials(naive=3, gpm=2)
    left = TimeLeft(planned)
    now = 0.0
    for name, number, seconds in (("naive", 0, 4), ("gpm", 0, 20), ("naive", 1, 3)):
        now = learn(left, keys[name][number], now, seconds)
        left.finished(keys[name][number], now)
    assert left.seconds(now) == pytest.approx(15 + 100 * 15 / 20)


def test_trials_run_side_by_side_and_the_longest_is_waited_for():
    planned, keys = trials(naive=4, gpm=2)
    left = TimeLeft(planned)
    a, b = keys["naive"][0], keys["gpm"][0]
    left.started(b, 0.0)
    left.progress(Progress(b, 0, 5, None), 0.0)
    left.finished(a, learn(left, a, 0.0, 2))
    left.progress(Progress(b, 1, 5, None), 20.0)
    assert left.seconds(20.0) == pytest.approx(110)  # one place has 80 + 3 x 10 or 100 + 10
    left.finished(keys["gpm"][1], 20.0)  # by another process that shares the folder
    for key in keys["naive"][1:]:
        left.finished(key, 20.0)
    assert left.seconds(20.0) == pytest.approx(80)


def test_a_trial_that_takes_longer_than_expected_is_not_over():
    planned, keys = trials(er=2)
    left = TimeLeft(planned)
    first, second = keys["er"]
    left.finished(first, learn(left, first, 0.0, 2))
    left.started(second, 10.0)
    assert left.seconds(22.0) == pytest.approx(12)  # as long again
    left.progress(Progress(second, 0, 5, None), 10.0)
    left.progress(Progress(second, 1, 5, None), 22.0)
    assert left.seconds(22.0) == pytest.approx(48)
    left.started(second, 30.0)  # once more, after its worker has died
    assert left.seconds(32.0) == pytest.approx(8)


@pytest.mark.parametrize("places", [1, 2, 3])
def test_a_simulated_run_is_within_a_quarter_from_a_third_on(places):
    """Events of a run whose methods differ tenfold, a new kind of trial first, as the queue has them."""
    seconds = {"naive": 1.0, "er": 2.0, "ewc": 3.0, "gpm": 8.0, "joint": 10.0}  # of a task
    planned, keys = trials(**dict.fromkeys(seconds, 4))
    order = [own[0] for own in keys.values()] + [key for name in sorted(keys, key=lambda n: -seconds[n])
                                                 for key in keys[name][1:]]
    method = {key: name for name, own in keys.items() for key in own}
    left, events, looks = TimeLeft(planned), [], []
    free = [(0.0, i) for i in range(places)]
    for key in order:
        began, place = heapq.heappop(free)
        events.append((began, 0, key, None))
        events += [(began + 1 + k * seconds[method[key]], 1, key, k) for k in range(6)]
        over = began + 1 + 5 * seconds[method[key]]
        events.append((over, 2, key, None))
        heapq.heappush(free, (over, place))
    events.sort(key=lambda e: (e[0], -e[1]))
    end = max(now for now, *_ in events)
    for now, what, key, task in events:
        if what == 0:
            left.started(key, now)
        elif what == 1:
            left.progress(Progress(key, task, 5, None), now)
        else:
            left.finished(key, now)
        looks.append((now, left.seconds(now)))
    late = [(now, found) for now, found in looks if end / 3 <= now <= 0.95 * end]
    assert len(late) > 30
    assert all(abs(found - (end - now)) <= 0.25 * (end - now) for now, found in late)
    assert looks[-1][1] == 0


def test_a_trial_that_failed_says_nothing_about_the_time_of_others():
    planned, keys = trials(er=4)
    left = TimeLeft(planned)
    left.finished(keys["er"][0], learn(left, keys["er"][0], 0.0, 10))
    expected = left.seconds(60.0)
    left.started(keys["er"][1], 60.0)
    left.finished(keys["er"][1], 61.0, whole=False)
    assert left.seconds(61.0) == pytest.approx(expected * 2 / 3)
