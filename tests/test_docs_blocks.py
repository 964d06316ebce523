"""Every code block of README and docs/ is run, or says why it is not (tests/doc_blocks.py)."""

import shutil
from functools import partial

import click
import pytest
from doc_blocks import PAGES, ROOT, Block, blocks, commands, follow, small_run

from clbench import api
from clbench.errors import ClbenchError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Stand in a new folder that has the experiments of benchmarks/, where `clbench.run` has a small budget."""
    (tmp_path / "benchmarks").mkdir()
    for path in (ROOT / "benchmarks").glob("*.toml"):
        shutil.copy(path, tmp_path / "benchmarks")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["clbench"])
    monkeypatch.setattr(api, "run", partial(small_run, api.run))
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "1")
    return tmp_path


@pytest.mark.parametrize("page", PAGES)
def test_the_blocks_of_a_page(page, folder):
    for block in blocks((ROOT / page).read_text()):
        try:
            follow(block)
        except (Exception, SystemExit) as error:
            raise AssertionError(f"{page}, line {block.line}: {type(error).__name__}: {error}") from error
