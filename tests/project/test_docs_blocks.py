"""Every code block of README and docs/ is run, or says why it is not (tests/doc_blocks.py)."""

import re
import shutil
from functools import partial

import pytest
from helpers.doc_blocks import PAGES, ROOT, blocks, commands, follow, small_run

import clbench
from clbench import cli


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Stand in a new folder that has the experiments of benchmarks/, where `clbench.run` has a small budget."""
    (tmp_path / "benchmarks").mkdir()
    for path in (ROOT / "benchmarks").glob("*.toml"):
        shutil.copy(path, tmp_path / "benchmarks")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("sys.argv", ["clbench"])
    monkeypatch.setattr(clbench, "run", partial(small_run, clbench.run))
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "1")
    (tmp_path / "model.safetensors").write_bytes(b"stand-in")  # for the weights that a model of text brings
    (tmp_path / "vit_b16.safetensors").write_bytes(b"stand-in")  # for those that references want
    monkeypatch.setattr("clbench.models.hf_files.weights_of", lambda name: tmp_path / "model.safetensors")
    monkeypatch.setattr("clbench.models.published.find_in_hub", lambda *_: tmp_path / "model.safetensors")
    # What a dry run says of costs is tested elsewhere; here it would count every method on a ViT-S, for minutes.
    monkeypatch.setattr("clbench.cli.forecasts.forecasts", lambda _: ({}, []))
    yield tmp_path
    cli.group.__dict__.pop("plugin_commands", None)


# Pages whose blocks train for seconds.
LONG = {f"docs/{name}.md" for name in ("adapters", "api", "avalanche", "error-analysis", "fair-comparison", "metrics",
                                       "plugins", "save-models", "study-files", "tutorial", "tutorial-method",
                                       "writing-a-strategy")}


@pytest.mark.parametrize("page", [pytest.param(page, marks=pytest.mark.slow if page in LONG else ()) for page in PAGES])
def test_the_blocks_of_a_page(page, folder):
    for block in blocks((ROOT / page).read_text()):
        try:
            follow(block)
        except (Exception, SystemExit) as error:
            raise AssertionError(f"{page}, line {block.line}: {type(error).__name__}: {error}") from error


def test_what_is_a_block():
    found = blocks("Text\n\n<!-- not run: needs a GPU -->\n    clbench run\n\n"
                   "<!-- file: a.py -->\n```python\nx = 1\n```\n\n"
                   "<!-- a remark -->\n```text\nlisting\n```\n\n```{toctree}\nindex\n```\n")
    assert [(b.language, b.text, b.file, b.not_run, b.line) for b in found] == [
        ("bash", "clbench run\n", "", "needs a GPU", 4), ("python", "x = 1\n", "a.py", "", 7),
        ("text", "listing\n", "", "", 12)]


def test_what_is_a_command(monkeypatch):
    monkeypatch.setenv("PART", "2")
    text = "#!/bin/bash\ncd runs && clbench run a.toml \\\n  --shard $PART/8   # a part\n\nclbench methods"
    assert commands(text) == [
        ["cd", "runs"], ["clbench", "run", "a.toml", "--shard", "2/8"], ["clbench", "methods"]]


def no_option(name):
    """Return what click says of an option that there is not, in the wording of 8.2 or of later releases."""
    return re.compile(rf"No such option:? '?--{name}\b")


@pytest.mark.parametrize(("page", "words"), [
    ("    clbench rum --methods lora", "no command clbench rum"),
    ("    clbench run --method lora", no_option("method")),
    ("    clbench run --methods lorra", "no method 'lorra'"),
    ("    clbench diff --json runs/a runs/b", no_option("json")),
    ("    clbench verify --dry-run no-such-reference", "no reference 'no-such-reference'"),
    ("    make install", "make is not run here"),
    ("```\nclbench run\n```", "no language"),
    ("```python\n1 / 0\n```", "division by zero"),
    ("```toml\nmethods = ['lora']\nseed = 3\n```", "no key 'seed'"),
    ("```toml\nmethods = ['lora:rank=0']\n```", "lora.rank: should be greater than or equal to 1"),
    ("<!-- not run: data -->\n    clbench run --methods lora:rnk=3 --benchmark split-cifar100", "no option 'rnk'"),
    ("<!-- not run: hours -->\n    clbench tune study.toml --trial 3", no_option("trial")),
    ("<!-- not run: a GPU -->\n```python\nfor\n```", "invalid syntax"),
])
def test_a_block_that_is_wrong_is_found(page, words, folder):
    block, = blocks(page)
    with pytest.raises((Exception, SystemExit), match=words if isinstance(words, re.Pattern) else re.escape(words)):
        follow(block)
