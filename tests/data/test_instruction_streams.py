"""The benchmark `instructions:`: tasks of folders and files as tokens, what is held out, and errors (extra `lm`)."""

import json
import sys
from dataclasses import replace

import pytest
from helpers.language_models import make_tokenizer, write_lines

from clbench.core.errors import DataError
from clbench.core.registry import discover
from clbench.data.own.instruction_streams import instructions
from clbench.data.own_options import InstructionOptions
from clbench.data.raw import hold_out
from clbench.data.stream import load_stream, to_stream
from clbench.experiment.trial import Resolved

pytestmark = pytest.mark.extra("lm")


@pytest.fixture
def tokenizer(tmp_path):
    folder = tmp_path / "tokenizer"
    make_tokenizer().save_pretrained(str(folder))
    (folder / "config.json").write_text("{}")
    return str(folder)


def rows(task, count=10, length=4):
    return [{"prompt": f"{task}{i}?", "response": "x" * length + str(i)} for i in range(count)]


def stream(place, tokenizer, **options):
    return instructions(f"instructions:{place}", InstructionOptions(tokenizer=tokenizer, **options), place, 0)


def texts(split):
    """Return prompts and responses of a split: tokens of the helper's tokenizer are bytes."""
    from tokenizers import pre_tokenizers

    known = ["", "", "", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    made = []
    for x, y in zip(split.x.tolist(), split.y.tolist(), strict=True):
        prompt = "".join(known[a] for a, b in zip(x, y, strict=True) if b == -100 and a >= 0)
        response = [b for b in y if b != -100]
        assert response[-1] == 0  # EOS, which is the padding too
        made.append((prompt, "".join(known[b] for b in response)))
    return made


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_the_name_of_a_task_can_be_saved_if_that_of_its_folder_is_not_utf8(tmp_path, tokenizer):
    folder = tmp_path / "tasks" / b"ch\xe8vre".decode("utf-8", "surrogateescape")
    folder.mkdir(parents=True)
    for part in ("train", "test"):
        write_lines(folder / f"{part}.jsonl", rows(part))
    assert stream(tmp_path / "tasks", tokenizer).task_names == ("ch\\xe8vre",)


def test_files_and_folders_are_tasks_and_other_files_are_not(tmp_path, tokenizer):
    place = tmp_path / "tasks"
    place.mkdir()
    write_lines(place / "b.JSONL", rows("b"))
    (place / "._b.jsonl").write_bytes(b"\xff\x00")
    (place / ".cache").mkdir()
    (place / ".cache" / "train.jsonl").write_text("no task")
    (place / "a").mkdir()
    write_lines(place / "a" / "train.jsonl", rows("a", 6))
    (place / "a" / "test.json").write_text(json.dumps(rows("t", 3)))
    (place / "README.md").write_text("no task")
    (place / "general.txt").write_text("no task")
    raw = stream(place, tokenizer)
    assert raw.task_names == ("a", "b") and raw.objective == "causal-lm" and raw.orders == ((), ())
    assert texts(raw.train[0]) == [(f"a{i}?", f"xxxx{i}") for i in range(6)]
    assert texts(raw.test[0]) == [(f"t{i}?", f"xxxx{i}") for i in range(3)]
    assert (len(raw.train[1].y), len(raw.test[1].y)) == (8, 2)  # a fifth is held out
    assert sorted(texts(raw.train[1]) + texts(raw.test[1])) == [(f"b{i}?", f"xxxx{i}") for i in range(10)]


def test_tasks_come_in_the_order_that_is_asked_for(tmp_path, tokenizer):
    place = tmp_path / "tasks"
    place.mkdir()
    for name in ("10", "9", "8"):
        write_lines(place / f"{name}.jsonl", rows(name))
    assert stream(place, tokenizer).task_names == ("8", "9", "10")
    assert stream(place, tokenizer, tasks_in_order=["9", "10", "8"]).task_names == ("9", "10", "8")
    with pytest.raises(DataError, match="tasks_in_order must list each of 8, 9, 10 once, and 8, 10 is left out"):
        stream(place, tokenizer, tasks_in_order=["9"])


def test_a_field_names_the_tasks_of_one_file(tmp_path, tokenizer):
    path = write_lines(tmp_path / "all.jsonl", [{**row, "customer": name} for name in ("x", "y") for row in rows(name)])
    raw = stream(path, tokenizer, task_column="customer")
    assert raw.task_names == ("x", "y") and all(prompt.startswith("y") for prompt, _ in texts(raw.train[1]))
    with pytest.raises(DataError, match="one file needs task_column=FIELD"):
        stream(path, tokenizer)
    with pytest.raises(DataError, match=r"all.jsonl, line 1: expected the name of a task in the field 'client'"):
        stream(path, tokenizer, task_column="client")
    write_lines(path, [*({**row, "customer": "x"} for row in rows("x")), {**rows("y")[0], "customer": " "}])
    with pytest.raises(DataError, match=r"all.jsonl, line 11: expected the name of a task .* found \" \"$"):
        stream(path, tokenizer, task_column="customer")


@pytest.mark.parametrize(("files", "message"), [
    ({}, "has no tasks; expected for each task NAME.jsonl"),
    ({"a/train.jsonl": rows("a")}, r"has no test.jsonl next to its train file"),
    ({"a.jsonl": rows("a"), "a/train.jsonl": rows("a"), "a/test.jsonl": rows("a")}, "has the task 'a' twice"),
    ({"a.jsonl": rows("a", 1)}, "task 'a' has one item only"),
    ({"a.jsonl": rows("a", length=80)}, r"a.jsonl, line 1: its \d+ tokens do not fit into 64"),
    ({"a.jsonl": [{"prompt": "a"}]}, r"a.jsonl, line 1: the field 'response' is missing"),
])
def test_errors_name_the_file_and_the_reason(tmp_path, tokenizer, files, message):
    place = tmp_path / "tasks"
    place.mkdir()
    for name, items in files.items():
        (place / name).parent.mkdir(exist_ok=True)
        write_lines(place / name, items)
    with pytest.raises(DataError, match=message):
        stream(place, tokenizer, length=64)


def test_notes_say_what_was_cut_and_what_is_in_both_parts(tmp_path, tokenizer):
    place = tmp_path / "tasks" / "a"
    place.mkdir(parents=True)
    write_lines(place / "train.jsonl", [*rows("a"), {"prompt": "p" * 100, "response": "r"}])
    write_lines(place / "test.jsonl", rows("a", 2))
    notes = " / ".join(stream(place.parent, tokenizer, length=32).notes)
    assert "1 prompt was cut" in notes and "2 of 2 test items are exact copies of training items" in notes
    (place.parent / "b").mkdir()
    write_lines(place.parent / "b" / "train.jsonl", rows("b"))
    write_lines(place.parent / "b" / "test.jsonl", [*rows("c", 2), rows("a")[3]])  # a copy of another task's item
    notes = stream(place.parent, tokenizer, length=32).notes
    assert "3 of 5 test items are exact copies of training items" in notes


def test_a_validation_split_and_the_cache_keep_the_labels(tmp_path, tokenizer):
    place = tmp_path / "tasks"
    place.mkdir()
    for name in "ab":
        write_lines(place / f"{name}.jsonl", rows(name))
    raw = stream(place, tokenizer)
    held = hold_out(raw, 0.25, 0, "instructions")
    assert [len(s.y) for s in (*held.train, *held.test)] == [6, 6, 2, 2]
    assert sorted(texts(held.train[0]) + texts(held.test[0])) == sorted(texts(raw.train[0]))
    one = replace(raw, train=tuple(replace(split, x=split.x[:1], y=split.y[:1]) for split in raw.train))
    with pytest.raises(DataError, match="task 1 has one training item; a validation split needs two"):
        hold_out(one, 0.25, 0, "instructions")
    options = InstructionOptions(tokenizer=tokenizer).model_dump()
    benchmark = Resolved(name=f"instructions:{place}", options=options)
    built, cached = (load_stream(benchmark, "task", 0, tmp_path, discover()) for _ in range(2))
    assert built.fingerprint == cached.fingerprint == to_stream(raw, "task", "").fingerprint
    assert cached.task_names == ("a", "b") and cached.objective == "causal-lm" and cached.classes == 0
    assert cached.tasks[1].train.y.equal(raw.train[1].y) and cached.tasks[1].train.tasks.tolist() == [1] * 8


def test_train_and_test_at_the_top_are_no_tasks(tmp_path, tokenizer):
    write_lines(tmp_path / "train.jsonl", rows("a"))
    write_lines(tmp_path / "test.jsonl", rows("b"))
    with pytest.raises(DataError, match="put them into a folder with the name of their task"):
        instructions(f"instructions:{tmp_path}", InstructionOptions(tokenizer=tokenizer), tmp_path, 0)
