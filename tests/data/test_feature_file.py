import json

import numpy as np
import pytest
from safetensors import safe_open

from clbench.core.errors import SpecError, StoreError
from clbench.data import feature_file
from clbench.data.feature_file import Parts, check_suffix, write_features

ARRAYS = {"X_train": np.arange(15, dtype=np.float32).reshape(5, 3), "y_train": np.array([4, 4, 2, 2, 0]),
          "X_test": np.ones((1, 3), np.float32), "y_test": np.array([2])}


@pytest.mark.parametrize("names", [(), ("apple", "büro")])
@pytest.mark.parametrize("kind", ["safetensors", "npz"])
def test_a_file_is_what_the_libraries_read(tmp_path, kind, names, monkeypatch):
    monkeypatch.setattr(feature_file, "PIECE", 16)  # so that arrays are written in several pieces
    out = tmp_path / f"x.{kind}"
    write_features(out, ARRAYS, {"model": "cnn"}, names)
    if kind == "npz":
        with np.load(out, allow_pickle=False) as file:
            found = {name: file[name] for name in ARRAYS}
            assert file["model"].item() == "cnn" and tuple(file["class_names"] if names else ()) == names
    else:
        with safe_open(out, "np") as file:
            found = {name: file.get_tensor(name) for name in ARRAYS}
            assert {*file.keys()} == {*ARRAYS}
            told = file.metadata()
            assert told["model"] == "cnn" and tuple(json.loads(told.get("class_names", "[]"))) == names
    for name, array in ARRAYS.items():
        assert found[name].dtype == array.dtype and np.array_equal(found[name], array)
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


def test_a_file_of_another_kind_is_refused(tmp_path):
    with pytest.raises(SpecError, match=r"x\.pt: features are kept as \.safetensors or \.npz"):
        check_suffix(tmp_path / "x.pt")


def fill(parts, rows):
    with parts.appending("train", 0) as append:
        append(ARRAYS["X_train"][:rows])


def test_parts_are_taken_up_by_the_same_job_only(tmp_path):
    out = tmp_path / "x.npz"
    with pytest.raises(KeyboardInterrupt), Parts(out, {"a": 1}, 3).lock_folder() as known:
        assert not known
        fill(Parts(out, {"a": 1}, 3), 2)
        raise KeyboardInterrupt
    same = Parts(out, {"a": 1}, 3)
    with same.path("train").open("ab") as file:
        file.write(b"half")  # of a row, as a kill may leave it
    with pytest.raises(KeyboardInterrupt), same.lock_folder() as known:
        assert known and same.rows("train") == 2
        with same.appending("train", 1) as append:
            append(ARRAYS["X_train"][3:])
        assert np.array_equal(same.array("train"), ARRAYS["X_train"][[0, 3, 4]])
        raise KeyboardInterrupt
    other = Parts(out, {"a": 2}, 3)
    with other.lock_folder() as known:
        assert not known and other.rows("train") == 0
    assert not other.folder.exists()


def test_one_process_writes_a_file(tmp_path):
    parts = Parts(tmp_path / "x.npz", {}, 3)
    refused = pytest.raises(StoreError, match=r"another clbench embed is writing .*x\.npz")
    with parts.lock_folder(), refused, Parts(tmp_path / "x.npz", {}, 3).lock_folder():
        pass
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="cannot write"), Parts(tmp_path / "file" / "x.npz", {}, 3).lock_folder():
        pass
