import re
import subprocess
import sys
from importlib.metadata import version

import click
import pytest

from clbench import cli
from clbench.experiment.recipe import Recipe


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
    assert run(capsys, "--methods", "naive") == (
        2, "", "Error: --methods is an option of a command: name the command first, as in clbench run --methods "
        "lora,ewc (clbench --help lists all)\n")


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


COMMON = ["--methods", "--benchmark", "--scenario", "--model", "--weights", "--seeds", "--set", "--epochs",
          "--batch-size", "--lr", "--device", "--out", "--data", "--workers", "--dry-run"]


def options_in(text):
    """Return the options that a help text explains."""
    return [line.split()[0] for line in text.splitlines() if line.startswith("  -")]


def test_help_of_run_shows_fifteen_options_and_how_to_see_all(capsys):
    assert cli.call(["run", "--help"]) == 0
    *options, last = options_in(capsys.readouterr().out)
    assert options == [*COMMON, "--help-all"] and last in ("-h,", "--help")  # click keeps the first one that was asked


@pytest.mark.parametrize("name", ["run", "tune", "verify", "explain", "pretrain"])
def test_help_all_shows_every_option(name, capsys):
    command = cli.group.get_command(click.Context(cli.group), name)
    options = [p for p in command.params if isinstance(p, click.Option) and not p.hidden]
    assert command.common <= {option.name for option in options}  # a name that is no option would hide one
    assert cli.call([name, "--help-all"]) == 0
    text = capsys.readouterr().out
    assert {option.opts[0] for option in options} <= set(text.split())
    assert len(options_in(text)) == len(options) + 1
    assert cli.call([name, "--help"]) == 0
    short = capsys.readouterr().out
    assert f"Show all {len(options) + 1} options and exit." in " ".join(short.split())
    assert len(options_in(short)) == len(command.common) + 2 < len(options_in(text))


def test_help_groups_the_files_of_forget_and_gives_true_defaults(capsys):
    assert cli.call(["forget", "--help"]) == 0
    text = capsys.readouterr().out
    assert text.index("What is run") < text.index("--general FILE") < text.index("Where and how it runs")
    for name, option, default in (("run", "--general", "[default: none]"), ("explain", "--general", "[default: none]"),
                                  ("continue", "--lr-per", "[default: the batch size]")):
        command = cli.group.get_command(click.Context(cli.group), name)
        help_text, = (p.help for p in command.params if option in p.opts)
        assert help_text.endswith(default)


def test_help_all_needs_no_other_argument_and_runs_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.call(["run", "--methods", "naive", "--help-all"]) == 0
    assert "--evaluate-every" in capsys.readouterr().out and not list(tmp_path.iterdir())


def commands(group, context):
    """Yield every command below a group."""
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        yield from commands(command, context) if isinstance(command, click.Group) else [command]


def test_a_command_with_more_than_20_options_has_a_short_help_and_each_text_begins_with_a_noun_or_a_verb():
    wrong = {"a", "an", "the", "of", "as", "where", "what", "which", "whose", "how", "whether", "auto", "no", "its"}
    for command in commands(cli.group, click.Context(cli.group)):
        options = [p for p in command.params if isinstance(p, click.Option) and not p.hidden]
        assert len(options) <= 20 or command.common, command.name
        for option in options:
            first = option.help.split()[0].lower().rstrip(",;:(")
            assert first not in wrong, f"clbench {command.name} {option.opts[0]}: {option.help}"


def test_options_of_a_recipe_say_nothing_unless_given():
    command = cli.group.get_command(click.Context(cli.group), "run")
    plain = command.make_context("run", ["--methods", "naive"]).params
    assert {name: plain[name] for name in Recipe.model_fields} == dict.fromkeys(Recipe.model_fields)
    assert plain["online"] is None
    given = command.make_context("run", ["--methods", "naive", "--milestones", "0.5,0.8", "--max-grad-norm", "2"])
    assert (given.params["milestones"], given.params["max_grad_norm"]) == ([0.5, 0.8], 2.0)
