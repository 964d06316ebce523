"""Samples of one's own divided into tasks, training and test."""

from collections import Counter

import numpy as np
import pytest
from pydantic import ValidationError

from clbench.core.errors import DataError
from clbench.data.own.dividing import divide, hold_out
from clbench.data.own.samples import Labeled, as_text, sort_names
from clbench.data.own_options import ColumnOptions, OwnOptions


def samples(counts, tasks=None, groups=None):
    return Labeled([label for label, count in counts.items() for _ in range(count)], tasks, groups)


def named(division, which="orders"):
    return [[division.classes[c] for c in order] for order in getattr(division, which)]


def test_classes_come_by_size_of_their_numbers_or_by_name():
    assert sort_names(["10", "9", "-1"]) == ["-1", "9", "10"]
    assert sort_names(["10", "9", "b"]) == ["10", "9", "b"]
    assert as_text([3, 3.0, np.int64(3), b"a", True]) == ["3", "3", "3", "a", "True"]


def test_tasks_by_class_are_natural_listed_or_shuffled_by_the_seed():
    own = samples(dict.fromkeys("abcdef", 20))
    assert named(divide(own, None, OwnOptions(tasks=3), 0, "x")) == [["a", "b"], ["c", "d"], ["e", "f"]]
    listed = OwnOptions(tasks=3, classes_in_order="f+a+e+b+d+c")
    assert named(divide(own, None, listed, 0, "x")) == [["f", "a"], ["e", "b"], ["d", "c"]]
    shuffled = [named(divide(own, None, OwnOptions(tasks=3, class_order="seed"), seed, "x")) for seed in (0, 0, 1)]
    assert shuffled[0] == shuffled[1] != shuffled[2]


def test_tasks_may_be_uneven_and_that_is_told():
    division = divide(samples(dict.fromkeys("abcdefg", 20)), None, OwnOptions(tasks=3), 0, "x")
    assert [len(order) for order in division.orders] == [3, 2, 2]
    assert any("do not divide evenly into 3 tasks" in note for note in division.notes)


@pytest.mark.parametrize("groups", [None, [str(i) for i in range(167)]])
def test_what_is_held_out_is_a_share_of_each_class_for_every_seed(groups):
    own = samples({"a": 100, "b": 10, "c": 55, "d": 2}, groups=groups)
    one, other = (divide(own, None, OwnOptions(tasks=2, class_order="seed"), seed, "x") for seed in (0, 5))
    held = np.sort(np.concatenate(one.test))
    assert np.array_equal(held, np.sort(np.concatenate(other.test)))
    assert Counter(np.array(own.labels)[held]) == {"a": 20, "b": 2, "c": 11, "d": 1}
    assert set(held).isdisjoint(np.concatenate(one.train))
    assert len(held) + sum(map(len, one.train)) == 167
    assert one.notes[0].startswith("test: 34 of 167 samples")


def test_a_share_of_each_class_in_each_task_is_held_out():
    own = Labeled(["a", "b"] * 60, [task for task in ("n", "s", "w") for _ in range(40)])
    division = divide(own, None, OwnOptions(), 0, "x")
    for task in range(3):
        assert Counter(np.array(own.labels)[division.test[task]]) == {"a": 4, "b": 4}
    assert division.tasks == ("n", "s", "w")
    assert division.orders == ((0, 1),) * 3


@pytest.mark.parametrize("groups", [None, [str(i % 23) for i in range(120)]])
def test_what_is_held_out_depends_neither_on_the_order_of_tasks_nor_on_that_of_class_names(groups):
    own = Labeled(["2", "10"] * 60, [task for task in ("n", "s", "w") for _ in range(40)], groups)
    plain, reordered, by_text = (divide(own, None, options, 0, "x") for options in (
        ColumnOptions(task_column="t"), ColumnOptions(task_column="t", tasks_in_order=["w", "n", "s"]),
        ColumnOptions(task_column="t", class_names_by="text")))
    assert (reordered.tasks, by_text.classes) == (("w", "n", "s"), ("10", "2"))
    for name, rows in zip(plain.tasks, plain.test, strict=True):
        assert np.array_equal(rows, reordered.test[reordered.tasks.index(name)])
        assert np.array_equal(rows, by_text.test[by_text.tasks.index(name)])


