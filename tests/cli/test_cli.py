import re
import subprocess
import sys
from importlib.metadata import version

import pytest

from clbench import cli


def run(capsys, *args):
    code = cli.call(args)
    out, err = capsys.readouterr()
    return code, out, err


def test_help_imports_nothing_heavy():
    command = [sys.executable, "-X", "importtime", "-m", "clbench", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    loaded = set(re.findall(r"\|\s+(\w+)", done.stderr))
    assert not loaded & {"torch", "pydantic", "rich", "tabulate", "numpy", "avalanche"}
    assert re.findall(r"^  (\w[\w-]*)  +[A-Z]", done.stdout, re.MULTILINE) == list(cli.COMMANDS)


def test_the_version_is_that_of_the_distribution(capsys):
    assert run(capsys, "--version") == (0, f"clbench, version {version('clbench')}\n", "")


def test_main_exits_with_the_code():
    with pytest.raises(SystemExit) as caught:
        cli.main(["run"])
    assert caught.value.code == 2


def test_a_mistyped_command_gets_its_near_name(capsys):
    assert run(capsys, "methds") == (
        2, "", "Error: no command 'methds'; did you mean 'methods'? (clbench --help lists all)\n")


def test_a_mistyped_flag_is_one_line(capsys):
    code, out, err = run(capsys, "run", "--metods", "lora")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("Error: No such option")
    assert "--methods" in err


def test_no_command_shows_the_help(capsys):
    code, _, err = run(capsys)
    assert code == 2
    assert "clbench run --methods lora,ewc" in err


def test_ctrl_c_outside_a_run_is_no_traceback(capsys, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("clbench.core.registry.discover", interrupted)
    code, out, err = run(capsys, "methods")
    assert (code, out, err.strip()) == (130, "", "interrupted")


def test_a_bug_shows_its_traceback(monkeypatch):
    def broken(*args, **kwargs):
        raise ZeroDivisionError

    monkeypatch.setattr("clbench.core.registry.discover", broken)
    with pytest.raises(ZeroDivisionError):
        cli.call(["methods"])
