import json
from importlib.metadata import version

import pytest
from helpers.hostile import write_distribution

from clbench import cli
from clbench.core.options import document
from clbench.core.registry import discover


@pytest.mark.parametrize(("command", "attribute"), [("methods", "strategies"), ("benchmarks", "benchmarks"),
                                                    ("models", "models")])
def test_everything_is_listed_with_every_option(command, attribute, capsys):
    registry = discover()
    named, patterns = getattr(registry, attribute), registry.patterns.get(command[:-1], {})
    known = {**named, **patterns}
    assert cli.call([command, "--json"]) == 0
    listed = {thing["name"]: thing for thing in json.loads(capsys.readouterr().out)[command]}
    assert list(listed) == [*sorted(named), *sorted(patterns, key=lambda name: (name.startswith("*"), name))]
    assert cli.call([command]) == 0
    text = capsys.readouterr().out
    for name, info in known.items():
        docs = document(info.options)
        assert [o["name"] for o in listed[name]["options"]] == [d.name for d in docs]
        assert listed[name]["distribution"] == "clbench"
        assert f"{name}  (clbench {version('clbench')})" in text
        assert all(d.meaning and d.meaning in text for d in docs)


def test_json_gives_type_default_and_meaning(capsys):
    cli.call(["methods", "lora", "--json"])
    (lora,) = json.loads(capsys.readouterr().out)["methods"]
    rank = next(o for o in lora["options"] if o["name"] == "rank")
    assert rank.keys() == {"name", "type", "default", "required", "meaning", "searched"}
    assert (rank["type"], rank["default"]) == ("int >= 1", 4)


def test_options_without_a_plain_default_are_listed(tmp_path, monkeypatch, capsys):
    write_distribution(tmp_path, "mine", ["clbench_mine"], clbench_mine="""
        from pydantic import Field
        from clbench import Options, Strategy, StrategyInfo, hookimpl

        class MineOptions(Options):
            needed: int = Field(description="has no default")
            several: list[int] = Field(default_factory=lambda: [1, 2], description="has one that is made anew")

        @hookimpl
        def clbench_strategies():
            return [StrategyInfo("mine", Strategy, "a method", MineOptions)]
        """)
    monkeypatch.syspath_prepend(tmp_path)
    assert cli.call(["methods", "mine", "--json"]) == 0
    (mine,) = json.loads(capsys.readouterr().out)["methods"]
    assert [(o["default"], o["required"]) for o in mine["options"]] == [(None, True), ([1, 2], False)]
    assert cli.call(["methods", "mine"]) == 0
    rows = {line.split()[0]: line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("    ")}
    assert rows["needed"][1:3] == ["int", "required"] and rows["several"][2:4] == ["[1,", "2]"]
    assert cli.call(["run", "--methods", "mine", "--dry-run"]) == 2
    assert capsys.readouterr().err == "Error: mine.needed: Field required\n"


def test_an_unknown_name_is_an_error_with_near_names(capsys):
    assert cli.call(["models", "mpl"]) == 2
    assert capsys.readouterr().err == "Error: no model 'mpl'; did you mean 'mlp'? (clbench models lists all)\n"


def test_a_broken_plugin_is_shown_with_its_error(tmp_path, monkeypatch, capsys):
    write_distribution(tmp_path, "half", ["clbench_half"], clbench_half="import no_such_module_of_mine")
    monkeypatch.syspath_prepend(tmp_path)
    assert cli.call(["methods"]) == 0
    out = capsys.readouterr().out
    assert "clbench_half  BROKEN: ModuleNotFoundError: No module named 'no_such_module_of_mine'" in out
    assert "lora  (clbench" in out
    cli.call(["methods", "--json"])
    assert "no_such_module" in json.loads(capsys.readouterr().out)["broken"]["clbench_half"]
