"""Extract the code blocks of a page of the documentation, and run them.

The blocks of a page run in order and in one folder, like those of a reader who tries all of them. Commands that train
get a small budget (`SMALL`); everything else runs as written. A comment before a block changes that:

    <!-- file: NAME -->         the block is written to that file and not run; later blocks can use the commands that a
                                pyproject.toml declares, as if the package had been installed
    <!-- not run: REASON -->    Python is only compiled; the arguments of a command are only parsed, and a command that
                                has --dry-run runs with it
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
from helpers import ROOT, extras

PAGES = ["README.md", "CONTRIBUTING.md", *sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs").rglob("*.md"))]
SMALL = {"epochs": None, "iterations": 3, "seeds": 1, "workers": 0, "threads": 1, "device": "cpu"}
SHELL, SILENT = ("bash", "sh"), ("text",)
MARK = re.compile(r"<!-- (file|not run): (.+?) -->")


@dataclass(frozen=True)
class Block:
    """A code block: its language, its text, its line and the comment before it."""

    language: str
    text: str
    line: int
    file: str = ""
    not_run: str = ""


def blocks(text):
    """Return the code blocks of a page. Indented blocks are commands; `{directives}` are skipped."""
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
    """Return the commands of a shell block as lists of words, split at line ends and at `&&`, without comments."""
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
    """Run a block, or write its file, in the current folder, as a reader would."""
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
    """Run a command in this process with a small budget; if it is not to be run, check that its arguments are valid."""
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
            if "dry_run" not in given or (name == "clbench tune" and extras.missing("tune")):
                return
            given["dry_run"] = True
            stand_in(given)
        else:
            given |= {key: value for key, value in SMALL.items() if key in given}
        code = command.invoke(context)
        assert not code, f"{name} {shlex.join(words)}: exit code {code}"


def stand_in(given):
    """Create the files that a command needs and that earlier commands would have written if they had run."""
    if (path := given.get("spec") or given.get("source")) and not path.exists():
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
    if "plugins" in given:  # the reader would have installed them by now
        given["plugins"] = given["plugins"] or tuple(Path().glob("clbench_*.py"))


def install_commands(project):
    """Write the entry points of a distribution's commands as pip does; the current folder must be on the path."""
    folder = Path(f"{project['name'].replace('-', '_')}-{project['version']}.dist-info")
    folder.mkdir()
    (folder / "entry_points.txt").write_text("\n".join(["[clbench.commands]", *(
        f"{name} = {value}" for name, value in project["entry-points"].get("clbench.commands", {}).items())]))
    cli.group.__dict__.pop("plugin_commands", None)  # cache of the commands installed so far


def check_toml(text):
    """Check that TOML text is a valid experiment, reference or distribution."""
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
