import subprocess
import sys

import pytest
import torch
from helpers.adapters import keep, plain
from helpers.per_task import answer, inputs
from safetensors.torch import load_file

import clbench
from clbench import cli
from clbench.models.weights import load_weights


def call(capsys, *args):
    code = cli.call(["adapters", *map(str, args)])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture
def run(tmp_path):
    keep(tmp_path, rank=3, alpha=5.0)
    return tmp_path


def test_help_needs_no_torch():
    code = ("import sys\nfrom clbench import cli\n"
            "for command in ([], ['add']): assert cli.call(['adapters', *command, '--help']) == 0\n"
            "assert not {'torch', 'avalanche', 'torchvision'} & set(sys.modules)")
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    for name in ("list", "show", "export", "merge", "remove", "add", "eval", "combine"):
        assert f"\n  {name} " in shown
    assert "--benchmark NAME" in shown


def test_list_and_show(run, capsys):
    size = sum(p.stat().st_size for p in (run / "artifacts").rglob("*") if p.is_file())
    for name in ("model.safetensors", "state.safetensors"):  # as --keep writes them
        (next((run / "artifacts").iterdir()) / name).write_bytes(b"other files")
    code, out, err = call(capsys, "list", run)
    assert (code, err) == (0, "")
    assert out.splitlines()[2].split()[1:] == ["lora:mlp/0", "task", "done", "1,2,3", "task0,task1,task2",
                                             f"{size / 1000:.1f}", "kB"]
    assert f"The folders are in {run}/artifacts/KEY." in out
    code, out, err = call(capsys, "show", run, "lora:mlp/0", "--task", 2)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "task 2: classes 2, 3"
    assert lines[3].split()[:5] == ["blocks.0.body.1", "3", "5", "228", "912"]  # bytes
    assert lines[-2].split() == ["all", "300", "1.20", "kB"]
    assert call(capsys, "show", run)[1].count("blocks.1.body") == 3
    (run / "empty").mkdir()
    assert call(capsys, "list", run / "empty")[:2] == (0, f"no adapters in {run / 'empty'}\n")
    code, _, err = call(capsys, "list", run / "nothing")
    assert code == 2 and f"there is no folder {run / 'nothing'}: check the path" in err


