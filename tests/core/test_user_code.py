import sys

import pytest

from clbench.core.errors import DataError, SpecError
from clbench.core.registry import discover
from clbench.core.user_code import extend_import_path, file_of, load_function

FILE = "import neighbor_of_photos\ndef stream():\n    return neighbor_of_photos.SIZE\nsize = 3\n"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/my-photos.py").write_text(FILE)
    (tmp_path / "photos/neighbor_of_photos.py").write_text("SIZE = 64\n")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("neighbor_of_photos", None)


def load(name):
    with extend_import_path(name):
        return load_function(name, "benchmark")


@pytest.mark.parametrize("absolute", [False, True])
def test_a_function_in_a_file_is_found_with_what_lies_beside_it(absolute, folder):
    before = list(sys.path)
    name = f"{folder}/photos/my-photos.py:stream" if absolute else "photos/my-photos.py:stream"
    assert load(name)() == 64
    assert sys.path == before


def test_a_file_is_run_anew_and_may_have_the_name_of_a_module(folder):
    path = folder / "json.py"
    path.write_text("def f():\n    return 1\n")
    assert load("json.py:f")() == 1
    path.write_text("def f():\n    return 2\n")
    assert load("json.py:f")() == 2
    import json

    assert json.loads("2") == 2


@pytest.mark.parametrize(("name", "words"), [
    ("photos/my-photo.py:stream", r"no file \S*photos/my-photo.py; did you mean 'photos/my-photos.py'\?"),
    ("photos/my-photos.py:strem", r"photos/my-photos.py has no 'strem'; did you mean 'stream'\?"),
    ("photos/my-photos.py:size", "'size' is a int, not a function"),
    ("photos/my-photos:stream", r"no module 'photos/my-photos' in .* give photos/my-photos.py:stream"),
    ("json:lods", r"module 'json' has no 'lods'; did you mean 'loads'"),
    ("absent_module:f", "no module 'absent_module' in .*, and none is installed"),
])
def test_what_is_not_there_is_one_line_that_names_the_way_out(name, words, folder):
    with pytest.raises(DataError, match=f"^benchmark '{name}': .*{words}") as caught:
        load(name)
    assert "\n" not in str(caught.value)


def test_a_file_that_breaks_leaves_no_module(folder):
    (folder / "odd.py").write_text("x = [][0]\n")
    before = set(sys.modules)
    with pytest.raises(IndexError):
        load("odd.py:f")
    assert set(sys.modules) == before


def test_a_file_without_a_function_asks_for_one():
    with pytest.raises(SpecError, match=r"name the function too .* photos\.py:FUNCTION"):
        discover().benchmark("photos.py")
    assert file_of("a.b:c") is None and str(file_of("a/b.py:c")) == "a/b.py"
