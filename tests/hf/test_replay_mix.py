"""What `replay_mix` returns, counted by hand, for lists and for data sets of the library `datasets`."""

import random
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from clbench.core.errors import SpecError
from clbench.hf import replay_mix


def task(name, count):
    """Return the items of a task; each has a text of its own."""
    return [{"prompt": f"{name}{i}", "response": name} for i in range(count)]


def tasks_of(items):
    return Counter(item["response"] for item in items)


def repeats(items, name):
    """Return how often each item of a task is there."""
    return Counter(item["prompt"] for item in items if item["response"] == name)


@pytest.mark.parametrize(("new", "share", "replayed"), [
    (90, 0.1, 10), (80, 0.2, 20), (100, 0.5, 100), (7, 0.3, 3), (10, 0.9, 90), (100, 0.01, 1), (100, 0.0, 0)])
def test_a_share_of_the_result_is_replayed_without_repeats(new, share, replayed):
    mixed = replay_mix(task("new", new), task("old", 200), share, 0)
    assert tasks_of(mixed) == Counter({"new": new, "old": replayed})
    assert abs(replayed - share * len(mixed)) <= 0.5
    assert set(repeats(mixed, "new")) == {f"new{i}" for i in range(new)}
    assert set(repeats(mixed, "old").values()) <= {1} and set(repeats(mixed, "new").values()) == {1}


def test_several_old_tasks_give_equally_many_up_to_one():
    old = [task("a", 50), task("b", 500), task("c", 20)]
    mixed = replay_mix(task("new", 80), old, 0.2, 0)
    counts = tasks_of(mixed)
    assert sorted(counts[name] for name in "abc") == [6, 7, 7]
    assert set(repeats(mixed, "a").values()) == {1}
    fewer = Counter(min("abc", key=tasks_of(replay_mix(task("new", 80), old, 0.2, seed)).get) for seed in range(60))
    assert min(fewer[name] for name in "abc") >= 8  # the seed decides: 20 expected of 60, standard deviation 3.7


def test_items_of_a_task_that_has_too_few_are_repeated_equally_often():
    mixed = replay_mix(task("new", 50), [task("a", 7), task("b", 100)], 0.5, 3)
    assert tasks_of(mixed) == Counter({"new": 50, "a": 25, "b": 25})
    assert sorted(repeats(mixed, "a").values()) == [3, 3, 3, 4, 4, 4, 4]
    assert set(repeats(mixed, "b").values()) == {1}


def test_every_old_item_is_equally_likely_and_every_place_too():
    drawn, places = Counter(), []
    for seed in range(400):
        mixed = replay_mix(task("new", 9), task("old", 10), 0.1, seed)
        place, = (i for i, item in enumerate(mixed) if item["response"] == "old")
        drawn[mixed[place]["prompt"]] += 1
        places.append(place)
    for counts in (drawn, Counter(places)):  # chi-squared with 9 degrees of freedom: 99.9% are below 27.9
        assert sum((counts[key] - 40) ** 2 / 40 for key in counts) + 40 * (10 - len(counts)) < 27.9


def test_the_seed_decides_and_the_global_generators_are_left_alone():
    before = random.getstate(), np.random.get_state()[1].tolist()
    args = task("new", 30), task("old", 30), 0.3
    assert replay_mix(*args, 5) == replay_mix(*args, 5) != replay_mix(*args, 6)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before
    with pytest.raises(ValueError):
        replay_mix(*args, -1)


def test_a_new_list_has_the_same_objects():
    new, old = task("new", 4), task("old", 4)
    mixed = replay_mix(new, old, 0.5, 0)
    assert mixed is not new and {id(item) for item in mixed} == {id(item) for item in new + old}
    assert new == task("new", 4) and old == task("old", 4)
    assert sorted(replay_mix(["a", "b"], ["c", "d"], 0.5, 0)) == ["a", "b", "c", "d"]
    assert sorted(replay_mix([[1], [2]], [[[3], [4]]], 0.5, 0)) == [[1], [2], [3], [4]]


