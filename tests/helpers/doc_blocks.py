"""The code blocks of a page of the documentation, and what is done with them.

A page's blocks are run in order, in one folder, as a reader would who tries all of them. Of commands that train, only
the budget is cut (`SMALL`); everything else is as written. A comment before a block changes that:

    <!-- file: NAME -->         the block is that file; it is written, and not run; the commands that a pyproject.toml
                                declares are there from then on, as if it had been installed
    <!-- not run: REASON -->    Python is compiled; a command's arguments are read, and those of commands with --dry-run
                                are planned with it
"""

import importlib.util
import json
import os
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import click
from markdown_it import MarkdownIt

from clbench import cli
from clbench.cli.data import DataGroup
from clbench.core.compat import tomllib
from clbench.core.registry import discover
from clbench.experiment import references, spec
from clbench.experiment.plan import plan
from helpers import ROOT

PAGES = ["README.md", "CONTRIBUTING.md", *sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs").rglob("*.md"))]
SMALL = {"epochs": None, "iterations": 3, "seeds": 1, "workers": 0, "threads": 1, "device": "cpu"}
SHELL, SILENT = ("bash", "sh"), ("text",)
MARK = re.compile(r"<!-- (file|not run): (.+?) -->")


@dataclass(frozen=True)
class Block:
    """A code block: its language, text and line, and what the comment before it says."""

    language: str
    text: str
    line: int
    file: str = ""
    not_run: str = ""


def blocks(text):
    """Return the code blocks of a page; indented ones are commands, and `{directives}` are no code."""
    found, marks = [], {}
    for token in MarkdownIt("commonmark").parse(text):
        if token.type in ("fence", "code_block"):
            language = token.info.strip() if token.type == "fence" else SHELL[0]
            if not language.startswith("{"):
                found.append(Block(language, token.content, token.map[0] + 1, marks.get("file", ""),
                                   marks.get("not run", "")))
        marks = dict(MARK.findall(token.content)) if token.type == "html_block" else {}
    return found


def commands(text):
    """Return the commands of a shell block as lists of words: lines and what `&&` joins apart, comments left out."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.shlex(os.path.expandvars(line), posix=True, punctuation_chars="&")
        words.whitespace_split = True
        part = []
        for word in [*words, "&&"]:
            if word != "&&":
                part.append(word)
            elif part:
                found.append(part)
                part = []
    return found


def follow(block):
    """Do with a block, in the current folder, what a reader would."""
    if block.file:
        Path(block.file).write_text(block.text)
        if block.file == "pyproject.toml":
            install_commands(tomllib.loads(block.text)["project"])
    if block.language in SHELL:
        for words in commands(block.text):
            if words[0] == "clbench":
                follow_command(words[1:], bool(block.not_run))
            else:
                assert block.not_run, f"{words[0]} is not run here: mark the block and say why"
    elif block.language == "python":
        code = compile(block.text, block.file or "<block>", "exec")
        if not (block.file or block.not_run):
            exec(code, {"__name__": "__main__"})
    elif block.language == "toml":
        check_toml(block.text)
    elif block.language == "json":
        json.loads(block.text)
    else:
        assert block.language in SILENT, f"{block.language or 'no language'}: say what it is: text, bash, python, toml"


def follow_command(words, not_run):
    """Run a command in this process with a small budget, or see that it could be run."""
    command, name = cli.group, "clbench"
    while isinstance(command, click.Group):
        words = command.complete_args(words) if isinstance(command, DataGroup) else words
        assert words, f"{name}: which command?"
        name, found, words = f"{name} {words[0]}", command.get_command(click.Context(command), words[0]), words[1:]
        assert found is not None, f"no command {name}"
        command = found
    with command.make_context(name, list(words)) as context:
        given = context.params
        if not_run:
            if "dry_run" not in given:
                return
            given["dry_run"] = True
            stand_in(given)
        else:
            given |= {key: value for key, value in SMALL.items() if key in given}
        code = command.invoke(context)
        assert not code, f"{name} {shlex.join(words)}: exit code {code}"


def stand_in(given):
    """Put files in place that a command needs and earlier commands, which were not run, would have made."""
    if (path := given.get("spec")) and not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text((ROOT / "benchmarks/split_mnist_5k.toml").read_text())
    if path and (fetched := tomllib.loads(path.read_text()).get("weights")) and not Path(fetched).exists():
        Path(fetched).parent.mkdir(parents=True, exist_ok=True)
        Path(fetched).write_bytes(b"stand-in")
    for place in (given.get("places") or ("runs",)) if "places" in given else ():  # of clbench gc
        Path(place).mkdir(parents=True, exist_ok=True)
    for name, stand in (("a", "hsu"), ("b", "van_de_ven")):  # of clbench explain
        if isinstance(path := given.get(name), Path) and not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text((ROOT / f"benchmarks/explain/{stand}.toml").read_text())
    if (weights := given.get("weights")) and Path(weights).suffix and not Path(weights).exists():
        Path(weights).parent.mkdir(parents=True, exist_ok=True)
        Path(weights).write_bytes(b"stand-in")
    if "plugins" in given:  # which the reader would have installed by then
        given["plugins"] = given["plugins"] or tuple(Path().glob("clbench_*.py"))


def install_commands(project):
    """Lay what pip would of a distribution's commands into the current folder, which is to be on the path."""
    folder = Path(f"{project['name'].replace('-', '_')}-{project['version']}.dist-info")
    folder.mkdir()
    (folder / "entry_points.txt").write_text("\n".join(["[clbench.commands]", *(
        f"{name} = {value}" for name, value in project["entry-points"].get("clbench.commands", {}).items())]))
    cli.group.__dict__.pop("of_plugins", None)  # what was installed before


def check_toml(text):
    """See that TOML is a valid experiment, reference or distribution."""
    values = tomllib.loads(text)
    if "build-system" in values:
        assert importlib.util.find_spec(values["build-system"]["build-backend"])
        assert any(values["project"]["entry-points"].get(group) for group in ("clbench", "clbench.commands"))
    elif "cells" in values:
        reference = references.Reference.model_validate(values)
        assert all(reference.plan(reference.cells, discover()))
    else:
        assert plan(spec.build(values), discover())


def small_run(run, *args, **settings):
    """Call `clbench.run` with a small budget."""
    return run(*args, **{**{k: v for k, v in settings.items() if k != "epochs"}, **SMALL})
