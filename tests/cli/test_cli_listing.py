import json
import re
from importlib.metadata import version

import pytest
from helpers.hostile import write_distribution

from clbench import cli
from clbench.core.errors import PluginError
from clbench.core.hookspecs import StrategyInfo
from clbench.core.options import document
from clbench.core.registry import discover


def joined(text):
    """Return a text without spaces, which says the same wherever its lines are broken."""
    return "".join(text.split())


@pytest.mark.parametrize(("command", "attribute"), [("methods", "strategies"), ("benchmarks", "benchmarks"),
                                                    ("models", "models")])
def test_everything_is_listed_with_every_option(command, attribute, capsys):
    registry = discover()
    named, patterns = getattr(registry, attribute), registry.patterns.get(command[:-1], {})
    known = {**named, **patterns}
    assert cli.call([command, "--json"]) == 0
    listed = {thing["name"]: thing for thing in json.loads(capsys.readouterr().out)[command]}
    assert list(listed) == [*sorted(named), *sorted(patterns, key=lambda name: (name.startswith("*"), name))]
    for name, info in known.items():
        docs = document(info.options)
        assert [o["name"] for o in listed[name]["options"]] == [d.name for d in docs]
        assert listed[name]["distribution"] == "clbench"
    assert cli.call([command, *known]) == 0
    shown = joined(capsys.readouterr().out)
    starts = [shown.index(joined(name + info.summary)) for name, info in known.items()]
    assert starts[0] == 0 and starts == sorted(starts)
    for info, start, end in zip(known.values(), starts, [*starts[1:], None], strict=True):
        text, docs = shown[start:end], document(info.options)
        assert joined(f"package clbench {version('clbench')}") in text
        assert all(d.meaning and joined(f"{d.name} ({d.type}) {d.meaning}") in text for d in docs)


@pytest.mark.parametrize(("command", "attribute"), [("methods", "strategies"), ("benchmarks", "benchmarks"),
                                                    ("models", "models"), ("trackers", "trackers")])
def test_without_names_each_has_one_whole_line(command, attribute, capsys):
    registry = discover()
    known = {**getattr(registry, attribute), **registry.patterns.get(command[:-1], {})}
    assert cli.call([command]) == 0
    lines = capsys.readouterr().out.splitlines()
    shown = [line.split()[0] for line in lines if line.startswith("  ")]
    assert sorted(shown) == sorted(known)
    assert all(len(line) < 100 for line in lines)
    assert all(any(line.split()[:1] == [name] and info.summary in line for line in lines)
               for name, info in known.items())
    assert lines[-1] == f"clbench {command} NAME shows everything about one of them, including its options."


def test_methods_are_listed_by_family_with_their_year(capsys):
    cli.call(["methods"])
    families = {part.splitlines()[0]: part.splitlines()[1:] for part in capsys.readouterr().out.split("\n\n")}
    assert list(families)[:3] == ["References", "Replay", "Regularization"]
    replay = {line.split()[0]: line.split()[-1] for line in families["Replay"]}
    assert replay["er"] == "2019" and replay["er-ace"] == "2022"
    assert {line.split()[0] for line in families["References"]} == {"frozen", "independent", "joint", "naive"}
    assert all(name.split()[0].startswith("avalanche:") for name in families["Avalanche strategies"])


@pytest.mark.parametrize(("paper", "year"), [
    ("Li & Hoiem 2016, arXiv 1606.09282", "2016"), ("arXiv 2004.07211", ""), ("", ""),
    ("arXiv 1711.09601 (2018)", "2018"),
    ("Hoerl & Kennard 1970, Technometrics 12(1)", "1970"), ("compare Rusu et al. 2016.", "2016")])
def test_the_year_is_the_first_in_the_paper(paper, year):
    assert StrategyInfo("mine", "mine:Mine", "a method", paper=paper).year == year


def test_an_unknown_family_is_an_error_with_near_names():
    with pytest.raises(PluginError, match="method 'mine': there is no family 'replays'; choose one of references, "):
        StrategyInfo("mine", "mine:Mine", "a method", family="replays")


def test_a_named_method_is_shown_with_all_that_it_declares(capsys):
    assert cli.call(["methods", "l2p", "ewc", "er"]) == 0
    l2p, ewc, er = (" ".join(part.split()) for part in re.split("\ne(?:wc|r)\n", capsys.readouterr().out))
    assert ("family adapters and prompts paper Wang et al. 2022, arXiv 2112.08654 published recipe optimizer = adam"
            in l2p)
    assert "task-free not with its default options: outputs = own" in l2p
    assert "task-free yes: it does not need to know where tasks end (--boundaries hidden)" in er
    assert ("task-free no: it needs to know where tasks end language models yes: it fine-tunes causal language models "
            "too numbers yes: it predicts numbers too name in reports EWC tuned by default strength") in ewc
    assert "language models" not in l2p
    assert "each class must arrive" not in ewc


def test_a_long_summary_is_cut_in_the_list_and_whole_by_name(tmp_path, monkeypatch, capsys):
    write_distribution(tmp_path, "long", ["clbench_long"], clbench_long="""
        from clbench import Strategy, StrategyInfo, hookimpl

        @hookimpl
        def clbench_strategies():
            return [StrategyInfo("mine", Strategy, "does " + "very " * 30 + "much")]
        """)
    monkeypatch.syspath_prepend(tmp_path)
    cli.call(["methods"])
    line, = [line for line in capsys.readouterr().out.splitlines() if line.split()[:1] == ["mine"]]
    assert len(line) < 100 and line.endswith("very ...")
    cli.call(["methods", "mine"])
    assert "very very much" in " ".join(capsys.readouterr().out.split())


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
    text = " ".join(capsys.readouterr().out.split())
    assert "needed (int) has no default [required]" in text
    assert "several (list[int]) has one that is made anew [default: [1, 2]]" in text
    assert cli.call(["run", "--methods", "mine", "--dry-run"]) == 2
    assert capsys.readouterr().err == (
        "Error: mine.needed: has no default; give a value (mine:needed=VALUE), or a default in the plugin\n")


def test_a_name_that_a_pattern_matches_shows_the_pattern(capsys):
    assert cli.call(["benchmarks", "images:photos"]) == 0
    assert capsys.readouterr().out.startswith("images:*\n")


def test_an_unknown_name_is_an_error_with_near_names(capsys):
    assert cli.call(["models", "mpl"]) == 2
    assert capsys.readouterr().err == "Error: no model 'mpl'; did you mean 'mlp'? (clbench models lists all)\n"


def test_a_broken_plugin_is_shown_with_its_error(tmp_path, monkeypatch, capsys):
    write_distribution(tmp_path, "half", ["clbench_half"], clbench_half="import no_such_module_of_mine")
    monkeypatch.syspath_prepend(tmp_path)
    assert cli.call(["methods"]) == 0
    out = capsys.readouterr().out
    assert "clbench_half  BROKEN: ModuleNotFoundError: No module named 'no_such_module_of_mine'" in out
    assert "\n  lora " in out
    cli.call(["methods", "--json"])
    assert "no_such_module" in json.loads(capsys.readouterr().out)["broken"]["clbench_half"]
