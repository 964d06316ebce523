import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

import clbench
from clbench.core import identity
from clbench.core.identity import hash_source

CODE = '''
"""What it is."""
import torch

class Half(torch.nn.Module):
    """Halves."""

    def loss(self, batch, *, by: float = 1.0):
        """Say how."""
        return super().loss(batch) * by
'''
SAME = '''# a comment
import torch
class Half(torch.nn.Module):
    def loss(self, batch, *,
             by: float=1.0):
        pass
        return (super().loss(batch)
                * by)   # all of it
'''


def test_comments_layout_and_docstrings_do_not_count():
    assert hash_source(CODE.encode()) == hash_source(SAME.encode()) == hash_source(SAME.replace("\n", "\r\n").encode())


@pytest.mark.parametrize(("old", "new"), [
    ("* by", "* 0"), ("1.0", "1"), ("* by", "/ by"), ("batch, *,", "batch,"), ("Half", "Whole"), (": float", ""),
    ("return ", ""), ("import torch", "import torch as t"), ("super().loss(batch)", "super().loss(batch, None)"),
])
def test_what_code_does_counts(old, new):
    changed = CODE.replace(old, new)
    assert changed != CODE and hash_source(changed.encode()) != hash_source(CODE.encode())


def test_texts_that_are_used_count():
    assert hash_source(b"x = 'a'") != hash_source(b"x = 'b'") != hash_source(b"x = b'b'")
    assert hash_source(b"f(1)") != hash_source(b"f(True)") != hash_source(b"f(None)") != hash_source(b"f()")


def test_fields_of_later_pythons_do_not_count_while_they_are_empty(monkeypatch):
    import ast

    parse, before = ast.parse, hash_source(CODE.encode())

    def later(source):
        tree = parse(source)
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef | ast.FunctionDef):
                kind = type(node)
                new = type(kind.__name__, (kind,), {"_fields": (*kind._fields, "params_to_come", "mark_to_come")})
                node.__class__ = new
                node.params_to_come, node.mark_to_come = [], None
        return tree

    monkeypatch.setattr(ast, "parse", later)
    assert hash_source(CODE.encode()) == before


def pythons():
    """Return other interpreters that are on this machine."""
    places = [*map(Path, os.environ.get("PATH", "").split(os.pathsep)), *Path.home().glob(".pyenv/versions/*/bin")]
    found = {}
    for minor in range(10, 16):
        for place in places:
            path = place / f"python3.{minor}"
            if minor != sys.version_info.minor and "shims" not in path.parts and os.access(path, os.X_OK):
                found.setdefault(minor, path)
    return list(found.values())


