import hashlib
import json
import sys

import pytest
from helpers import TESTS
from helpers.hostile import install_hostile, write_distribution

import clbench
from clbench import cli
from clbench.core.entry_points import DISABLE
from clbench.core.errors import PluginError, SpecError
from clbench.core.registry import discover, load_file
from clbench.execution import run
from clbench.experiment.spec import build

DECAY = """
from pydantic import Field

from clbench import Options, Strategy, StrategyInfo, hookimpl


class DecayOptions(Options):
    by: float = Field(0.5, ge=0, le=1, description="what is left of every weight after a task")


class Decay(Strategy):
    def after_task(self, task):
        for parameter in self.parameters():
            parameter.data *= self.options.by


@hookimpl
def clbench_strategies():
    return [StrategyInfo("decay", "decay_method:Decay", "shrinks", DecayOptions)]
"""
SMALL = {"seeds": 1, "iterations": 2, "device": "cpu", "threads": 1}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "decay_method.py"
    path.write_text(DECAY)
    yield path
    sys.modules.pop("decay_method", None)


@pytest.fixture
def written(tmp_path):
    def write(name, text):
        path = tmp_path / name
        path.write_text(text)
        return path
    return write


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_is_used_in_workers_too_and_the_record_says_which(file, tmp_path, workers):
    record, = clbench.run(methods="decay:by=0", plugins=[file], out=tmp_path / "run", workers=workers, **SMALL)
    sha256 = hashlib.sha256(DECAY.encode()).hexdigest()
    assert record.provenance.plugin == f"{file} sha256:{sha256}"
    assert f"plugins=['{file}']" in record.provenance.command
    assert record.R[-1] == pytest.approx(record.R[1])  # zero weights say the same whatever the task was


def test_a_changed_file_is_read_anew(file):
    old = discover(files=[file])
    file.write_text(DECAY.replace("shrinks", "shrinks all"))
    after = discover(files=[file])
    assert after.strategy("decay").summary == "shrinks all"
    assert after.origins["method", "decay"] != old.origins["method", "decay"]


def test_a_file_moved_elsewhere_is_the_same_code(file, tmp_path):
    clbench.run(methods="decay", plugins=[file], out=tmp_path / "run", workers=0, **SMALL)
    moved = tmp_path / "elsewhere" / file.name
    moved.parent.mkdir()
    file.rename(moved)
    del sys.modules["decay_method"]
    ready = run.prepare(build({"methods": "decay", "seeds": 1, "recipe": {"iterations": 2}}),
                        discover(files=[moved]), tmp_path / "run")
    assert (ready.missing, ready.staleness.reasons) == ([], {})


@pytest.mark.parametrize(("name", "text", "words"), [
    ("absent_plugin.py", None, r"cannot read the plugin .*absent_plugin.py: No such file"),
    ("two words.py", DECAY, "'two words' is not a valid name of a module"),
    ("json.py", DECAY, r"'json' is the name of another module \(.*json/__init__.py\); rename the file"),
    ("torch.py", DECAY, "'torch' is the name of another module"),
    ("clbench_lora.py", DECAY, "'clbench_lora' is installed; name what it brings without --plugin"),
    ("broken_plugin.py", "x = 1\ny = x / 0\n", r"ZeroDivisionError: division by zero \(\S*broken_plugin.py:2\)"),
    ("broken_plugin.py", "x = 1\ndef f(:\n", r"SyntaxError: invalid syntax \(\S*broken_plugin.py:2\)"),
    ("broken_plugin.py", "raise SystemExit(3)", "SystemExit: 3"),
    ("broken_plugin.py", "x = 1\n", "has no hook, such as clbench_strategies"),
    ("broken_plugin.py", DECAY.replace('"decay"', '"lora"'),
     r"broken_plugin.py: the plugin clbench_lora already has a method 'lora'; choose another name$"),
    ("broken_plugin.py", DECAY.replace("clbench_strategies", "clbench_strategy"), "unknown hook 'clbench_strategy'"),
])
def test_a_file_that_cannot_be_used_is_one_line(name, text, words, written, tmp_path):
    path = tmp_path / name if text is None else written(name, text)
    with pytest.raises(PluginError, match=words) as caught:
        discover(files=[path])
    assert len(str(caught.value).splitlines()) == 1
    assert sys.modules.get("json") is json
    sys.modules.pop("broken_plugin", None)


def test_a_file_that_fails_is_not_left_among_the_modules(written):
    with pytest.raises(PluginError):
        load_file(written("fails_at_once.py", "1 / 0"))
    assert "fails_at_once" not in sys.modules


def test_a_files_annotations_are_what_it_wrote(written):
    module, _ = load_file(written("annotated.py", "def f(x: int): ...\n"))
    assert module.f.__annotations__ == {"x": int}
    del sys.modules["annotated"]


def test_the_commands_take_a_file(file, capsys, tmp_path):
    assert cli.call(["methods", "decay", "--plugin", str(file)]) == 0
    assert f"package{file}sha256:" in "".join(capsys.readouterr().out.split())
    assert cli.call(["run", "--methods", "decay", "--plugin", str(file), "--dry-run"]) == 0
    assert cli.call(["params", "--model", "mlp", "--methods", "decay", "--plugin", str(file)]) == 0
    assert "decay" in capsys.readouterr().out
    assert cli.call(["methods", "--plugin", str(tmp_path / "none.py")]) == 2


@pytest.mark.parametrize("names", ["clbench_hostile", "other, clbench_host*"])
def test_plugins_are_disabled_by_name(names, tmp_path, monkeypatch, capsys):
    install_hostile(tmp_path)
    write_distribution(tmp_path, "half", ["clbench_half"], clbench_half="import no_such_module_of_mine")
    monkeypatch.syspath_prepend(tmp_path)
    assert "boom" in discover().strategies
    monkeypatch.setenv(DISABLE, names)
    registry = discover()
    assert "boom" not in registry.strategies
    assert (registry.disabled, list(registry.broken)) == (["clbench_hostile"], ["clbench_half"])
    with pytest.raises(SpecError, match="'hostile': its plugin 'clbench_hostile' is disabled by CLBENCH_DISABLE"):
        registry.strategy("hostile")
    assert cli.call(["methods"]) == 0
    assert f"clbench_hostile  disabled by {DISABLE}" in capsys.readouterr().out


def test_all_plugins_are_disabled_by_a_star(monkeypatch):
    monkeypatch.setenv(DISABLE, "*")
    registry = discover()
    assert not registry.strategies
    assert registry.benchmarks  # clbench's own


def test_a_disabled_plugin_may_be_replaced_by_a_file(written, monkeypatch):
    monkeypatch.setenv(DISABLE, "clbench_ewc")
    path = written("my_ewc.py", DECAY.replace('"decay"', '"ewc"').replace("decay_method", "my_ewc"))
    assert discover(files=[path]).origins["method", "ewc"].distribution == str(path)
    sys.modules.pop("my_ewc")


@pytest.mark.slow
def test_a_files_benchmark_is_built_in_workers(written, tmp_path, monkeypatch):
    path = written("flat_stream.py", """
from clbench import BenchmarkInfo, hookimpl

def build(options, data_dir, seed):
    from helpers import tiny_benchmarks
    return tiny_benchmarks.flat()

@hookimpl
def clbench_benchmarks():
    return [BenchmarkInfo("flat", build, "two tasks of vectors")]
""")
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    record, = clbench.run(methods="naive", benchmark="flat", plugins=[path], workers=1, out=tmp_path / "run", **SMALL)
    sys.modules.pop("flat_stream", None)
    assert record.stream.input_shape == [12]