def test_tasks_of_a_column_come_by_size_or_as_listed_and_give_way_to_tasks_by_class():
    own = Labeled(["a", "b"] * 60, [year for year in ("2010", "990") for _ in range(60)])
    assert divide(own, None, ColumnOptions(task_column="year"), 0, "x").tasks == ("990", "2010")
    listed = ColumnOptions(task_column="year", tasks_in_order=["2010", "990"])
    assert divide(own, None, listed, 0, "x").tasks == ("2010", "990")
    assert divide(own, None, OwnOptions(tasks=2), 0, "x").orders == ((0,), (1,))


@pytest.mark.parametrize("sizes", [[7] * 30, [1, 40, 3, 9, 9, 2, 30, 20, 6, 5]])
def test_groups_are_kept_whole(sizes):
    groups = [str(g) for g, size in enumerate(sizes) for _ in range(size)]
    labels = np.arange(len(groups)) % 3
    held, note = hold_out(np.zeros_like(labels), labels, groups, 0.2)
    sides = [{g for g, h in zip(groups, held, strict=True) if h == side} for side in (True, False)]
    assert not sides[0] & sides[1]
    assert 0.1 < held.mean() < 0.35
    assert all((labels[~held] == c).any() for c in range(3))
    assert f"of {len(sizes)} whole groups" in note
    assert np.array_equal(held, hold_out(np.zeros_like(labels), labels, groups, 0.2)[0])


def test_a_task_of_few_large_groups_has_a_test_all_the_same():
    labels = np.array([0, 1] * 50)
    held, _ = hold_out(np.zeros_like(labels), labels, ["left"] * 50 + ["right"] * 50, 0.1)
    assert held.sum() == 50
    with pytest.raises(DataError, match=r"no test sample is left for task 'a' and 1 more.*of two groups"):
        divide(samples({"a": 5, "b": 5}, groups=["one"] * 10), None, OwnOptions(tasks=2), 0, "here")


def test_groups_that_the_data_have_on_both_sides_are_told():
    train, test = samples({"a": 9, "b": 9}, groups=["p"] * 9 + ["q"] * 9), samples({"a": 1, "b": 1}, groups=["q", "r"])
    division = divide(train, test, OwnOptions(tasks=2), 0, "x")
    assert "1 group is in training and in test, as the data have it: q" in division.notes


def test_groups_are_one_if_a_number_is_written_in_several_ways_and_else_keep_their_names():
    numbers = [i % 13 for i in range(130)]
    plain, floats, mixed = ([form(g, i) for i, g in enumerate(numbers)] for form in (
        lambda g, _: str(g), lambda g, _: f"{g}.0", lambda g, i: f"{g}.0" if i % 3 else str(g)))
    options = ColumnOptions(tasks=2, group="who")
    divisions = [divide(samples(dict.fromkeys("ab", 65), groups=groups), None, options, 0, "x")
                 for groups in (plain, floats, mixed)]
    assert divisions[2].groups == divisions[0].groups == plain and divisions[1].groups == floats
    assert all(np.array_equal(*rows) for rows in zip(divisions[0].test, divisions[2].test, strict=True))
    held = hold_out([0] * 130, [0] * 65 + [1] * 65, floats, 0.2)[0]  # as they are chosen by these names
    assert np.array_equal(np.sort(np.concatenate(divisions[1].test)), np.flatnonzero(held))
    noted = [[note for note in division.notes if "one group" in note] for division in divisions]
    assert noted == [[], [], ["groups that are the same number, written in several ways, are one group: 0 / 0.0, "
                              "1 / 1.0, 2 / 2.0, 3 / 3.0, 4 / 4.0 and 8 more"]]
    train, test = (samples({"a": 9, "b": 9}, groups=[group] * 18) for group in ("1", "1.0"))
    assert "1 group is in training and in test, as the data have it: 1" in divide(train, test, options, 0, "x").notes


def test_classes_of_one_task_only_and_small_classes_are_named():
    labels, tasks = ["a"] * 40 + ["b"] * 20 + ["a"] * 40 + ["c"] * 9, ["n"] * 60 + ["s"] * 49
    notes = divide(Labeled(labels, tasks), None, OwnOptions(), 0, "x").notes
    assert "classes that occur in one task only: b (n), c (s)" in notes
    assert "classes with fewer than 10 training samples: c (7)" in notes
    apart = divide(Labeled(["a"] * 20 + ["b"] * 20, ["n"] * 20 + ["s"] * 20), None, OwnOptions(), 0, "x").notes
    assert not any("one task only" in note for note in apart)  # then the tasks have classes of their own, as by class