@pytest.mark.parametrize("python", pythons(), ids=lambda path: path.name)
def test_all_pythons_agree(python):
    """On real code, and on what their parsers are known to read in different ways."""
    files = [Path(clbench.__file__).parent / "core" / name for name in ("identity.py", "options.py", "registry.py")]
    texts = [*(path.read_text() for path in files), CODE,
             "f'{x:}{y!r:>{width}}{z=}' 'a' rf'\\d{1:02}'", "x = '\\U0001fae9\\u0378', u'a', 1e300, 2j, ..., b'\\xff'",
             "async def f(*a, k=None, **b): return {**a, 1: [*b]}\nmatch x:\n case {'a': [1, *_], **r}: pass"]
    script = ("import importlib.util, sys\n"
              f"spec = importlib.util.spec_from_file_location('identity', {identity.__file__!r})\n"
              "module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module)\n"
              f"print([module.hash_source(t.encode()) for t in {texts!r}])")
    done = subprocess.run([python, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == repr([hash_source(t.encode()) for t in texts])


@pytest.fixture
def package(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    folder = tmp_path / "a_package_of_mine"
    (folder / "inner").mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (folder / "inner" / "code.py").write_text(CODE)
    (folder / "options.json").write_text("{}")
    yield folder
    for name in [n for n in sys.modules if n.startswith(folder.name)]:
        del sys.modules[name]


def test_a_package_is_its_code_and_its_data_and_not_its_documents(package):
    def now():
        return identity.hash_of("a_package_of_mine")

    first = now()
    (package / "README.md").write_text("words")
    (package / "inner" / "__pycache__").mkdir()
    (package / "inner" / "__pycache__" / "code.pyc").write_bytes(b"made")
    (package / "inner" / "code.py").write_text(SAME)
    (package / "runs" / "one" / "records").mkdir(parents=True)
    (package / "runs" / "one" / "report.md").write_text("results of running it")
    assert now() == first
    (package / "options.json").write_text("{ }")
    other = now()
    (package / "inner" / "code.py").rename(package / "inner" / "renamed.py")
    assert len({first, other, now()}) == 3
    assert "a_package_of_mine" not in sys.modules  # nothing was imported


def test_a_link_to_a_file_that_does_not_exist_does_not_count(package):
    before = identity.hash_of("a_package_of_mine")
    (package / "weights.bin").symlink_to(package / "unplugged" / "weights.bin")
    assert identity.hash_of("a_package_of_mine") == before


def test_source_that_is_no_python_counts_by_its_bytes(package):
    hashes = set()
    for text in ("print 'one'", "print 'one' ", "x = (" * 300):
        (package / "inner" / "code.py").write_text(text)
        hashes.add(identity.hash_of("a_package_of_mine"))
    assert len(hashes) == 3


def test_of_a_large_file_both_ends_count(package, monkeypatch):
    monkeypatch.setattr(identity, "LARGE", 100)
    monkeypatch.setattr(identity, "END", 10)
    hashes = []
    for content in (b"a" * 200, b"a" * 199 + b"b", b"b" + b"a" * 199, b"a" * 201):
        (package / "weights.bin").write_bytes(content)
        hashes.append(identity.hash_of("a_package_of_mine"))
    assert len(set(hashes)) == 4


def test_a_module_in_a_plain_folder_is_the_python_files_beside_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "trials_of_mine" / "inner").mkdir(parents=True)
    (tmp_path / "trials_of_mine" / "streams.py").write_text("x = 1")
    (tmp_path / "alone_of_mine.py").write_text("x = 1")
    assert identity.package_of("trials_of_mine.streams") == "trials_of_mine"
    assert identity.package_of("alone_of_mine") == "alone_of_mine"
    assert identity.package_of("clbench.data.stream_cache") == "clbench"
    first = identity.hash_of("trials_of_mine")
    (tmp_path / "trials_of_mine" / "notes.txt").write_text("lies there")
    (tmp_path / "trials_of_mine" / "inner" / "other.py").write_text("x = 2")
    assert identity.hash_of("trials_of_mine") == first
    (tmp_path / "trials_of_mine" / "beside.py").write_text("x = 2")
    assert identity.hash_of("trials_of_mine") != first


def test_a_process_keeps_what_it_has_imported(package, monkeypatch):
    first = identity.hash_running("a_package_of_mine")  # before it is imported
    monkeypatch.setitem(sys.modules, "a_package_of_mine", module := types.ModuleType("a_package_of_mine"))
    module.__path__ = [str(package)]
    (package / "inner" / "code.py").write_text(CODE.replace("* by", "* 0"))
    assert identity.hash_running("a_package_of_mine") == first != identity.hash_of("a_package_of_mine")
    assert identity.list_edited("a_package_of_mine") == ["a_package_of_mine"]
    (package / "inner" / "code.py").write_text(SAME)
    assert identity.list_edited("a_package_of_mine") == []
    (package / "inner" / "code.py").write_text(CODE.replace("* by", "* 0"))
    again = types.ModuleType("a_package_of_mine")
    again.__path__ = [str(package)]
    monkeypatch.setitem(sys.modules, "a_package_of_mine", again)
    assert identity.hash_running("a_package_of_mine") == identity.hash_of("a_package_of_mine") != first


def test_code_that_was_edited_before_it_was_read_is_no_code_that_is_known(package, monkeypatch):
    monkeypatch.setitem(sys.modules, "a_package_of_mine", module := types.ModuleType("a_package_of_mine"))
    module.__path__ = [str(package)]
    identity.note("a_package_of_mine")
    (package / "inner" / "code.py").write_text(CODE.replace("* by", "* 12345"))
    assert identity.hash_running("a_package_of_mine") != identity.hash_of("a_package_of_mine")
