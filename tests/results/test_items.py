import base64
import zlib

import numpy as np
import pytest
from helpers.records import folder, make_matrix, make_record
from pydantic import ValidationError

from clbench.results import diff
from clbench.results.items import ItemResults
from clbench.results.records import Record


def items(rows, right, source="images"):
    tests = rows if isinstance(rows[0], list) else [rows]
    return ItemResults.of([np.array(task) for task in tests], np.array(right, dtype=bool), source)


def test_bits_are_in_the_order_of_the_images_whatever_the_order_of_the_tests():
    found = items([7, 3, 12, 0], [1, 0, 1, 1])  # images 0, 3, 7, 12
    assert found.matrix().tolist() == [[True, False, True, True]] and found.matrix().dtype == bool
    assert (found.tasks, found.count) == (1, 4)
    assert base64.b64decode(found.right) == bytes([0b10110000])
    again = items([12, 0, 7, 3], [0, 1, 1, 0])
    assert again.ids == found.ids and again.matrix().tolist() == [[True, False, True, False]]


def test_an_image_of_several_tasks_is_one_unit():
    found = items([[5, 9, 2], [2, 9, 5]], [1, 0, 1, 0, 1, 0])  # two tasks of images 2, 5, 9
    assert found.matrix().tolist() == [[True, True, False], [False, False, True]]
    assert base64.b64decode(found.right) == bytes([0b11000100])
    assert items([[1, 2], [1]], [1, 1, 1]) is None  # image 2 is in one task only


def test_the_hash_is_of_the_images_and_their_source():
    one = items([1, 2], [1, 1])
    assert one.ids == items([2, 1], [0, 0]).ids != items([1, 3], [1, 1]).ids
    assert one.ids != items([1, 2], [1, 1], "texts").ids


def test_many_bits_come_back():
    generator = np.random.default_rng(0)
    rows, right = np.concatenate([generator.permutation(1001) for _ in range(3)]), generator.random(3003) < 0.7
    found = items(rows, right)
    wanted = np.zeros((3, 1001), dtype=bool)
    for task in range(3):
        wanted[task, rows[1001 * task:1001 * (task + 1)]] = right[1001 * task:1001 * (task + 1)]
    assert np.array_equal(found.matrix(), wanted)


def test_tasks_are_stored_only_if_their_sizes_differ():
    assert items([[7, 3], [12, 0]], [1, 0, 1, 1]).task_of == ""
    found = items([[7, 3, 9], [12, 0]], [1, 1, 0, 1, 0])  # images 0, 3, 7, 9, 12 of tasks 1, 0, 0, 0, 1
    weights = np.array([5 / 4, 5 / 6, 5 / 6, 5 / 6, 5 / 4])  # an accuracy of 2/3 and one of 1/2
    assert found.scores((3, 2), 7 / 12) == pytest.approx(7 / 12 + weights * (np.array([0, 1, 1, 0, 1]) - 7 / 12))
    assert found.scores((3, 2), 7 / 12).mean() == pytest.approx(7 / 12)
    assert ItemResults.model_validate_json(found.model_dump_json()) == found
    assert "task_of" not in items([1, 2], [1, 0]).model_dump_json()
    twice = items([[5, 9], [5, 2, 9, 2]], [1, 0, 1, 1, 0, 1])
    assert twice is not None and twice.scores((2, 4), 0.625).mean() == pytest.approx(0.625)  # (1/2 + 3/4) / 2


@pytest.mark.parametrize(("right", "message"), [("AAAA", "3 bytes, not a bit for each of 1 x 9"), ("?", "not base64")])
def test_damaged_bits_are_refused(right, message):
    with pytest.raises(ValidationError, match=message):
        ItemResults(ids="x", count=9, right=right)


@pytest.mark.parametrize(("task_of", "message"), [
    (base64.b64encode(zlib.compress(bytes(2))).decode(), "2 bytes, not 2 for each of 1 x 9"),
    ("AAAA", "not base64 of zlib"), ("?", "not base64 of zlib")])
def test_damaged_tasks_are_refused(task_of, message):
    with pytest.raises(ValidationError, match=message):
        ItemResults(ids="x", count=9, right="AAA=", task_of=task_of)


def test_a_record_is_the_same_with_and_without_them(tmp_path):
    plain = make_record("lora")
    full = plain.model_copy(update={"items": items([0, 1, 2], [1, 0, 1])})
    assert "items" not in plain.model_dump_json() and plain.items is None
    text = full.model_dump_json(by_alias=True)
    assert Record.model_validate_json(text) == full
    assert full.facts() == plain.facts() and full.outcome() == plain.outcome() and full.trial.key == plain.trial.key
    assert list(diff.differences(plain, full)) == []
    merged = diff.merge_runs([folder(tmp_path / "a", plain), folder(tmp_path / "b", full)])
    assert len(merged.records) == 1
    other = make_record("lora", R=make_matrix(3, 0.01)).model_copy(update={"items": full.items})
    assert any(line.startswith("R:") for line in diff.differences(full, other))


def test_further_metrics_with_other_names_differ():
    plain = make_record("lora")
    before, after = (plain.model_copy(update={"scores": {name: [[0.1]]}}) for name in ("nll", "exact"))
    assert list(diff.differences(before, after)) == ["scores.nll: [[0.1]] -> None", "scores.exact: None -> [[0.1]]"]
