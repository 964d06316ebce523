"""What a plugin's author gets: `clbench new-plugin`, `clbench check`, the pytest fixtures, the example."""

import os
import shutil
import subprocess
import sys

import pytest
import torch
from helpers import ROOT

from clbench import cli
from clbench.cli import plugins
from clbench.core.errors import SpecError
from clbench.core.registry import discover
from clbench.testing import check
from clbench.testing.checks import CHECKS

BROKEN = """
import torch

from clbench import Strategy, StrategyInfo, hookimpl


class Hides(Strategy):
    def after_task(self, task):
        self.seen = task.train.x

    def learning_rates(self):
        return {"modl.*": 0.1}


class Unmade(Strategy):
    def __init__(self, *args):
        super().__init__(*args)
        self.no_such_thing


@hookimpl
def clbench_strategies():
    return [StrategyInfo("hides", Hides, "hides a tensor"), StrategyInfo("unmade", "broken_methods:Unmade", "fails")]
"""


def install(folder, *sources):
    """Install distributions into a folder and return the environment that finds them there."""
    copies = [shutil.copytree(source, folder / "source" / source.name) for source in sources]  # building leaves things
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation",
                    "--disable-pip-version-check", "--root-user-action=ignore", "--target", folder / "site",
                    *copies], check=True)
    return {**os.environ, "PYTHONPATH": str(folder / "site"), "OMP_NUM_THREADS": "1"}


