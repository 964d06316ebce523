"""A script without clbench recomputes the committed tables from the records, and every cell agrees."""

import importlib

import pytest
from helpers import ROOT

FOLDERS = [ROOT / "reports/newsgroups", *sorted(p.parent for p in ROOT.glob("reports/lora_question/*/records"))]


@pytest.fixture(scope="module")
def check():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        return importlib.import_module("recompute").check


def with_marks(folder):
    marks = [pytest.mark.slow] if len(list(folder.glob("records/*.json"))) > 100 else []
    return pytest.param(folder, marks=marks, id=folder.name)


@pytest.mark.parametrize("folder", [with_marks(folder) for folder in FOLDERS])
def test_every_cell_of_a_study_agrees(check, folder):
    cells = check(folder)
    assert len(cells) > 5 and [cell for cell in cells if cell] == []


def test_it_is_short_and_uses_nothing_of_clbench():
    text, samples = ((ROOT / f"benchmarks/{name}.py").read_text() for name in ("recompute", "recompute_samples"))
    assert len(text.splitlines()) <= 100 and "clbench import" not in text + samples
    assert "import clbench" not in text + samples