@pytest.mark.parametrize(("new", "old", "share", "words"), [
    (task("n", 2), task("o", 2), 1.0, "share 1.0: expected at least 0 and less than 1"),
    (task("n", 2), task("o", 2), -0.1, "share -0.1"),
    (task("n", 2), task("o", 2), float("nan"), "share nan"),
    (task("n", 2), [], 0.1, "old task 1 is empty"),
    (task("n", 2), [], 0.0, "old task 1 is empty"),
    (task("n", 2), [task("o", 2), []], 0.1, "old task 2 is empty"),
    ([], task("o", 2), 0.1, "the new task is empty"),
    (task("n", 2), [task("o", 2), [{"prompt": "x"}]], 0.1,
     "old task 2: it has column 'prompt', and the new task column 'prompt', column 'response'"),
    (task("n", 2), ["text"], 0.1, "old task 1: it has items of type str, and the new task column 'prompt', "),
    ([[1], [2]], [[3], [4]], 0.5, "old task 1: it has items of type int, and the new task items of type list"),
    (task("n", 2), [task("o", 2), "text"], 0.1, "old task 2: expected a datasets.Dataset or a list, found str"),
    (range(3), task("o", 2), 0.1, "the new task: expected a datasets.Dataset or a list, found range"),
])
def test_what_cannot_be_mixed_is_an_error(new, old, share, words):
    with pytest.raises(SpecError, match=f"^{words}"):
        replay_mix(new, old, share, 0)


@pytest.mark.extra("hf")
def test_data_sets_give_a_data_set_with_the_same_items_as_lists():
    from datasets import Dataset

    new, old = task("new", 60), [task("a", 30), task("b", 40)]
    mixed = replay_mix(Dataset.from_list(new), [Dataset.from_list(one) for one in old], 0.25, 4)
    assert isinstance(mixed, Dataset) and mixed.features == Dataset.from_list(new).features
    assert mixed.to_list() == replay_mix(new, old, 0.25, 4)
    picked = Dataset.from_list(old[1]).select(range(5, 25))  # a view of some rows
    assert {i["prompt"] for i in replay_mix(Dataset.from_list(new), picked, 0.25, 4) if i["response"] == "b"} \
        == {f"b{i}" for i in range(5, 25)}
    shown = Dataset.from_list(new).with_transform(lambda rows: {"text": [p.upper() for p in rows["prompt"]]})
    assert set(replay_mix(shown, Dataset.from_list(old[0]), 0.25, 4)[0]) == {"text"}
    hidden = Dataset.from_list(new).with_format(columns=["prompt"])
    assert set(replay_mix(hidden, Dataset.from_list(old[0]), 0.25, 4)[0]) == {"prompt"}


@pytest.mark.extra("hf")
def test_data_sets_that_differ_are_an_error():
    from datasets import Dataset, DatasetDict

    new = Dataset.from_list(task("new", 4))
    for old, words in [
            (new.rename_column("response", "completion"),
             "old task 1: it has column 'completion', column 'prompt', and the new task column 'prompt', "
             "column 'response'; make both the same"),
            (Dataset.from_list([{"prompt": "a", "response": 1}]),
             r"old task 1: its column 'response' is Value\(.*'int64'.*\), and that of the new task Value\(.*'string'"),
            ([new, new.select([])], "old task 2 is empty"),
            (task("old", 4), "old task 1: it is a list, and the new task a Dataset"),
            (DatasetDict(train=new), "old task 1: expected a datasets.Dataset or a list, found DatasetDict"),
            (new.to_iterable_dataset(), "old task 1: expected .* found IterableDataset")]:
        with pytest.raises(SpecError, match=f"^{words}"):
            replay_mix(new, old, 0.5, 0)


def test_replay_imports_neither_torch_nor_datasets_nor_transformers():
    code = ("import sys\nfrom clbench.hf import replay_mix\nassert replay_mix(['a'], ['b'], 0.5, 0)\n"
            "print([m for m in ('torch', 'datasets', 'transformers') if m in sys.modules])")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
