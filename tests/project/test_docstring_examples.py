"""The examples in docstrings run and print what they say."""

import doctest
import importlib

import pytest
from helpers import ROOT

FILES = [path for folder in (ROOT, ROOT / "plugins") for path in sorted(folder.glob("clbench*/**/*.py"))
         if ">>> " in path.read_text(encoding="utf-8")]


def name_module(path):
    """Return the name of the module in a file."""
    root = ROOT / "plugins" if ROOT / "plugins" in path.parents else ROOT
    return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.parametrize("module", list(map(name_module, FILES)))
def test_the_examples_in_a_docstring_print_what_they_say(module):
    assert doctest.testmod(importlib.import_module(module)).failed == 0


def test_there_are_examples():
    assert len(FILES) > 30
