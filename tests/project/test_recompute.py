"""A script without clbench recomputes the committed tables from the records, and every cell agrees."""

import importlib
import re

import pytest
from helpers import ROOT

FOLDERS = [ROOT / "reports/newsgroups", *sorted(p.parent for p in ROOT.glob("reports/lora_question/*/records"))]


@pytest.fixture(scope="module")
def check():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        return importlib.import_module("recompute_samples").check


def with_marks(folder):
    marks = [pytest.mark.slow] if len(list(folder.glob("records/*.json"))) > 100 else []
    return pytest.param(folder, marks=marks, id=folder.name)


@pytest.mark.parametrize("folder", [with_marks(folder) for folder in FOLDERS])
def test_every_cell_of_a_study_agrees(check, folder):
    cells = check(folder)
    assert len(cells) > 5 and [cell for cell in cells if cell] == []


@pytest.mark.slow
def test_the_short_script_alone_recomputes_the_study_of_lora_and_its_rivals(check):
    cells = importlib.import_module("recompute").check(ROOT / "reports/lora_question/answer")
    assert len(cells) > 100 and not any(cells)


def test_it_is_short_and_uses_nothing_of_clbench():
    text = (ROOT / "benchmarks/recompute.py").read_text()
    assert len(text.splitlines()) <= 100 and "import clbench" not in text and "from clbench" not in text
    assert not re.search("^(from|import) (clbench|recompute)", text, re.M)


def test_its_extension_uses_nothing_of_clbench():
    assert not re.search("^(from|import) clbench", (ROOT / "benchmarks/recompute_samples.py").read_text(), re.M)