def test_classes_without_test_samples_are_named():
    own = samples({"a": 20, "b": 1, "c": 20, "d": 20})
    assert "no test samples: b" in divide(own, None, OwnOptions(tasks=2), 0, "x").notes
    sites = Labeled(["a", "b"] * 10 + ["a"] * 9 + ["b"], ["n"] * 20 + ["s"] * 10)
    assert "no test samples: b (s)" in divide(sites, None, OwnOptions(), 0, "x").notes
    assert not any("no test" in n for n in divide(samples({"a": 9, "b": 9}), None, OwnOptions(tasks=2), 0, "x").notes)


@pytest.mark.parametrize(("own", "options", "message"), [
    (samples({}), {}, "has no samples"),
    (samples({"a": 9}), {}, "one class only, 'a'"),
    (samples({"a": 9, "b": 9, "c": 9}), {}, "give tasks=3 and --scenario class for one class per task, tasks=1 "
     ".*tasks_from=folders"),
    (samples({"a": 9, "b": 9}), {"tasks": 3}, "which do not make 3 tasks; give tasks = 2 or fewer"),
    (samples({"a": 9, "b": 9}), {"tasks": 2, "classes_in_order": "a+c"}, "and c is not there"),
    (samples({"a": 9, "b": 9}), {"tasks": 2, "classes_in_order": ["a"]}, "and b is left out"),
    (samples({"a": 9, "b": 9}), {"tasks": 2, "classes_in_order": "a+b+b"}, "named twice"),
    (samples({"a": 9, "b": 9}, ["n", "s"] * 9), {"class_order": "seed"}, "names its own tasks"),
    (samples({"a": 9, "b": 9}), {"tasks": 2, "tasks_in_order": ["n"]}, "is for tasks that the data name"),
    (samples({"a": 1, "b": 9}), {"tasks": 2}, "no test sample is left for task 'a'"),
    (Labeled(["a", "d"] * 9, classes=("a", "b")), {}, "not among its class names: d"),
])
def test_what_cannot_be_divided_is_an_error_with_a_way_out(own, options, message):
    with pytest.raises(DataError, match=f"^here.*{message}"):
        divide(own, None, ColumnOptions(**options), 0, "here")


@pytest.mark.parametrize(("train", "test", "message"), [
    (samples({"a": 9, "b": 9}), samples({"c": 1}), "classes that the training part has not: c"),
    (samples({"a": 9, "b": 9}, ["n", "s"] * 9), samples({"a": 1}), "the test part names none"),
    (samples({"a": 9, "b": 9}, ["n"] * 9 + ["s"] * 9), samples({"a": 1, "b": 1}, ["s", "n"]),
     "task 'n' is tested on classes that it does not train: b"),
    (samples({"a": 9, "b": 9}), samples({"a": 1}), "no test sample is left for task 'b'"),
])
def test_a_test_part_that_does_not_fit_is_an_error(train, test, message):
    with pytest.raises(DataError, match=message):
        divide(train, test, OwnOptions(tasks=None if train.tasks else 2), 0, "here")


@pytest.mark.parametrize("options", [{"tasks": 2}, {"class_order": "seed"}, {"classes_in_order": "a+b"}])
def test_a_column_of_tasks_and_tasks_by_class_exclude_each_other(options):
    with pytest.raises(ValidationError, match=r"task_column = site\); leave one of them out"):
        ColumnOptions(task_column="site", **options)


def test_sites_are_a_domain_stream_unless_another_scenario_is_asked_for():
    assert ColumnOptions(task_column="site").default_scenario == "domain"
    assert ColumnOptions().default_scenario is None


def test_the_accuracy_of_frequent_classes_is_told_if_classes_are_unequal():
    division = divide(samples({"a": 100, "b": 10, "c": 20, "d": 15}), None, OwnOptions(tasks=2), 0, "x")
    counts = [Counter(division.y_test[rows].tolist()) for rows in division.test]
    assert counts == [{0: 20, 1: 2}, {2: 4, 3: 3}]
    share = (20 / 22 + 4 / 7) / 2
    assert any(f"the most frequent class of each task gives an accuracy of {share:.1%}" in n for n in division.notes)
    balanced = divide(samples({"a": 50, "b": 40, "c": 20, "d": 20}), None, OwnOptions(tasks=2), 0, "x").notes
    assert not any("most frequent" in note for note in balanced)
