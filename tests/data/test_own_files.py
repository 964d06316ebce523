"""Files of arrays, tables and data sets of the datasets library as benchmarks."""

import csv
import json
import math
import sys
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from clbench.core.errors import DataError, PluginError, SpecError
from clbench.core.registry import discover
from clbench.data.own import texts
from clbench.data.own.benchmark import copies
from clbench.data.own.columns import labeled, table_files
from clbench.data.own.dividing import divide
from clbench.data.own.hub import hub_files
from clbench.data.own.instruction_streams import instruction_files
from clbench.data.own.samples import Table, read_table
from clbench.data.own_options import ArraysOptions, HubOptions, TableOptions, TextOptions, array_files
from clbench.data.stream import load_stream
from clbench.execution.trial_record import describe
from clbench.experiment import spec
from clbench.experiment.plan import plan
from clbench.experiment.trial import Resolved

RNG = np.random.default_rng(0)
OPTIONS = {"arrays": ArraysOptions, "table": TableOptions, "hf": HubOptions}


def stream(kind, path, tmp_path, scenario="task", **options):
    resolved = Resolved(name=f"{kind}:{path}", options=OPTIONS[kind](**options).model_dump())
    return load_stream(resolved, scenario, 0, tmp_path, discover())


def rows(classes=4, per_class=10, width=3):
    return RNG.normal(size=(classes * per_class, width)).astype(np.float32), np.repeat(np.arange(classes), per_class)


def table(path, names, *values):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([names, *values])
    return path


def test_rows_of_an_npz_with_names(tmp_path):
    x, y = rows()
    np.savez(tmp_path / "a.npz", X=x, y=np.array(["owl", "ant", "bee", "cat"])[y])
    read = stream("arrays", "a.npz", tmp_path)
    assert [len(task.train) for task in read.tasks] == [16, 16]
    assert read.input_shape == (3,)
    ours = torch.cat([part.x for task in read.tasks for part in (task.train, task.test)])
    assert sorted(ours.flatten().tolist()) == sorted(x.flatten().tolist())
    owls = torch.from_numpy(x[:10])
    last = read.tasks[1].train  # by name the owl is the last class
    assert all((owls == row).all(1).any() for row in last.x[last.y == 3])


def test_tasks_of_one_class_are_noted_if_the_task_id_is_given(tmp_path):
    x, y = rows(3)
    np.savez(tmp_path / "a.npz", X=x, y=y)
    note = "tasks with a single class: 2; the task ID alone gives the right answer in them"
    for scenario, noted in (("task", True), ("class", False)):
        assert (note in stream("arrays", "a.npz", tmp_path, scenario, tasks=2).notes) is noted
    assert not any("single class" in n for n in stream("arrays", "a.npz", tmp_path, tasks=1).notes)


def test_labels_in_an_array_of_objects_get_advice(tmp_path):
    x, y = rows()
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", y.astype(object), allow_pickle=True)
    with pytest.raises(DataError, match=r"cannot read .*y.npy: .*save text as np.array\(y, dtype=str\)"):
        stream("arrays", "x.npy", tmp_path, labels="y.npy")


@pytest.mark.parametrize("empty", ["x", "y"])
def test_an_empty_file_of_arrays_is_named(empty, tmp_path):
    for name, values in zip("xy", rows(), strict=True):
        np.save(tmp_path / f"{name}.npy", values)
    (tmp_path / f"{empty}.npy").write_bytes(b"")
    with pytest.raises(DataError, match=rf"cannot read .*{empty}\.npy: No data left in file; write the file again$"):
        stream("arrays", "x.npy", tmp_path, labels="y.npy")


