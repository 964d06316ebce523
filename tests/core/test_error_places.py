import types

import pytest

from clbench.core.entry_points import package_of, resolve
from clbench.core.errors import PluginError
from clbench.core.user_code import format_error, place, users_place


def caught(call):
    try:
        call()
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


def run(file, text, name="mine"):
    """Run text as if it were in a file, and return what it raises."""
    code = compile(text, str(file), "exec")
    error = caught(lambda: exec(code, {"__name__": name}))
    return error.with_traceback(error.__traceback__.tb_next.tb_next)  # without the frames of this file


def test_the_place_is_the_deepest_line_of_the_users_code_not_of_a_library(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    error = run(tmp_path / "mine.py", "import json\ndef read():\n    return json.loads('{')\nread()\n")
    assert place(error) == users_place(error) == "mine.py:3 in read"
    assert format_error(error).startswith("JSONDecodeError: Expecting property name")
    assert format_error(error).endswith("in read)")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    assert place(error) == f"{tmp_path}/mine.py:3 in read"


def test_an_installed_package_is_a_library_unless_it_is_the_plugins_own(tmp_path):
    installed = tmp_path / "site-packages" / "shout" / "loud.py"
    error = run(tmp_path / "mine.py", "1 / 0\n")
    assert place(error) == f"{tmp_path}/mine.py:1"  # the file's own level has no function
    error = run(installed, "def f():\n    return [][0]\nf()\n", "shout.loud")
    assert users_place(error, "other") == ""
    assert place(error) == f"{installed}:2 in f"  # the deepest, as there is nothing else
    assert users_place(error, "shout") == f"{installed}:2 in f"


def test_what_clbench_raises_is_never_the_users(tmp_path):
    error = caught(lambda: resolve("clbench.core.errors:absent", "x"))
    text = "from clbench.core.seeds import generator\ngenerator()\n"
    assert users_place(run(tmp_path / "mine.py", text), "clbench") == f"{tmp_path}/mine.py:2"
    assert "entry_points.py" not in str(error)


def test_a_file_that_cannot_be_compiled_names_its_line():
    error = caught(lambda: compile("x = 1\ndef f(:\n", "odd.py", "exec"))
    assert format_error(error) == "SyntaxError: invalid syntax (odd.py:2)"


def test_an_error_without_frames_or_words_is_its_name():
    assert format_error(ValueError("odd")) == "ValueError: odd"
    assert format_error(ValueError()) == "ValueError"


def test_what_a_declaration_names_is_loaded_or_the_line_that_breaks_is_told(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "shout_breaks.py").write_text("x = 1\nraise KeyError('volume')\n")
    with pytest.raises(PluginError, match=r"method 'shout': cannot load shout_breaks:S: KeyError: 'volume' "
                                          r"\(\S*shout_breaks.py:2\)"):
        resolve("shout_breaks:S", "method 'shout'")
    assert package_of("a.b:c") == "a" and package_of(types.SimpleNamespace) == "types"