def python(environment, *args, cwd=None):
    done = subprocess.run([sys.executable, *map(str, args)], env=environment, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(360)  # several processes that import torch: 15 to 25 s alone, minutes on a busy machine
def test_new_plugins_are_installed_pass_their_tests_and_keep_the_rules(tmp_path):
    registry = discover()
    for kind in plugins.KINDS:
        written = plugins.write_plugin(f"clbench-my-{kind}2", tmp_path / "made" / kind, registry, kind)
        module, code = f"clbench_my_{kind}2", plugins.THINGS[plugins.KINDS[kind][0]].module
        assert [str(p.relative_to(tmp_path / "made" / kind)) for p in written] == [
            "pyproject.toml", "README.md", f"{module}/__init__.py", f"{module}/{code}.py", f"tests/test_{module}.py"]
        assert not any("$" in p.read_text() for p in written)
    environment = install(tmp_path, *sorted((tmp_path / "made").iterdir()))
    out = python(environment, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider",
                 *sorted((tmp_path / "made").glob("*/tests")), cwd=tmp_path)
    assert f"{3 * (len(CHECKS) + 2) + 1 + 2} passed" in out  # three methods, a benchmark, a model
    out = python(environment, "-m", "clbench", "check", "my-method2:strength=10")
    assert out.splitlines()[-1] == f"my-method2:strength=10 keeps all {len(CHECKS)} rules"
    listed = python(environment, "-c", "import sys\nfrom clbench.core.registry import discover\nr = discover()\n"
                    "print(r.origins['method', 'my-method2'], r.origins['benchmark', 'my-benchmark2'],"
                    "r.origins['model', 'my-model2'], 'torch' in sys.modules, sep=', ')")
    assert listed == "clbench-my-method2 0.1.0, clbench-my-benchmark2 0.1.0, clbench-my-model2 0.1.0, False\n"


@pytest.mark.parametrize("name", ["mine", "a" * 40])
def test_new_plugins_are_clean(name, tmp_path):
    pytest.importorskip("ruff", reason="needs ruff (clbench[dev])")
    registry = discover()
    for kind in plugins.KINDS:
        plugins.write_plugin(name, tmp_path / kind, registry, kind)
    python(os.environ, "-m", "ruff", "check", "--no-cache", tmp_path)


@pytest.mark.parametrize(("name", "words"), [
    ("My-Method", "is not a valid name of a method"), ("a--b", "single hyphens"), ("../up", "is not"), ("", "is not"),
    ("none", "is not a valid"), ("a" * 41, "at most 40"), ("lora", "there is a method 'lora' already, of clbench"),
    ("wandb", "there is a plugin 'clbench_wandb' already"),
])
def test_names_that_do_not_do(name, words, tmp_path):
    with pytest.raises(SpecError, match=words):
        plugins.write_plugin(name, tmp_path / "made", discover())
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(("kind", "name", "words"), [
    ("benchmark", "A", "is not a valid name of a benchmark: .* as in my-benchmark"),
    ("benchmark", "split-mnist", "there is a benchmark 'split-mnist' already, of clbench"),
    ("model", "mlp", "there is a model 'mlp' already, of clbench"),
])
def test_names_are_taken_among_their_own_kind(kind, name, words, tmp_path):
    with pytest.raises(SpecError, match=words):
        plugins.write_plugin(name, tmp_path / "made", discover(), kind)


@pytest.mark.parametrize(("kind", "lines"), [
    ("method", ["clbench check mine", "clbench run --methods mine,naive,ewc", "clbench-mine/clbench_mine/strategy.py"]),
    ("benchmark", ["clbench run --benchmark mine --methods naive,er", "clbench-mine/clbench_mine/benchmark.py"]),
    ("model", ["clbench run --model mine --methods naive,lora", "clbench-mine/clbench_mine/model.py"]),
])
def test_what_to_do_next(kind, lines, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.call(["new-plugin", "mine", "--kind", kind]) == 0
    shown = capsys.readouterr().out.split("\nnext:\n")[1].splitlines()
    assert [line.strip() for line in shown] == [
        "pip install -e ./clbench-mine", *lines[:-1], f"then make {lines[-1]} your own"]


def test_what_is_there_is_not_written_over(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.call(["new-plugin", "mine"]) == 0
    out = capsys.readouterr().out
    assert "pip install -e ./clbench-mine\n" in out
    strategy = tmp_path / "clbench-mine" / "clbench_mine" / "strategy.py"
    strategy.write_text("# mine by now")
    assert cli.call(["new-plugin", "mine"]) == 2
    assert capsys.readouterr().err == "Error: clbench-mine is not empty; choose another folder with --out\n"
    assert strategy.read_text() == "# mine by now"
    assert cli.call(["new-plugin", "mine", "--out", str(strategy)]) == 2
    assert "choose another folder" in capsys.readouterr().err


def test_check_says_what_is_wrong(tmp_path, capsys):
    path = tmp_path / "broken_methods.py"
    path.write_text(BROKEN)
    assert cli.call(["check", "--plugin", str(path)]) == 1
    assert capsys.readouterr().out.count("FAIL") == 4
    assert cli.call(["check", str(path), "naive"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "hides"
    assert lines[2].startswith("  FAIL  state: seen holds a Tensor that is neither parameter, buffer nor ")
    assert lines[9].startswith("  FAIL  checkpoint: a trial cannot resume from a checkpoint: the attribute seen is "
                               "a Tensor, which cannot be saved.")
    assert lines[10] == "  FAIL  learning-rates: learning_rates has 'modl.*', which fits the name of no parameter"
    assert lines[11].startswith("  ok    declarations: ")
    assert lines[12].startswith("  ok    task-free: ")
    assert lines[13].startswith("  ok    stack: ")
    assert lines[14].startswith("  ok    stored-samples: ")
    assert lines[15].startswith("  ok    budget: ")
    assert lines[16].startswith("  ok    objectives: ")
    assert lines[17] == f"hides breaks 3 of {len(CHECKS)} rules"
    assert lines[18] == "unmade"
    assert lines[19] == ("  FAIL  logits: AttributeError: 'Unmade' object has no attribute 'no_such_thing' "
                         f"({path}:18 in __init__)")
    assert lines[20] == (f"  note  {len(CHECKS) - 1} rules could not be tested for the same reason as logits: "
                         f"{', '.join([*CHECKS][1:])}")
    assert lines[21] == f"unmade breaks 1 of {len(CHECKS)} rules; {len(CHECKS) - 1} could not be tested"
    assert lines[-1] == f"naive keeps all {len(CHECKS)} rules"
    sys.modules.pop("broken_methods")


@pytest.mark.parametrize(("targets", "words"), [
    (["ewcc"], "no method 'ewcc'; did you mean 'ewc'?"),
    (["ewc:strngth=1"], "ewc: no option 'strngth'; did you mean 'strength'?"),
    (["no_such_file.py"], "cannot read the plugin"),
    ([], "name a method or a file to check"),
    (["naive", "--device", "cuda:99"], "device 'cuda:99' is not available"),
])
def test_check_of_what_is_not_there_is_one_line(targets, words, capsys):
    assert cli.call(["check", *targets]) == 2
    out, err = capsys.readouterr()
    assert (out, len(err.splitlines())) == ("", 1)
    assert words in err


def test_the_pytest_plugin_imports_nothing_heavy():
    code = ("import sys, clbench.testing.pytest_plugin\n"
            "print([m for m in ('torch', 'pydantic', 'pluggy', 'click', 'numpy') if m in sys.modules])")
    done = subprocess.run([sys.executable, "-c", f"import pytest\nsys_before = 0\n{code}"], capture_output=True,
                          text=True, check=True)
    assert done.stdout.strip() == "['pluggy']"  # which pytest itself needs


def test_the_fixtures_of_the_pytest_plugin(clbench_bench):
    bench = clbench_bench("ewc:strength=3", "class", seed=1)
    assert bench.strategy.options.strength == 3
    assert (bench.scenario, bench.strategy.stream_info.scenario) == ("class", "class")
    assert hasattr(clbench_bench("l2p", "class").strategy.model, "blocks")  # on the vit that it declares


def test_a_check_leaves_the_global_generator_as_it_was():
    torch.manual_seed(123)
    expected = torch.rand(1)
    torch.manual_seed(123)
    check("naive", "repeatable")
    assert torch.rand(1) == expected


def test_the_check_fixture_is_a_test_for_each_rule(clbench_check, request):
    clbench_check("naive")
    assert request.node.callspec.id in CHECKS
    with pytest.raises(SpecError, match="no method 'nave'"):
        clbench_check("nave")


@pytest.mark.slow
@pytest.mark.timeout(360)  # several processes that import torch: 15 to 25 s alone, minutes on a busy machine
def test_the_example_distribution_works(tmp_path):
    example = ROOT / "examples" / "clbench-plugin-example"
    environment = install(tmp_path, example)
    out = python(environment, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider",
                 cwd=tmp_path / "source" / example.name)
    assert f"{len(CHECKS) + 3} passed" in out
    for command, name in (("methods", "mean-imm"), ("benchmarks", "noisy-digits")):
        shown = python(environment, "-m", "clbench", command, name)
        assert "package clbench-plugin-example 0.1.0" in " ".join(shown.split())
        assert f"  {name} " in python(environment, "-m", "clbench", command)