def test_a_file_with_its_own_split_tasks_and_class_names(tmp_path):
    x, y = rows()
    names = {"class_names": json.dumps(["d", "c", "b", "a"])}
    save_file({"X_train": x, "y_train": y, "task_train": y // 2, "X_test": x[::2].copy(), "y_test": y[::2].copy(),
               "task_test": y[::2] // 2}, tmp_path / "a.safetensors", names)
    read = stream("arrays", "a.safetensors", tmp_path, "class")
    assert [(len(task.train), len(task.test)) for task in read.tasks] == [(20, 10), (20, 10)]
    assert [task.classes for task in read.tasks] == [(0, 1), (2, 3)]  # in the order of the names as given
    assert "20 of 20 test samples are exact copies of training samples" in read.notes
    assert any("the test gives the task of each sample (scenario task)" in note for note in read.notes)
    by_class = stream("arrays", "a.safetensors", tmp_path, tasks=4)
    assert len(by_class.tasks) == 4
    assert not any("scenario task" in note for note in by_class.notes)


def test_numbers_to_predict_that_are_wrong_are_errors(tmp_path, monkeypatch):
    x, y = rows()
    np.savez(tmp_path / "a.npz", X=x, v=np.full(40, "high"), w=x[:, 0], task=y)
    with pytest.raises(DataError, match="v has the type <U4, expected real numbers"):
        stream("arrays", "a.npz", tmp_path, "domain", targets="v")
    v = x[:, 0].astype(float)
    for wrong, message in ((v[:39], "there are 40 samples and 39 targets"),
                           (np.append(v, 1.0), "there are 40 samples and 41 targets"),
                           (x, r"v is \[40, 3\], expected one number for each sample"),
                           (np.where(np.arange(40) == 2, np.nan, v), r"target of sample 2 \(counted from 0\) is miss")):
        np.savez(tmp_path / "a.npz", X=x, v=wrong, w=x[:, 0], task=y)
        with pytest.raises(DataError, match=message):
            stream("arrays", "a.npz", tmp_path, "domain", targets="v")
    np.save(tmp_path / "x.npy", x)
    with pytest.raises(DataError, match=r"targets = none\.npy: there is no"):
        stream("arrays", "x.npy", tmp_path, "domain", targets="none.npy")

    def fail(*args, **options):
        raise ValueError("an error of a builder")

    monkeypatch.setattr("clbench.data.own.arrays.target_stream", fail)
    with pytest.raises(DataError, match=r"benchmark 'arrays:a\.npz' failed: ValueError: an error of a builder"):
        stream("arrays", "a.npz", tmp_path, "domain", targets="w")


def test_both_parts_have_the_same_shape_and_type(tmp_path):
    x, y = RNG.integers(0, 255, (40, 8, 8)).astype(np.uint8), np.repeat(np.arange(4), 10)
    for x_test in (x[:, :7], x[:, None].astype(np.float32)):
        np.savez(tmp_path / "a.npz", X_train=x, y_train=y, X_test=x_test, y_test=y)
        with pytest.raises(DataError, match=r"X_test is \[.*, X_train \[40, 1, 8, 8\] of torch.uint8"):
            stream("arrays", "a.npz", tmp_path)


def test_the_byte_order_of_numbers_does_not_matter(tmp_path):
    x, y = rows()
    prints = []
    for order in "<>":
        np.savez(tmp_path / "a.npz", X=x.astype(f"{order}f4"), y=y.astype(f"{order}i8"))
        prints.append(stream("arrays", "a.npz", tmp_path).fingerprint)
    assert prints[0] == prints[1]


def test_numbers_are_positions_and_text_is_a_name_even_if_names_are_numbers(tmp_path):
    x, y = rows()
    names = np.array(["1", "2", "3", "4"])
    for labels in (y, names[y]):
        # the test part has no class 0, so that its labels alone could be names
        np.savez(tmp_path / "a.npz", X_train=x, y_train=labels, X_test=x[10:], y_test=labels[10:], class_names=names)
        tasks = stream("arrays", "a.npz", tmp_path, "class", tasks=1).tasks
        assert tasks[0].class_names == tuple(names)
        assert torch.bincount(tasks[0].test.y).tolist() == [0, 10, 10, 10]


@pytest.mark.parametrize(("shape", "dtype", "want"), [
    ((40, 8), np.uint8, (8,)), ((40, 9, 8), np.uint8, (1, 9, 8)), ((40, 3, 9, 8), np.uint8, (3, 9, 8)),
    ((40, 9, 8, 3), np.uint8, (3, 9, 8)), ((40, 9, 9, 13), np.float64, (13, 9, 9)),
    ((40, 13, 9, 9), np.uint8, (13, 9, 9)), ((40, 5, 8), np.float32, (5, 8)), ((40, 9, 8, 4), np.uint8, (4, 9, 8)),
    ((40, 9, 8, 4), np.float32, (9, 8, 4)), ((40, 9, 4, 4), np.uint8, (9, 4, 4)), ((40, 4, 9, 8), np.uint8, (4, 9, 8)),
])
def test_what_arrays_are_is_told_by_their_shape(shape, dtype, want, tmp_path):
    x = RNG.integers(0, 255, shape).astype(dtype)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", np.repeat(np.arange(4), 10))
    read = stream("arrays", tmp_path / "x.npy", tmp_path, labels="y.npy")
    assert read.input_shape == want
    stored = read.tasks[0].train.x
    assert stored.dtype == (torch.uint8 if dtype == np.uint8 and len(shape) > 2 else torch.float32)
    channels_first = np.moveaxis(x, 3, 1) if len(shape) == 4 and shape[1:] != want else x
    known = {row.tobytes() for row in channels_first[:20].reshape(20, *want).astype(stored.numpy().dtype)}
    assert {row.numpy().tobytes() for row in stored} <= known
    assert array_files(f"arrays:{tmp_path / 'x.npy'}", {"labels": "y.npy"}, tmp_path) == [tmp_path / "x.npy",
                                                                                        tmp_path / "y.npy"]


def test_files_of_labels_may_be_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    x, y = rows()
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "home" / "y.npy", y)
    assert len(stream("arrays", tmp_path / "x.npy", tmp_path, labels="~/y.npy").tasks) == 2
    files = array_files(f"arrays:{tmp_path / 'x.npy'}", {"labels": "~/y.npy"}, tmp_path)
    assert files == [tmp_path / "x.npy", tmp_path / "home" / "y.npy"]


@pytest.mark.parametrize(("change", "message"), [
    ({"y": None}, "has no array 'y', only X; expected X and y, or"),
    ({"X": RNG.normal(size=40)}, r"X is \[40\], expected rows"),
    ({"y": np.zeros(3)}, r"y is \[3\], expected one value for each of the 40"),
    ({"y": np.full(40, 0.5)}, "not whole"),
    ({"y": np.array([0, 1, math.nan, 1] * 10)}, r"y: sample 2 \(counted from 0\) has no value, and so have 9 more$"),
    ({"X": np.array([[1.0], [np.nan]] * 20)}, r"sample 1 \(counted from 0\).* and so have 19 more"),
    ({"X": np.array([[1.0]] * 38 + [[np.inf]] * 2)}, "sample 38 .* or infinite, and so has 1 more$"),
    ({"X": np.array([[1.0]] * 39 + [[np.nan]])}, "sample 39 .* is missing or infinite$"),
    ({"X": np.array([[0.1 * i, 1.7e9 + i] for i in range(40)])}, r"float32 is too imprecise for .* of column 1 \(c"),
    ({"X": np.arange(80).reshape(40, 2) + 1_700_000_000}, r"X: float32 is too imprecise for .* of column 0 \(counted"),
    ({"X": np.array([[1e39], [1.0]] * 20)}, r"X: column 0 \(counted from 0\) has 1e\+39, which is too large for float"),
    ({"y": np.array(["a", "NaN"] * 20)}, r"y: sample 1 \(counted from 0\) has no value"),
    ({"y": np.array([None] * 40)}, "save text as np.array"),
    ({"y": np.array(["a", "b", math.nan, ""] * 10, dtype=str)}, r"y: sample 2 \(counted from 0\) has no value, and so "
     "have 19 more$"),
    ({"group": np.array([*"ab" * 19, "c", " "])}, r"group: sample 39 \(counted from 0\) has no value$"),
    ({"class_names": np.array(["a", "b"])}, "class_names has 2 names, and y has 2; numbers in y are positions"),
    ({"class_names": np.array(["2", "3", "4"])}, "class_names has 3 names, and y has 3"),
    ({"y": np.array(["0", "1"] * 20), "class_names": np.array(["a", "b"])}, "y has 0; .* text is a name in it"),
    ({"class_names": np.array(["a", "b", "a", "c"])}, "class_names has 'a' twice"),
    ({"class_names": np.array("abcd")}, "class_names must be a list"),
    ({"X": np.full((40, 3), "a")}, "X has the type <U1, expected real numbers"),
    ({"X": np.full((40, 3), 1j)}, "X has the type complex128, expected real numbers"),
    ({"y": np.array([b"\xe9", b"a"] * 20)}, "y has bytes that are not UTF-8"),
])
def test_arrays_that_do_not_fit_are_errors(change, message, tmp_path):
    x, y = rows()
    np.savez(tmp_path / "a.npz", **{k: v for k, v in {"X": x, "y": y, **change}.items() if v is not None})
    with pytest.raises(DataError, match=message):
        stream("arrays", "a.npz", tmp_path)


@pytest.mark.parametrize(("name", "content", "message"), [
    ("t.csv", "city,label\nKöln,a\n".encode("latin-1"), r"t\.csv as a table in UTF-8: .*; save the file as UTF-8"),
    ("t.csv", "city,label\nOslo,a\n".encode("utf-16"), r"t\.csv as a table in UTF-8: .*; save the file as UTF-8"),
    ("t.jsonl", b'{"x": 1, "label": "a"}\n\n{"x": 2 "label": "b"}\n', r"line 3 of t\.jsonl is not valid JSON \(.*, "
     r"column 9\)$"),
])
def test_tables_that_cannot_be_decoded_are_errors_that_say_where_or_what_to_do(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        stream("table", tmp_path / name, tmp_path)


@pytest.mark.parametrize(("order", "names"), [("", "bern, oslo, rome"), ("oslo+rome+bern", "oslo, rome, bern")])
def test_a_note_says_which_task_is_which_site(order, names, tmp_path):
    values = [[i, site, "yes" if i % 2 else "no"] for site in ("rome", "oslo", "bern") for i in range(8)]
    file = table(tmp_path / "t.csv", ["size", "site", "label"], *values)
    options = {"tasks_in_order": order} if order else {}
    read = stream("table", file, tmp_path, "domain", task_column="site", **options)
    assert f"the tasks in order are {names}" in read.notes


def test_a_table_is_standardized_by_the_first_task_s_training_samples_alone(tmp_path):
    values = [[RNG.normal(100 * (site == "b"), 5), 7, site, "yes" if i % 2 else "no"]
              for site in "ab" for i in range(30)]
    read = stream("table", table(tmp_path / "t.csv", ["size", "same", "site", "ill"], *values), tmp_path, "domain",
                  task_column="site", label_column="ill")
    first = read.prepare(read.tasks[0].train.x)
    assert first.mean(0).tolist() == pytest.approx([0, 0], abs=1e-5)
    assert first[:, 0].std(correction=0).item() == pytest.approx(1, abs=1e-5)
    assert read.prepare(read.tasks[1].train.x)[:, 0].mean() > 10
    facts = describe(read)
    own = read.tasks[0].train.x.double()
    assert facts.mean == pytest.approx(own.mean(0).tolist(), rel=1e-6)
    assert facts.std == pytest.approx([own[:, 0].std(correction=0).item(), 1], rel=1e-6)
    assert any(note.startswith("inputs are 2 columns: size, same, standardized by") for note in read.notes)
    assert any("constant in the first task" in note and note.endswith(": same") for note in read.notes)
    assert "mean" not in describe(stream("table", "t.csv", tmp_path, "domain", task_column="site", label_column="ill",
                                         standardise=False)).model_dump()


def test_a_column_of_lists_is_standardized_element_by_element(tmp_path):
    x, y = rows()
    x[y < 2, 1] = 7  # constant in the first task
    lines = [{"u": float(row[0]), "vector": row.tolist(), "label": int(label)} for row, label in zip(x, y, strict=True)]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, lines)))
    read = stream("table", "t.jsonl", tmp_path, tasks=2)
    own = np.concatenate([x[:, :1], x], 1)[y < 2]
    kept = read.tasks[0].train.x.numpy()
    assert read.input_shape == (4,) and all(row in own.tolist() for row in kept.tolist())
    assert read.prepare.mean == pytest.approx(kept.mean(0, dtype=np.float64), rel=1e-6)
    assert read.prepare.std == pytest.approx([*kept.std(0, dtype=np.float64)[:2], 1, kept[:, 3].std()], rel=1e-6)
    assert "columns that are constant in the first task, only their mean is subtracted: vector[1]" in read.notes


