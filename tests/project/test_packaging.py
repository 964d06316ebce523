"""What pyproject.toml says of plugins and extras."""

from helpers import ROOT

from clbench.core.compat import tomllib

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
TOOLS = {"all", "test", "docs", "dev"}


def test_every_plugin_of_ours_is_an_entry_point():
    folders = {path.parent.name for path in (ROOT / "plugins").glob("*/__init__.py")}
    named = {name: module for name, module in PROJECT["entry-points"]["clbench"].items() if not
             module.startswith("clbench.")}
    assert named == {name: name for name in folders}


def test_all_is_every_extra_but_the_tools():
    extras = PROJECT["optional-dependencies"]
    assert extras["all"] == [f"clbench[{','.join(name for name in extras if name not in TOOLS)}]"]