def test_export_merge_and_combine(run, capsys, tmp_path):
    strategy, _ = keep(tmp_path / "again", rank=3, alpha=5.0)
    one = tmp_path / "one"
    assert call(capsys, "export", run, "--task", 2, "--to", one) == (0, f"adapter: {one}\n", "")
    assert {p.name for p in one.iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors", "clbench.json", "base.safetensors", "README.md"}
    file = tmp_path / "merged.safetensors"
    assert call(capsys, "merge", run, "--task", 2, "--to", file) == (0, f"weights: {file}\n", "")
    model, _ = plain("mlp", seed=3)
    load_weights(model, file)
    with torch.no_grad():
        torch.testing.assert_close(model(inputs()), answer(strategy, 1).logits, rtol=1e-4, atol=1e-5)
    code, out, err = call(capsys, "merge", run, "--task", 1, "--to", file)
    assert (code, out, err) == (2, "", f"Error: {file} exists; choose another file\n")
    code, out, err = call(capsys, "combine", run, "--tasks", "1,3", "--weights", "0.5,0.5", "--to", tmp_path / "two")
    assert (code, err) == (0, "")
    assert out == f"adapter: {tmp_path / 'two'} (rank 6, classes 0, 1, 4, 5)\n"
    mixed = load_file(tmp_path / "two" / "adapter_model.safetensors")
    assert mixed["base_model.model.blocks.1.body.lora_A.weight"].shape == (6, 12)


def test_the_ranks_of_a_mixture_are_shown(tmp_path, capsys):
    keep(tmp_path, rank=4, rank_pattern={r"blocks\.0\..*": 1})
    _, out, _ = call(capsys, "combine", tmp_path, "--tasks", "1,2", "--weights", "1,1", "--to", tmp_path / "two")
    assert "(ranks 2 to 8, classes 0, 1, 2, 3)" in out


def test_paths_may_start_with_the_home_folder(tmp_path, capsys, monkeypatch):
    keep(tmp_path / "run")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert call(capsys, "list", "~/run")[1].count("lora:mlp/0") == 1
    assert call(capsys, "export", "~/run", "--task", 1, "--to=~/one") == (0, f"adapter: {tmp_path}/one\n", "")
    assert not (tmp_path / "~").exists()


@pytest.mark.parametrize(("args", "message"), [
    (["merge", "--task", "7", "--to", "m.safetensors"], "Error: lora:mlp/0 has no adapter of task 7, only of 1, 2, 3"),
    (["show", "ewc/0"], "Error: no trial 'ewc/0' with adapters in "),
    (["combine", "--tasks", "1,x", "--weights", "1,1", "--to", "d"], "'x' is not the number of a task, such as 2"),
    (["combine", "--tasks", "1,2", "--weights", "1", "--to", "d"], "Error: 2 adapters need as many weights, got 1"),
    (["merge", "--task", "0", "--to", "m.safetensors"], "tasks are counted from 1 now, as tables count them"),
    (["remove"], "Error: Missing option '--task'"),
    (["add", "--task", "2"], "Error: lora:mlp/0 has an adapter of task 2; remove it first"),
    (["add", "--task", "1", "--benchmark", "split-mnst"], "did you mean 'split-mnist'"),
])
def test_mistakes_are_one_line(run, capsys, tmp_path, monkeypatch, args, message):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    code, out, err = call(capsys, args[0], run, *args[1:])
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_finished_run_is_evaluated_cut_and_added_to(tmp_path, capsys):
    record, = clbench.run(methods="lora:rank=1", model="mlp:width=8", seeds=1, iterations=4, workers=0, threads=1,
                          device="cpu", scenario="class", out=tmp_path)
    code, out, err = call(capsys, "eval", tmp_path, "--device", "cpu")
    assert (code, err) == (0, "")
    shown = [f"{100 * a:.2f}" for a in (*record.R[-1], sum(record.R[-1]) / 5)]
    assert [line.split()[-1] for line in out.splitlines()[2:]] == shown
    assert call(capsys, "remove", tmp_path, "--task", 5)[:2] == (0, "removed task 5; left: 1, 2, 3, 4\n")
    code, out, _ = call(capsys, "eval", tmp_path, "--tasks", "4,2", "--device", "cpu")
    assert [line.split()[0] for line in out.splitlines()[2:]] == ["4", "2", "mean"]
    assert call(capsys, "add", tmp_path, "--task", 5, "--device", "cpu")[:2] == (0, "added task 5\n")
    assert [line.split()[-1] for line in call(capsys, "eval", tmp_path, "--device", "cpu")[1].splitlines()[2:]] == shown
    args = ("add", tmp_path, "--task", 1, "--benchmark", "split-mnist-5k:tasks=2", "--device", "cpu")
    assert call(capsys, *args)[:2] == (0, "added task 6\n")
    code, _, err = call(capsys, "eval", tmp_path, "--device", "cpu")
    assert code == 2
    assert err.startswith("Error: in scenario class the task is inferred, which makes no sense between benchmarks")


def test_on_one_test_set_of_all_tasks_each_accuracy_is_that_on_the_whole_set_as_the_help_says(tmp_path, capsys):
    record, = clbench.run(benchmark="helpers.tiny_benchmarks:one_test", methods="lora:rank=1", model="mlp:width=8",
                          seeds=1, iterations=4, workers=0, threads=1, device="cpu", scenario="class", out=tmp_path)
    out = call(capsys, "eval", tmp_path, "--device", "cpu")[1]
    assert [line.split()[-1] for line in out.splitlines()[2:]] == [f"{100 * record.R[-1][0]:.2f}"] * 4
    one = call(capsys, "eval", tmp_path, "--tasks", 1, "--device", "cpu")[1].splitlines()[2].split()[-1]
    assert float(one) <= 100 * 3 / 21 + 0.01  # 3 of the 21 samples are of the classes of task 1
    help_text = " ".join(call(capsys, "eval", "--help")[1].split())
    assert ("If all tasks share one test set, each accuracy is that on the whole set, in which samples of classes that "
            "are not chosen count as wrong.") in help_text


PLUGIN = """
import math
from torch import nn
from clbench import Block, ModelInfo, Network, hookimpl

def build(options, input_shape, classes):
    hidden = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(input_shape), 6))
    return Network([Block(hidden, nn.Tanh())], nn.Linear(6, classes))

@hookimpl
def clbench_models():
    return [ModelInfo("of-a-file", build, "one hidden layer")]
"""


def test_the_model_can_be_in_the_file_of_a_plugin(tmp_path, capsys):
    plugin, run = tmp_path / "plugin.py", tmp_path / "run"
    plugin.write_text(PLUGIN)
    records = clbench.run(methods="lora:rank=1,independent", model="of-a-file", seeds=1, iterations=4, workers=0,
                          benchmark="helpers.tiny_benchmarks:pictures", device="cpu", out=run, plugins=plugin)
    for record in records:
        assert clbench.load_model(run, record.key, task=1, plugins=plugin).head.out_features == 4
    assert "no model 'of-a-file'" in call(capsys, "eval", run, "--device", "cpu")[2]
    for name, *arguments in (
            ("show",), ("eval", "--device", "cpu"), ("export", "--task", 2, "--to", tmp_path / "exported"),
            ("merge", "--task", 2, "--to", tmp_path / "merged.safetensors"), ("remove", "--task", 2),
            ("add", "--task", 2, "--device", "cpu"),
            ("combine", "--tasks", "1,2", "--weights", "1,1", "--to", tmp_path / "combined")):
        code, out, err = call(capsys, name, run, *arguments, "--plugin", plugin)
        assert (code, err) == (0, "") and out
    assert cli.call(["lora", "spectrum", str(run), "--plugin", str(plugin)]) == 0
