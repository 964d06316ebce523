"""The structure of the code: packages in an order, imports that only go up it, and no plugin's name in the core."""

import ast
import functools
import re
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from helpers import TESTS

import clbench
from clbench.core.registry import discover

ROOT = Path(clbench.__file__).parent
# A package imports packages of the lines above its own, never one of its own line or below.
LINES = [
    ["core"],
    ["experiment", "models"],
    ["data", "results"],
    ["strategy", "report"],
    ["training"],
    ["accounting", "persistence"],
    ["execution", "testing"],
    ["cli", "hf"],
    ["__main__"],
]
LINE = {package: number for number, packages in enumerate(LINES) for package in packages}
# Names for users, imported when first used:
LAZY = {"clbench", "clbench.hf", "clbench.report", "clbench.strategy", "clbench.testing"}
MODULES = {".".join(["clbench", *p.relative_to(ROOT).with_suffix("").parts]).removesuffix(".__init__"): p
           for p in sorted(ROOT.rglob("*.py"))}
TORCH_FREE = ["clbench", "clbench.cli", "clbench.experiment.plan", "clbench.results.store", "clbench.report",
              "clbench.report.figures.draw", "clbench.execution.run", "clbench.execution.workers.process",
              "clbench.core.registry", "clbench.strategy.common_options", "clbench.testing.pytest_plugin",
              "clbench.cli.forget", "clbench.report.audit", "clbench.hf", "clbench.hf.replay"]


@functools.cache
def imports(path):
    """Return all modules that a file imports, those for type checkers and inside functions too."""
    modules = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports are not used here"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                modules.append(inner if inner in MODULES else node.module)
        elif isinstance(node, ast.Import):
            modules.extend(alias.name for alias in node.names)
    return modules


def graph():
    """Return which modules of clbench each of them imports; the lazy names of packages lead to their own modules."""
    return {name: {target for target in imports(path) if target in MODULES} - {name}
            for name, path in MODULES.items() if name not in LAZY}


def test_the_order_of_packages_is_documented():
    block, = re.findall(r"```text\n(core\n.*?)```", (TESTS.parent / "docs" / "architecture.md").read_text(), re.DOTALL)
    assert [line.split() for line in block.splitlines()] == [line for line in LINES if line != ["__main__"]]


@pytest.mark.parametrize("name", sorted(set(MODULES) - LAZY))
def test_imports_only_go_up_the_list_of_packages(name):
    own = name.split(".")[1]
    assert own in LINE, f"{own} has no line in LINES: give it one"
    for target in imports(MODULES[name]):
        if target.split(".")[0] == "clbench":
            assert target in MODULES, f"{name} imports {target}, which is not there"
            other = [*target.split("."), ""][1]
            assert other == own or ((other or "core") in LINE and LINE[other or "core"] < LINE[own]), \
                f"{name} imports {target}, which is not above it"


@pytest.mark.parametrize("package", sorted(LAZY))
def test_what_packages_bring_lazily_is_of_their_own_line_or_above(package):
    own = LINE[package.split(".")[1]] if "." in package else len(LINES)
    for target in imports(MODULES[package]):
        if target.startswith("clbench."):
            assert LINE[target.split(".")[1]] <= own


def test_there_is_no_circle():
    try:
        order = list(TopologicalSorter(graph()).static_order())
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' -> '.join(reversed(error.args[1]))}")
    assert set(order) == set(graph()) | {t for targets in graph().values() for t in targets}


def test_packages_stand_on_at_most_nine_floors():
    above = {}
    for name, targets in graph().items():
        above.setdefault(name.split(".")[1], set()).update(t.split(".")[1] for t in targets if t.count("."))
    above = {package: targets - {package} for package, targets in above.items()}
    floors = {}
    for package in TopologicalSorter(above).static_order():
        floors[package] = 1 + max((floors[target] for target in above.get(package, ())), default=0)
    assert max(floors.values()) <= 9, floors


def test_no_core_module_imports_a_plugin():
    found = [(name, target) for name, path in MODULES.items() for target in imports(path)
             if target.startswith("clbench_")]
    assert not found


def strings(path):
    """Yield the strings in a file's code, parts of f-strings too, docstrings left out."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            node.value.value = None  # a docstring
    yield from (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str))


SPLITS_BY_PAPER = {"clbench.data.named.by_class"}  # the splits of ImageNet-R have the names of the papers' methods


@pytest.mark.slow
def test_no_code_names_a_method_of_ours():
    """A string is a method's name, or begins with one and a colon as in `lora:rank=4`.

    Prose such as help texts may name methods, and so may a list of examples that an option has by default.
    """
    origins = discover().origins
    ours = {name for (kind, name), origin in origins.items() if kind == "method" and origin.distribution == "clbench"}
    assert len(ours) > 20
    found = [(name, text) for name, path in MODULES.items() for text in strings(path)
             if name not in SPLITS_BY_PAPER and any(text == method or text.startswith(f"{method}:") for method in ours)]
    assert not found, "what a method is, its declaration says (clbench.core.hookspecs.StrategyInfo)"


def test_the_command_line_and_the_report_import_no_torch():
    code = ("import importlib, sys\nfrom clbench.core.registry import discover\nassert not discover().broken\n"
            "for module in ['clbench.core.registry', *sys.argv[1:]]:\n    importlib.import_module(module)\n"
            "    heavy = [m for m in ('torch', 'torchvision', 'avalanche') if m in sys.modules]\n"
            "    assert not heavy, f'{module} imports {heavy}'")
    done = subprocess.run([sys.executable, "-c", code, *TORCH_FREE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_only_one_package_imports_avalanche():
    users = {name for name, path in MODULES.items() for target in imports(path) if target.split(".")[0] == "avalanche"}
    assert all(user.startswith("clbench.data.avalanche.") for user in users), users


@pytest.mark.parametrize("path", sorted(TESTS.rglob("test_*.py")), ids=lambda p: str(p.relative_to(TESTS)))
def test_no_test_module_imports_another(path):
    assert not [target for target in imports(path) if re.search(r"(^|\.)test_", target)], "move it to tests/helpers"


PRIVATE = re.compile(r"torch(\.\w+)*\._[a-zA-Z]|\._cdata\b|_lazy_clone|_is_cow_tensor|_functorch|\._version\b")


@pytest.mark.parametrize("folder", ["clbench", "plugins"])
def test_names_of_torch_that_are_not_public_are_in_one_module(folder):
    found = [f"{path}: {match[0]}" for path in sorted((ROOT.parent / folder).rglob("*.py"))
             if path.name != "torch_private.py" for match in [PRIVATE.search(path.read_text())] if match]
    assert found == []
