import pytest

from clbench.core.errors import DataError
from clbench.core.scenario import scenario_rules

SPLIT = [(0, 1), (2, 3), (4, 5)]
SHARED = [(0, 1, 2)] * 3


@pytest.mark.parametrize("scenario", ["task", "class"])
def test_natural_split_labels_stay_as_they_are(scenario):
    assert scenario_rules(scenario).outputs(SPLIT, "b") == [{0: 0, 1: 1}, {2: 2, 3: 3}, {4: 4, 5: 5}]


@pytest.mark.parametrize("scenario", ["task", "class"])
def test_shuffled_labels_that_fill_the_range_stay_and_keep_their_order(scenario):
    maps = scenario_rules(scenario).outputs([(3, 0), (2, 1)], "b")
    assert [list(m.items()) for m in maps] == [[(3, 3), (0, 0)], [(2, 2), (1, 1)]]


def test_labels_that_do_not_fill_the_range_are_numbered_as_they_come():
    assert scenario_rules("class").outputs([(7, 5), (20, 6)], "b") == [{7: 0, 5: 1}, {20: 2, 6: 3}]


@pytest.mark.parametrize("scenario", ["task", "class"])
def test_shared_labels_get_outputs_of_their_own_in_every_task(scenario):
    assert scenario_rules(scenario).outputs(SHARED, "b") == [{c: c + 3 * t for c in range(3)} for t in range(3)]
    assert scenario_rules(scenario).outputs([(4, 9), (9, 4)], "b") == [{4: 0, 9: 1}, {9: 3, 4: 2}]


def test_domain_keeps_shared_labels():
    assert scenario_rules("domain").outputs(SHARED, "b") == [{0: 0, 1: 1, 2: 2}] * 3
    assert scenario_rules("domain").outputs([(4, 9), (9, 4)], "b") == [{4: 0, 9: 1}, {9: 1, 4: 0}]


def test_domain_takes_natural_split_labels_modulo_the_classes_per_task():
    assert scenario_rules("domain").outputs(SPLIT, "b") == [{c: c % 2 for c in task} for task in SPLIT]


def test_domain_takes_the_position_in_the_tasks_own_order():
    assert scenario_rules("domain").outputs([(7, 2), (0, 9)], "b") == [{7: 0, 2: 1}, {0: 0, 9: 1}]


@pytest.mark.parametrize(("orders", "reason"), [
    ([(0, 1), (2,)], "as many classes in every task, here 2, 1"),
    ([(0, 1), (1, 2)], "some classes return"),
])
def test_domain_refuses_what_has_no_shared_labels_and_says_why(orders, reason):
    with pytest.raises(DataError, match=reason) as caught:
        scenario_rules("domain").outputs(orders, "b")
    assert "\n" not in str(caught.value) and "benchmark 'b'" in str(caught.value)


@pytest.mark.parametrize("scenario", ["task", "class"])
def test_partly_overlapping_tasks_keep_one_output_per_class(scenario):
    maps = scenario_rules(scenario).outputs([(0, 1), (1, 2), (2, 0, 3)], "b")
    assert maps == [{0: 0, 1: 1}, {1: 1, 2: 2}, {2: 2, 0: 0, 3: 3}]


@pytest.mark.parametrize("scenario", ["task", "class", "domain"])
def test_a_single_task_keeps_its_classes(scenario):
    assert scenario_rules(scenario).outputs([(0, 1, 2)], "b") == [{0: 0, 1: 1, 2: 2}]
