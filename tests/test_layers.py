import ast
import subprocess
import sys
from pathlib import Path

import pytest

import clbench

ROOT = Path(clbench.__file__).parent
# A module may import modules of its own row and of the rows above it, never of those below.
ROWS = [
    ["compat", "digests", "errors", "interrupts", "leftovers", "locks", "options", "seeds"],
    ["search"],
    ["hookspecs", "spec", "samplers", "models", "data.options", "pertask_options"],
    ["builtin", "pluginfile", "plugins"],
    ["plan", "overrides", "sweeps", "references"],
    ["records", "metrics", "sharding", "stats", "strategy"],
    ["data", "device", "memory", "layergrads", "rows", "samplewise", "classmeans", "fisher", "consolidation",
     "distillation", "pertask", "ensemble", "footprint", "inputs", "precision",
     "building", "artifacts", "compiling",
     "provenance", "member", "moments", "checkpoint"],
    ["training", "evaluation"],
    ["resuming"],
    ["trial"],
    ["testing", "pytest_plugin", "scaffold", "tiny", "pretraining", "store", "report", "params", "tracking",
     "changes", "merging", "verification"],
    ["claims"],
    ["execution", "tuned"],
    ["experiment", "progress"],
    ["tuning"],
    ["api", "cli"],
]
TORCH_FREE = ["clbench", "clbench.cli", "clbench.plan", "clbench.store", "clbench.report", "clbench.execution.local",
              "clbench.plugins"]


def row_of(module):
    for number, names in enumerate(ROWS):
        for name in names:
            if module == name:
                return number, len(name)
    parent = module.rpartition(".")[0]
    return row_of(parent) if parent else None


def imports(path):
    tree = ast.parse(path.read_text())
    typing_only = {id(n) for node in ast.walk(tree) if isinstance(node, ast.If)
                   and "TYPE_CHECKING" in ast.dump(node.test) for n in ast.walk(node)}
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "clbench":
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                file = ROOT.parent / Path(*inner.split("."))
                yield inner if file.with_suffix(".py").exists() or file.is_dir() else node.module
        elif isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.split(".")[0] == "clbench")


@pytest.mark.parametrize("path", sorted(p for p in ROOT.rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_a_lower_layer_never_imports_a_higher_one(path):
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    if name in ("__init__", "__main__"):
        return
    own = row_of(name)
    assert own is not None, f"{name} has no row in ROWS: give it one"
    for target in imports(path):
        inner = target.removeprefix("clbench").removeprefix(".")
        if inner:
            other = row_of(inner)
            assert other is not None and other[0] <= own[0], f"{name} imports {target}, a higher layer"


@pytest.mark.parametrize("module", TORCH_FREE)
def test_the_command_line_and_the_report_import_no_torch(module):
    code = (f"import sys, {module}\nfrom clbench.plugins import discover\nassert not discover().broken\n"
            "print([m for m in ('torch', 'torchvision', 'avalanche') if m in sys.modules])")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_only_the_stream_layer_imports_avalanche():
    users = {str(p.relative_to(ROOT)) for p in ROOT.rglob("*.py")
             if any(line.strip().startswith(("import avalanche", "from avalanche")) for line in
                    p.read_text().splitlines())}
    assert all(user.startswith("data/") for user in users), users