def test_columns_labels_and_groups_of_a_table(tmp_path):
    values = [[i, i % 7, f"p{i // 4}", f"c{i % 4}"] for i in range(80)]
    path = table(tmp_path / "t.tsv", ["id", "value", "who", "kind"], *values)
    path.write_text(path.read_text().replace(",", "\t"))
    read = stream("table", path, tmp_path, group="who", leave_out="id", standardise=False, tasks=2)
    assert read.input_shape == (1,)
    assert read.notes[0] == "labels are the last column, 'kind' (label_column=NAME chooses another)"
    assert "held out as 4 of 20 whole groups" in " ".join(read.notes)
    label = table(tmp_path / "l.csv", ["label", "value"], *[[f"c{i % 4}", i] for i in range(80)])
    assert not any("last column" in note for note in stream("table", label, tmp_path, tasks=2).notes)


def test_a_column_with_another_role_is_not_the_default_label_column(tmp_path):
    columns = ["label", "value", "kind", "date"]
    table(tmp_path / "t.csv", columns, *[[f"s{i % 2}", i, f"c{i % 4}", f"d{i}"] for i in range(80)])
    for options in ({"leave_out": "label+date"}, {"task_column": "label", "leave_out": "date"}):
        read = stream("table", "t.csv", tmp_path, **options)
        assert read.notes[0] == "labels are the last column, 'kind' (label_column=NAME chooses another)"
        assert read.input_shape == (1,)


