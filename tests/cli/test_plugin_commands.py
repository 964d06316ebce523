"""Commands that plugins bring by entry points of the group `clbench.commands`."""

import re
import subprocess
import sys

import pytest
from helpers.hostile import write_distribution

from clbench import cli

MODULE = """
import click

@click.command()
@click.argument("text")
@click.option("--fail", is_flag=True)
def shout(text, fail):
    '''Print a text in capitals.'''
    click.echo(text.upper())
    return 1 if fail else 0

def function():
    pass
"""
COMMANDS = {"shout": "clbench_shout:shout", "absent": "clbench_shout:absent", "function": "clbench_shout:function",
            "nowhere": "clbench_nowhere.commands:group", "raises": "clbench_raises:command",
            "leaves": "clbench_leaves:command", "run": "clbench_shout:shout"}


@pytest.fixture(autouse=True)
def installed(tmp_path, monkeypatch):
    """Install a plugin with good and bad commands, and forget what was installed before and after."""
    write_distribution(tmp_path, "shout", [], commands=COMMANDS, clbench_shout=MODULE,
                       clbench_raises="raise RuntimeError('two\\nlines')", clbench_leaves="import sys\nsys.exit(3)")
    monkeypatch.syspath_prepend(tmp_path)
    cli.group.__dict__.pop("plugin_commands", None)
    yield tmp_path
    cli.group.__dict__.pop("plugin_commands", None)
    sys.modules.pop("clbench_shout", None)


def call(capsys, *args):
    code = cli.call(args)
    out, err = capsys.readouterr()
    return code, out, err


def test_they_are_listed_with_their_plugin_and_none_is_loaded(installed):
    code = ("import sys\nfrom clbench import cli\nassert cli.call(['--help']) == 0\n"
            "print([m for m in sys.modules if m.startswith('clbench_')])")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                          env={"PYTHONPATH": f"{installed}:{':'.join(filter(None, sys.path))}"})
    own, of_plugins = done.stdout.split("\nCommands of plugins:\n")
    lines = [line.strip() for line in of_plugins.splitlines()]
    assert "shout     of clbench_shout; see clbench shout --help" in lines
    assert "nowhere   of clbench_nowhere; see clbench nowhere --help" in lines
    assert "adapters  of clbench_lora; see clbench adapters --help" in lines
    assert lines[-1] == "[]"
    assert "\n  run         Run an experiment and compare its methods.\n" in own


def test_one_is_run_and_has_help_of_its_own(capsys):
    assert call(capsys, "shout", "hello") == (0, "HELLO\n", "")
    assert call(capsys, "shout", "hello", "--fail") == (1, "HELLO\n", "")
    code, out, err = call(capsys, "shout", "--help")
    assert (code, err) == (0, "")
    assert "clbench shout [OPTIONS] TEXT" in out and "Print a text in capitals." in out
    assert call(capsys, "shout")[::2] == (2, "Error: Missing argument 'TEXT'.\n")
    assert call(capsys, "shuot")[2] == "Error: no command 'shuot'; did you mean 'shout'? (clbench --help lists all)\n"


def test_none_takes_the_place_of_a_command_of_clbench(capsys):
    assert "Run an experiment" in call(capsys, "run", "--help")[1]


@pytest.mark.parametrize(("name", "words"), [
    ("absent", "cannot load clbench_shout:absent: module 'clbench_shout' has no attribute 'absent'"),
    ("nowhere", "cannot load clbench_nowhere.commands:group: No module named 'clbench_nowhere'"),
    ("raises", "cannot load clbench_raises:command: RuntimeError: two lines (PLACE)"),
    ("leaves", "cannot load clbench_leaves:command: SystemExit: 3 (PLACE)"),
    ("function", "clbench_shout:function is a function, not a click.Command"),
])
@pytest.mark.parametrize("args", [[], ["--help"]])
def test_a_broken_one_is_one_line(name, words, args, capsys):
    code, out, err = call(capsys, name, *args)
    assert (code, out) == (2, "")
    assert re.sub(r"\(\S*/clbench_\w+\.py:[12]\)", "(PLACE)", err) == f"Error: command {name!r}: {words}\n"


@pytest.mark.parametrize("patterns", ["shout", "clbench_shout", "clbench_s*"])
def test_one_that_is_disabled_is_not_there(patterns, capsys, monkeypatch):
    monkeypatch.setenv("CLBENCH_DISABLE_PLUGINS", patterns)
    assert "clbench shout --help" not in call(capsys, "--help")[1]
    assert call(capsys, "shout", "hello")[::2] == (2, "Error: no command 'shout' (clbench --help lists all)\n")
