"""Functions, Avalanche benchmarks and strategy classes in the place of names in `clbench.run`."""

import subprocess
import sys

import pytest
import torch
from clbench_er.strategy import ER
from helpers.tiny_benchmarks import flat, flipping, photos, shifting

import clbench
from clbench.core.errors import SpecError
from clbench.core.registry import discover
from clbench.data.avalanche.build import import_avalanche
from clbench.execution.api import name_objects

SMALL = {"seeds": 1, "iterations": 2, "device": "cpu", "threads": 1}
METHOD = '''
from clbench import Options, Strategy

class HalvedOptions(Options):
    share: float = 0.5

class Halved(Strategy):
    """Scales the loss."""

    options: HalvedOptions

    def loss(self, batch):
        return self.options.share * super().loss(batch)

def helper():
    return None
'''
SCRIPT = '''
from clbench.core.errors import SpecError
from clbench.core.user_code import name_of

def make():
    return None

def report():
    try:
        print(name_of(make))
    except SpecError as error:
        print(error)

{guard}
    report()
'''


def name(benchmark):
    registry = discover()
    return name_objects({"benchmark": benchmark}, registry)["benchmark"], registry


def test_a_function_of_a_module_has_the_key_of_its_name(tmp_path):
    by_name = clbench.run(benchmark="helpers.tiny_benchmarks:flat", methods="naive", out=tmp_path, workers=0, **SMALL)
    by_object = clbench.run(benchmark=flat, methods="naive", out=tmp_path, workers=0, **SMALL)
    assert by_object == by_name and by_name[0].status == "done"
    assert by_object[0].provenance.code["benchmark"].packages == ["helpers"]


def test_a_benchmark_is_identified_by_its_samples_and_runs_in_this_process(tmp_path):
    results = clbench.run(benchmark=flat(), methods="naive", out=tmp_path, **SMALL)
    assert results[0].status == "done" and results[0].trial.benchmark.name == name(flat())[0]
    same = clbench.run(benchmark=lambda: flat(), methods="naive", out=tmp_path, **SMALL)
    assert same == results  # as no key differs, nothing was trained
    other = clbench.run(benchmark=shifting(), methods="naive", out=tmp_path, **SMALL)
    assert other[0].key != results[0].key and len(clbench.load(tmp_path)) == 2
    with pytest.raises(SpecError, match=r"object:\w{16} is an object of this process, and workers are others"):
        clbench.run(benchmark=flat(), methods="naive", out=tmp_path, workers=2, **SMALL)


def two_tasks(value, first_label=0):
    """Two tasks of constant samples, one of which has another label if so given."""
    from avalanche.benchmarks import tensors_benchmark

    labels = [torch.arange(4) % 2 + 2 * task for task in range(2)]
    labels[0][0] = first_label
    parts = [(torch.full((4, 12), value), y) for y in labels]
    return tensors_benchmark(train_tensors=parts, test_tensors=parts, task_labels=[0, 0], complete_test_set_only=False)


def test_another_label_or_sample_is_another_benchmark():
    names = [name(two_tasks(*given))[0] for given in ((0.0,), (0.5,), (0.0, 1), (0.0,))]
    assert len(set(names)) == 3 and names[0] == names[3]


def test_random_samples_and_other_things_are_refused():
    with pytest.raises(SpecError, match="its samples differ at each reading"):
        name(flipping())
    with pytest.raises(SpecError, match="expected a name, a function or an Avalanche benchmark, got int"):
        name(3)
    with pytest.raises(SpecError, match="the function failed: ZeroDivisionError"):
        name(lambda: 1 / 0)


def test_an_object_with_photos_of_several_sizes_is_refused_and_a_function_is_the_way_out():
    import_avalanche()
    with pytest.raises(SpecError, match=r"pass a function of a module or file .* whose photos clbench resizes"):
        name(photos())


@pytest.mark.slow
def test_a_strategy_class_is_named_as_it_is_found(tmp_path, monkeypatch):
    (tmp_path / "halved_method.py").write_text(METHOD)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    from halved_method import Halved

    results = clbench.run(methods=[Halved, {"name": Halved, "options": {"share": 0.25}}, ER, "naive"], out="run",
                          workers=1, **SMALL)
    assert [(r.label, r.status) for r in results] == [(label, "done") for label in (
        "halved_method:Halved", "halved_method:Halved:share=0.25", "er", "naive")]
    assert results[0].provenance.code["method"].packages == ["halved_method"]
    assert results[0].trial.method.options == {"share": 0.5}
    by_file = clbench.run(methods="halved_method.py:Halved", out="run", workers=0, **SMALL)
    assert by_file[0].provenance.code["method"].hash == results[0].provenance.code["method"].hash
    assert by_file[0].R == results[0].R

    class Nested(Halved):
        """Has no name outside of this function."""

    with pytest.raises(SpecError, match=r"method Nested .*Nested is not at the top level of a module"):
        clbench.run(methods=[Nested], out="run", **SMALL)
    with pytest.raises(SpecError, match=r"'helper' is no subclass of clbench\.Strategy"):
        clbench.run(methods="halved_method:helper", out="run", **SMALL)
    with pytest.raises(SpecError, match="has no 'Halvd'; did you mean 'Halved'"):
        clbench.run(methods="halved_method.py:Halvd", out="run", **SMALL)


def test_edited_code_of_a_class_makes_results_stale(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "edited_method.py").write_text(METHOD)
    clbench.run(methods="edited_method.py:Halved", out="run", workers=0, **SMALL)
    (tmp_path / "edited_method.py").write_text(METHOD.replace("options.share *", "options.share * 2 *"))
    with pytest.raises(clbench.core.errors.StaleError, match=r"edited_method\.py"):
        clbench.run(methods="edited_method.py:Halved", out="run", workers=0, **SMALL)


@pytest.mark.parametrize(("guard", "line"), [
    ('if __name__ == "__main__":', "stream.py:make"), ("if True:", "stream.py, where make is defined, would run all")])
def test_a_function_of_a_script_is_found_where_it_can_be_imported_again(guard, line, tmp_path):
    (tmp_path / "stream.py").write_text(SCRIPT.format(guard=guard))
    out = subprocess.run([sys.executable, "stream.py"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert out.startswith(line)


def test_a_function_of_a_session_has_no_name(tmp_path):
    code = SCRIPT.format(guard='if __name__ == "__main__":')
    out = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert out.startswith("make is defined in this session; put it into a file")