def test_texts_have_a_column_named_label_or_a_named_one(tmp_path):
    (tmp_path / "x.csv").write_text("topic,text\na,b\n")
    with pytest.raises(DataError, match=r"no column 'label' of labels \(label_column=NAME\), only topic, text"):
        texts.read(tmp_path / "x.csv", TextOptions(), "here")
    with pytest.raises(DataError, match=r"no column 'body' of texts .* and no column 'label' of labels"):
        texts.read(tmp_path / "x.csv", TextOptions(text_column="body"), "here")
    assert texts.read(tmp_path / "x.csv", TextOptions(label_column="topic"), "here").known.labels == ["a"]


def test_a_file_of_texts_may_have_the_index_that_pandas_writes(tmp_path):
    (tmp_path / "x.csv").write_text(",text,label\n0,a,b\n")
    assert texts.read(tmp_path / "x.csv", TextOptions(), "here").known.labels == ["b"]


@pytest.mark.parametrize(("cells", "options", "message"), [
    ([["", "a"]], {}, r"row 41 \(line 42 of the file\), column 'v': the value is missing; write .* leave_out"),
    ([["x1", "a"]], {}, r"row 41 \(line 42 of the file\), column 'v': 'x1' is no number"),
    ([["inf", "a"]], {}, r"row 41 \(line 42 of the file\), column 'v': 'inf' is no number"),
    ([["1_000", "a"]], {}, r"row 41 \(line 42 of the file\), column 'v': '1_000' is no number"),
    ([[1, ""]], {}, r"row 41 \(line 42 of the file\), column 'label' is empty; write a value, or remove the row$"),
    ([[1, "NaN"]], {}, r"row 41 \(line 42 of the file\), column 'label' is empty \(NaN\); write a value"),
    ([[1, 0.5]], {}, r"row 41 \(line 42 of the file\), column 'label' is 0.5; labels must be names or whole numbers"),
    ([[1]], {}, "line 42 of t.csv has 1 values, its first line names 2 columns"),
    ([], {"label_column": "labels"}, "label_column = labels: no column 'labels'; did you mean 'label'"),
    ([], {"leave_out": "w"}, "leave_out names w, its columns are v, label"),
    ([], {"leave_out": "v,w"}, r"its columns are v, label; a list is written with \+, as in a\+b$"),
    ([], {"leave_out": "v"}, "of which none is an input"),
])
def test_cells_and_columns_that_are_wrong_are_named(cells, options, message, tmp_path):
    table(tmp_path / "t.csv", ["v", "label"], *[[i, "ab"[i % 2]] for i in range(40)], *cells)
    with pytest.raises(DataError, match=message):
        stream("table", "t.csv", tmp_path, tasks=2, **options)


@pytest.mark.parametrize(("names", "has_note"), [(["0.109", "-1.77"], True), (["400", "a"], False)])
def test_a_sample_in_place_of_the_names_of_columns_is_a_note(tmp_path, names, has_note):
    file = table(tmp_path / "t.csv", [*names, "label"], *[[i, -i, "ab"[i % 2]] for i in range(40)])
    notes = stream("table", file, tmp_path, tasks=1).notes
    assert any("if the first line of the file is a sample" in note for note in notes) is has_note


def test_a_folder_is_no_table(tmp_path):
    (tmp_path / "rows").mkdir()
    with pytest.raises(DataError, match=r"'table:.*rows': .*rows is a folder; table:FILE reads one file$"):
        table_files(f"table:{tmp_path / 'rows'}", {}, tmp_path)


@pytest.mark.parametrize(("value", "message"), [(3, "no list, in the first row 2 numbers"), ([], "an empty list"),
                                                (None, "no list, in the first row 2 numbers")])
def test_lists_and_other_values_in_one_column_are_errors(value, message, tmp_path):
    lines = [{"v": value if i == 3 else [i, 1], "label": i % 4} for i in range(40)]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(DataError, match=rf"row 4 \(line 4 of the file\), column 'v' has {message}$"):
        stream("table", "t.jsonl", tmp_path)


@pytest.mark.parametrize(("values", "message"), [
    ([1.7e9 + 10 * i for i in range(40)], "float32 is too imprecise for the values of column 'v'"),  # a time stamp
    ([1e39, *range(39)], r"column 'v' has 1e\+39, which is too large for float32"),
    ([1.7e9 + 86400 * i for i in range(40)], None), ([0.1] * 20 + [0.1 + 1e-16] * 20, None), ([16777217] * 40, None),
])
def test_columns_that_float32_cannot_hold_are_errors(values, message, tmp_path):
    table(tmp_path / "t.csv", ["v", "label"], *[[v, "ab"[i % 2]] for i, v in enumerate(values)])
    with pytest.raises(DataError, match=message) if message else nullcontext():
        stream("table", "t.csv", tmp_path, tasks=2)


@pytest.mark.parametrize("own", [False, True])
def test_a_column_that_float32_cannot_hold_in_the_first_task_is_an_error(own, tmp_path):
    values = [[1.7e9 + i if i < 30 else 1.5e9 + 1000 * i, i % 7, "ab"[i // 30], i % 2] for i in range(60)]
    table(tmp_path / "t.csv", ["t", "v", "site", "label"], *values)
    options = {"task_column": "site", "standardise": own}
    message = "float32 is too imprecise for the values of column 't' in the training samples of the first task"
    with pytest.raises(DataError, match=message) if own else nullcontext():
        stream("table", "t.csv", tmp_path, "domain", **options)


@pytest.mark.parametrize(("columns", "options", "message"), [
    ("vw", {"target_column": "v", "task_column": "w"}, "'v' is a list of 2 numbers, and a target is one number; write"),
    ("ow", {"target_column": "o", "task_column": "w"}, None),
    ("vw", {"label_column": "v"}, r"'v' is a list of 2 values, .* \(label_column=NAME chooses another column\)$"),
    ("wg", {"label_column": "w", "group": "g", "tasks": 1}, None),
])
def test_a_list_is_neither_a_target_nor_a_label(columns, options, message, tmp_path):
    lines = [{"x": i, "v": [i, 1000 + i], "o": [i], "w": i // 20, "g": ["a", str(i % 9)]} for i in range(40)]
    lines = [json.dumps({key: line[key] for key in f"x{columns}"}) for line in lines]
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    with pytest.raises(DataError, match=rf"row 1 \(line 1 of.*, column {message}") if message else nullcontext():
        stream("table", "t.jsonl", tmp_path, "domain", **options)


def test_names_that_look_like_missing_values_are_told_in_one_note(tmp_path):
    values = [[i, ["NA", "b", "none"][i % 3], ["None", "s"][i // 30], f"p{i}", i % 4] for i in range(60)]
    table(tmp_path / "t.csv", ["v", "label", "site", "who", "kind"], *values)
    notes = stream("table", "t.csv", tmp_path, "domain", task_column="site", group="who").notes
    assert "names that look like missing values: NA (class), None (task); if they are, remove their rows" in notes
    notes = stream("table", "t.csv", tmp_path, leave_out="site+label+who", label_column="kind").notes
    assert not any("look like missing" in note for note in notes)


def test_a_group_that_files_write_in_several_ways_is_never_on_both_sides(tmp_path):
    (tmp_path / "texts").mkdir()
    for site, form in (("n", "{}"), ("s", "{}.0")):  # pandas writes 1.0 if the column has missing values
        table(tmp_path / "texts" / f"{site}.csv", ["text", "label", "who"],
              *[[f"{site}{i}", "ab"[i % 2], form.format(i % 10)] for i in range(60)])
    known = texts.parts(f"text:{tmp_path / 'texts'}", TextOptions(group="who"), tmp_path)[0].known
    division = divide(known, None, TextOptions(group="who"), 0, "here")
    sides = [{float(known.groups[row]) for row in np.concatenate(part)} for part in (division.train, division.test)]
    assert sides[1] and not sides[0] & sides[1]


def test_classes_may_have_names_that_python_takes_for_numbers(tmp_path):
    table(tmp_path / "t.csv", ["v", "label"], *[[i, ["1_1", "12", "inf", "b"][i % 4]] for i in range(40)])
    assert [task.class_names for task in stream("table", "t.csv", tmp_path).tasks] == [("12", "1_1"), ("b", "inf")]


def test_names_that_may_mean_the_same_are_told(tmp_path):
    labels = ["1", "1.0", "2", "Cat", "cat", "caf\u00e9", "cafe\u0301", "9007199254740993", "9007199254740992"]
    table(tmp_path / "t.csv", ["v", "w", "label"], *[[i, -i, label] for i, label in enumerate(labels * 4)])
    pairs = "1 / 1.0, Cat / cat, cafe\u0301 / caf\u00e9; give them one name if they are the same"
    classes = stream("table", "t.csv", tmp_path)
    assert f"classes that differ only in how their names are written: {pairs}" in classes.notes
    assert not any("groups that" in note for note in classes.notes)
    numbers = stream("table", "t.csv", tmp_path, "domain", target_column="v", task_column="label")
    assert f"tasks that differ only in how their names are written: {pairs}" in numbers.notes


def test_groups_that_may_be_the_same_are_told(tmp_path):
    groups = ["P1", "p1", "01", "1", "p2"]
    table(tmp_path / "t.csv", ["v", "who", "label"], *[[i, groups[i % 5], i % 2] for i in range(40)])
    notes = stream("table", "t.csv", tmp_path, tasks=1, group="who").notes
    assert any(note.startswith("groups that differ only in how their names are written: 01 / 1, P1 / p1; g")
               for note in notes)


def test_rows_have_the_lines_of_the_file_on_which_they_begin(tmp_path):
    file = tmp_path / "t.csv"
    file.write_text('v,label\n\n1,"a\nb"\n2,c\n')
    assert read_table(file, "here").place(0, "v") == "row 1 (line 3 of the file), column 'v'"
    assert read_table(file, "here").lines == [3, 5]
    (tmp_path / "t.jsonl").write_text('{"v": 1}\n\n{"v": 2}\n')
    assert read_table(tmp_path / "t.jsonl", "here").lines == [1, 3]


@pytest.mark.parametrize(("name", "header", "columns"), [
    ("a.csv", '"a, in m, cm";b', ["a, in m, cm", "b"]), ("a.tsv", "a, b, c\td", ["a, b, c", "d"]),
    ("a.csv", 'a,"label (0|1|2)"', ["a", "label (0|1|2)"]), ("a.csv", '"say ""a;b;c""",d', ['say "a;b;c"', "d"]),
    ("a.csv", 'in 5",b', ['in 5"', "b"]), ("a.csv", '"x;y",z', ["x;y", "z"]), ("a.txt", "a|b", ["a", "b"]),
    ("a.csv", "a", ["a"])])
def test_the_delimiter_is_the_one_that_divides_the_header_into_most_columns(name, header, columns, tmp_path):
    for blank in ("", "\n\n"):
        (tmp_path / name).write_text(blank + header + "\n" + header + "\n")
        assert list(read_table(tmp_path / name, "here").columns) == columns


def test_files_of_a_folder_are_tasks_without_hidden_files_and_with_any_case_of_their_suffix(tmp_path):
    for name in ("b.CSV", "a.csv"):
        (tmp_path / name).write_text("text,label\na,b\n")
    (tmp_path / "._a.csv").write_bytes(b"\xff\x00")
    train, test = texts.parts(f"text:{tmp_path}", TextOptions(), tmp_path)
    assert train.known.tasks == ["a", "b"] and test is None
    (tmp_path / "a.jsonl").write_text('{"text": "a", "label": "b"}')
    with pytest.raises(DataError, match=r"has both a\.csv and a\.jsonl; remove or rename one"):
        texts.parts(f"text:{tmp_path}", TextOptions(), tmp_path)
    (tmp_path / "set").mkdir()
    for name in ("train.CSV", "test.csv"):
        (tmp_path / "set" / name).write_text("text,label\na,b\n")
    assert texts.parts(f"text:{tmp_path / 'set'}", TextOptions(), tmp_path)[1] is not None


@pytest.mark.extra("hf")
def test_parquet_tables_and_columns_of_lists(tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    x, y = rows()
    parquet.write_table(pa.table({"vector": x.tolist(), "label": y}), tmp_path / "a.parquet")
    assert stream("arrays", "a.parquet", tmp_path).input_shape == (3,)
    parquet.write_table(pa.table({"u": x[:, 0], "v": x[:, 1], "label": y.astype(float)}), tmp_path / "t.parquet")
    assert stream("table", "t.parquet", tmp_path).input_shape == (2,)
    for kind in (pa.list_(pa.float32()), pa.large_list(pa.float32()), pa.list_(pa.float32(), 3)):
        column = pa.chunked_array([pa.array(part.tolist(), kind) for part in (x[:7], x[7:])])
        parquet.write_table(pa.table({"vector": column.slice(2), "label": y[2:]}), tmp_path / "a.parquet")
        values = read_table(tmp_path / "a.parquet", "here").columns["vector"]
        assert isinstance(values, np.ndarray) and np.array_equal(values, x[2:])
    for broken, message in (([[1.0, 2.0], [3.0]], "row 2, column 'vector' has 1 numbers"),
                            ([[1.0], [math.nan]], "row 2, column 'vector' has a list with something that is no number"),
                            ([[1.0], None], "row 2, column 'vector' has no list")):
        parquet.write_table(pa.table({"vector": broken, "label": [0, 1]}), tmp_path / "b.parquet")
        with pytest.raises(DataError, match=message):
            stream("arrays", "b.parquet", tmp_path)
    parquet.write_table(pa.table({"u": x[:, 0], "v": x.tolist(), "w": y}), tmp_path / "v.parquet")
    for kind, option in (("arrays", "targets"), ("table", "target_column")):
        with pytest.raises(DataError, match="row 1, column 'v' is a list of 3 numbers, and a target is one number"):
            stream(kind, "v.parquet", tmp_path, "domain", **{option: "v", "task_column": "w"})
        with pytest.raises(DataError, match=r"row 1, column 'v' is a list of 3 values, .* \(label_column=NAME chooses"):
            stream(kind, "v.parquet", tmp_path, label_column="v")
    parquet.write_table(pa.table({"u": [1.0, math.nan], "label": [0, 1]}), tmp_path / "t.parquet")
    with pytest.raises(DataError, match="row 2, column 'u': nan is no number"):
        stream("table", "t.parquet", tmp_path)
    parquet.write_table(pa.table({"u": [1.0, None], "label": [0, 1]}), tmp_path / "t.parquet")
    with pytest.raises(DataError, match="row 2, column 'u': the value is missing"):
        stream("table", "t.parquet", tmp_path)


def test_declared_names_of_classes_may_look_like_numbers_or_missing_values():
    table = Table({"label": ["1.5", "nan", "2"]})
    assert labeled(table, "label", HubOptions(), "x", ["1.5", "2", "nan"]).labels == ["1.5", "nan", "2"]
    table = Table({"label": ["1.5"]})
    with pytest.raises(DataError, match=r"column 'label' is 1.5; .* \(label_column=NAME chooses the column\)$"):
        labeled(table, "label", HubOptions(), "x")
    with pytest.raises(DataError, match=r"; targets=NAME predicts numbers\)$"):
        labeled(table, "label", ArraysOptions(), "x")
    with pytest.raises(DataError, match="column 'label' is empty"):
        labeled(Table({"label": ["nan"]}), "label", TableOptions(), "x")


@pytest.mark.extra("hf")
def test_names_of_classes_are_stripped(tmp_path):
    import datasets

    classes = datasets.ClassLabel(names=["cat ", "dog"])
    datasets.Dataset.from_dict({"x": [float(i) for i in range(20)], "label": [i % 2 for i in range(20)]}).cast_column(
        "label", classes).save_to_disk(tmp_path / "d")
    assert stream("hf", "d", tmp_path, tasks=1).tasks[0].class_names == ("cat", "dog")


@pytest.mark.extra("hf")
def test_a_data_set_of_the_datasets_library(tmp_path):
    import datasets
    from PIL import Image

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["owl", "ant"]),
                                  "site": datasets.Value("string"), "score": datasets.Value("float32")})

    def part(count):
        return datasets.Dataset.from_dict({
            "image": [Image.new("RGB", (10 + i % 2, 10), (i, 0, 0)) for i in range(count)],
            "label": [i % 2 for i in range(count)], "site": ["n" if i < count // 2 else "s" for i in range(count)],
            "score": [float(i) for i in range(count)]}, features)

    datasets.DatasetDict({"train": part(20), "validation": part(8)}).save_to_disk(tmp_path / "d")
    read = stream("hf", "d", tmp_path, "domain", task_column="site", size=12)
    assert [(len(task.train), len(task.test)) for task in read.tasks] == [(10, 4), (10, 4)]
    assert read.input_shape == (3, 12, 12)
    assert read.tasks[0].train.y.tolist() == [0, 1] * 5  # the owl first, as its ClassLabel has it
    assert {"the test part is the split 'validation'", "columns that were not used: score"} <= set(read.notes)
    numbers = stream("hf", "d", tmp_path, split="train", tasks=2, leave_out="image+site")
    assert numbers.input_shape == (1,) and [len(task.test) for task in numbers.tasks] == [2, 2]
    with pytest.raises(DataError, match="no split 'nil', only train, validation"):
        stream("hf", "d", tmp_path, split="nil")
    with pytest.raises(DataError, match="site is text"):
        stream("hf", "d", tmp_path, leave_out="image", tasks=2)


@pytest.mark.extra("hf")
def test_labels_of_a_data_set_are_the_class_label_that_has_no_other_role_and_may_be_minus_one(tmp_path):
    import datasets

    site = datasets.ClassLabel(names=["n", "s"])
    whole = datasets.Dataset.from_dict({"site": [i % 2 for i in range(40)], "value": [float(i) for i in range(40)],
                                        "sign": [i // 2 % 2 * 2 - 1 for i in range(40)]}).cast_column("site", site)
    datasets.DatasetDict({"train": whole, "test": whole}).save_to_disk(tmp_path / "d")
    read = stream("hf", "d", tmp_path, "domain", task_column="site")
    assert read.tasks[0].class_names == ("-1", "1")
    assert "labels are the last column, 'sign' (label_column=NAME chooses another)" in read.notes
    unlabeled = whole.map(lambda row: {"site": -1})
    datasets.DatasetDict({"train": whole, "test": unlabeled}).save_to_disk(tmp_path / "u")
    with pytest.raises(DataError, match="its test part is not labeled"):
        stream("hf", "u", tmp_path)


@pytest.mark.extra("hf")
def test_the_named_column_of_labels_is_used_if_a_data_set_has_an_index_of_pandas(tmp_path):
    import datasets

    coarse = datasets.ClassLabel(names=["a", "b"])
    datasets.Dataset.from_dict({"x": [float(i) for i in range(40)], "coarse": [i % 2 for i in range(40)],
                                "fine": [i % 4 for i in range(40)], "__index_level_0__": list(range(40))}
                               ).cast_column("coarse", coarse).save_to_disk(tmp_path / "d")
    read = stream("hf", "d", tmp_path, label_column="fine", leave_out="coarse", tasks=2)
    assert [task.class_names for task in read.tasks] == [("0", "1"), ("2", "3")]
    guessed = stream("hf", "d", tmp_path, leave_out="fine", tasks=1)
    assert guessed.tasks[0].class_names == ("a", "b")
    for notes in (read.notes, guessed.notes):
        assert any("as pandas writes its index, is not an input" in note for note in notes)


@pytest.mark.extra("hf")
def test_options_that_a_saved_data_set_does_not_have_are_refused(tmp_path):
    import datasets

    part = datasets.Dataset.from_dict({"v": [float(i) for i in range(40)], "label": [i % 4 for i in range(40)]})
    part.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": part, "test": part.remove_columns("label")}).save_to_disk(tmp_path / "two")
    with pytest.raises(DataError, match="was saved as a single part, so it has no splits; leave split out"):
        stream("hf", "one", tmp_path, split="train")
    with pytest.raises(DataError, match="was saved by save_to_disk, so it has no config; leave config out"):
        stream("hf", "one", tmp_path, config="en")
    with pytest.raises(DataError, match="its test part has no column label, only v; take one part, as in split=train"):
        stream("hf", "two", tmp_path)
    assert len(stream("hf", "two", tmp_path, split="train").tasks) == 2


@pytest.mark.extra("hf")
def test_a_folder_that_the_datasets_library_reads(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "d").mkdir()
    table(tmp_path / "d" / "train.csv", ["v", "label"], *[[i, "ab"[i % 2]] for i in range(40)])
    assert stream("hf", "d", tmp_path, tasks=2).input_shape == (1,)


def test_copies_are_counted():
    x = torch.arange(12.0).view(4, 3)
    assert copies([x[:2], x[2:]], [x[1:2], -x - 1]) == 1
    assert copies([x], [-x - 1]) == 0


def test_patterns_of_one_s_own_beat_any_function_and_names_may_have_colons(tmp_path):
    registry = discover()
    for name in ("images:a", "arrays:a.npz", "table:a:b.csv", "hf:owner/name"):
        assert registry.benchmark(name).options.__name__.lower().startswith(name[:2].replace("hf", "hub")[:2])
    given = {"methods": "naive", "benchmark": {"name": "images:/a:b,c=d", "options": {"tasks": 3}}}
    trial = plan(spec.build(given), registry)[0].trial
    assert trial.benchmark.name == "images:/a:b,c=d" and trial.benchmark.options["tasks"] == 3
    by_text = spec.build({"methods": "naive", "benchmark": "table:/a:b.csv:task_column=site"})
    assert plan(by_text, registry)[0].trial.scenario == "domain"
    with pytest.raises(SpecError, match=r"images:a: no option 'task'"):
        plan(spec.build({"methods": "naive", "benchmark": "images:a:task=3"}), registry)


def test_the_size_of_photos_is_the_model_s_unless_given():
    registry = discover()

    def size(benchmark):
        given = {"methods": "naive", "benchmark": benchmark, "model": "torchvision:resnet18:size=48"}
        return plan(spec.build(given), registry)[0].trial.benchmark.options["size"]

    assert (size("images:a"), size("images:a:size=40")) == (48, 40)


@pytest.mark.parametrize(("kind", "module"), [("table", "pyarrow"), ("hf", "datasets")])
def test_a_missing_library_is_an_error_that_names_the_extra(kind, module, tmp_path, monkeypatch):
    (tmp_path / "t.parquet").write_bytes(b"")
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(PluginError, match=rf"{module}.*pip install 'clbench\[hf\]'"):
        stream(kind, "t.parquet", tmp_path)


def test_the_files_that_a_benchmark_reads_are_named(tmp_path):
    (tmp_path / "d" / "deep").mkdir(parents=True)
    for name in ("d/a.csv", "d/deep/b.csv"):
        (tmp_path / name).write_text("v,label\n")
    assert table_files("table:d/a.csv", {}, tmp_path) == [tmp_path / "d" / "a.csv"]
    assert hub_files("hf:d", {}, tmp_path) == [tmp_path / "d" / "a.csv", tmp_path / "d" / "deep" / "b.csv"]


def test_files_below_linked_folders_are_named(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    for name in ("a.csv", "a.jsonl", ".hidden.csv"):
        (tmp_path / "elsewhere" / name).write_text("text,label\n")
    folder = tmp_path / "d"
    folder.mkdir()
    (folder / "train").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "config.json").write_text("{}")
    options = {"tokenizer": str(tmp_path / "tokenizer")}
    assert hub_files("hf:d", {}, tmp_path) == [folder / "train" / "a.csv", folder / "train" / "a.jsonl"]
    assert texts.text_files("text:d", options, tmp_path) == [folder / "train" / "a.csv", folder / "train" / "a.jsonl"]
    assert instruction_files("instructions:d", options, tmp_path) == [folder / "train" / "a.jsonl"]
    (folder / "loop").symlink_to(folder)
    with pytest.raises(DataError, match="loop is a link to a folder that contains it; remove the link"):
        texts.text_files("text:d", options, tmp_path)


def test_texts_that_are_not_utf8_can_be_stored_in_the_facts_of_a_stream(tmp_path):
    lines = [json.dumps({"v": i, "label": "a\udce8" if i % 2 else "b"}) for i in range(40)]
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    read = replace(stream("table", "t.jsonl", tmp_path, tasks=1), task_names=("\udce8",), notes=("\udce8",))
    facts = describe(read)
    assert facts.model_dump_json() and facts.class_names == [["a\\udce8", "b"]]
    assert facts.task_names == facts.notes == ["\\udce8"]


def test_a_file_next_to_a_folder_of_the_same_part_is_noted(tmp_path):
    for part in ("train", "test"):
        (tmp_path / part).mkdir()
        (tmp_path / f"{part}.csv").touch()
    (tmp_path / "test").rmdir()
    assert texts._unused_files(tmp_path) == ["train.csv"]


def test_a_tokenizer_that_cannot_be_loaded_is_an_error_that_names_it(tmp_path):
    pytest.importorskip("transformers")
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(DataError, match=f"{tmp_path}: its tokenizer cannot be loaded"):
        texts.tokenized(["a"], TextOptions(tokenizer=str(tmp_path), length=4), "here")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_names_of_unused_files_of_texts_can_be_saved(tmp_path):
    (tmp_path / b"\xe8.csv".decode("utf-8", "surrogateescape")).touch()
    assert texts._unused_files(tmp_path) == ["\\xe8.csv"]


def test_options_of_columns_do_not_apply_to_arrays(tmp_path):
    x, y = rows()
    np.savez(tmp_path / "a.npz", X=x, y=y)
    with pytest.raises(DataError, match="leave_out is for files with columns; arrays named task and group"):
        stream("arrays", "a.npz", tmp_path, leave_out="a")


def test_a_quote_that_is_not_closed_is_an_error_and_hides_no_rows(tmp_path):
    (tmp_path / "a.csv").write_text('label,text\nx,first\ny,"second\n' + "x,more\n" * 50)
    with pytest.raises(DataError, match=r"row that begins on line 3.*must end with one"):
        read_table(tmp_path / "a.csv", "table")


def test_the_index_that_pandas_writes_is_no_input(tmp_path):
    path = table(tmp_path / "a.csv", ["", "a", "label"], *[[i, math.sin(i), "xy"[i // 10]] for i in range(20)])
    read = stream("table", path.name, tmp_path, tasks=1)
    assert read.input_shape == (1,)
    assert any("as pandas writes its index, is not an input" in note for note in read.notes)


def test_a_column_or_target_that_is_constant_in_the_first_task_is_not_divided_by_rounding_errors(tmp_path):
    values = [[0.1, "p", 0.1] for _ in range(800)] + [[0.1 + i, "q", 0.5 * i] for i in range(50)]
    path = table(tmp_path / "a.csv", ["a", "site", "y"], *values)
    read = stream("table", path.name, tmp_path, "domain", task_column="site", target_column="y")
    assert max(float(task.train.y.abs().max()) for task in read.tasks) < 100
    assert read.prepare.std in ((1.0,), [1.0]) or float(torch.as_tensor(read.prepare.std)) == 1.0


def test_augmentation_needs_images(tmp_path):
    x, y = rows()
    np.savez(tmp_path / "a.npz", X=x, y=y)
    with pytest.raises(DataError, match="augment is for images"):
        stream("arrays", "a.npz", tmp_path, augment="crop-flip")


def test_a_folder_may_have_the_suffix_of_a_file(tmp_path):
    (tmp_path / "texts" / "old.csv").mkdir(parents=True)
    (tmp_path / "texts" / "a.csv").write_text("text,label\nhi,x\n")
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "spiece.model").write_bytes(b"")
    (tmp_path / "tokenizer" / "config.json").write_text("{}")
    files = texts.text_files("text:texts", {"tokenizer": str(tmp_path / "tokenizer")}, tmp_path)
    assert [path.name for path in files] == ["a.csv", "spiece.model"]
