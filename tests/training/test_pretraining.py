import numpy as np
import pytest
from safetensors import safe_open
from safetensors.torch import load_file

from clbench.cli import call
from clbench.cli.pretrain import Pretrained, pretrain
from clbench.core.errors import ClbenchError
from clbench.core.registry import discover
from clbench.execution.trial_runner import TrialRunner
from clbench.experiment.execution_settings import ExecutionSettings
from clbench.experiment.plan import plan
from clbench.experiment.spec import build


def trial(**settings):
    recipe = {"epochs": 1, "batch_size": 20, **settings.pop("recipe", {})}
    spec = build({"benchmark": "helpers.tiny_benchmarks:flat", "model": "mlp:width=8", "methods": "naive",
                  "scenario": "class", "seeds": [0], "recipe": recipe, **settings})
    return plan(spec, discover())[0].trial


def test_a_base_is_the_trained_body_and_methods_build_on_it(tmp_path):
    out = tmp_path / "deep" / "base.safetensors"
    done = pretrain(trial(recipe={"epochs": 30, "lr": 0.01}), out, ExecutionSettings(data=tmp_path), "cpu",
                    discover())
    weights = load_file(out)
    assert not any(name.startswith("head") for name in weights) and done.accuracy > 1 / done.classes
    with safe_open(out, "pt") as handle:
        assert handle.metadata()["benchmark"] == "helpers.tiny_benchmarks:flat"
    on_it = trial(weights=str(out), methods=[{"name": "lora", "options": {"base": "pretrained", "rank": 2}}])
    runner = TrialRunner(ExecutionSettings(data=tmp_path), "cpu", "")
    strategy, notes = runner.build(on_it, runner.stream(on_it))
    assert notes == ["weights: no head of this size, it starts untrained"]
    base = strategy.model.blocks[1].body.base_layer.weight
    assert (base == weights["blocks.1.body.weight"]).all()


def test_domains_with_the_same_classes_share_their_outputs(tmp_path):
    shifting = trial(benchmark="helpers.tiny_benchmarks:shifting", scenario="task", recipe={"epochs": 2})
    done = pretrain(shifting, tmp_path / "base.safetensors", ExecutionSettings(data=tmp_path), "cpu", discover())
    assert (done.classes, done.samples) == (4, 3 * 150) and 0 < done.accuracy <= 1


def test_training_that_diverges_writes_nothing(tmp_path):
    with pytest.raises(ClbenchError, match="NaN or infinite in task 1"):
        pretrain(trial(recipe={"optimizer": "sgd", "lr": 1e30, "epochs": 3}), tmp_path / "x.safetensors",
                 ExecutionSettings(data=tmp_path), "cpu", discover())
    assert not (tmp_path / "x.safetensors").exists()


def test_the_command(tmp_path, capsys):
    out = tmp_path / "base.safetensors"
    args = ["pretrain", "split-mnist-5k", "--model", "mlp:width=8", "--iterations", "3", "--data", str(tmp_path)]
    assert call([*args, "--out", str(out)]) == 0
    assert "10 classes, 4,000 samples, 3 steps" in capsys.readouterr().out and out.is_file()
    assert call([*args, "--out", str(tmp_path / "base.pt")]) == 2
    assert "ends in .safetensors" in capsys.readouterr().err


def test_a_file_that_cannot_be_written_is_named_before_training(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(TrialRunner, "stream", lambda *_: pytest.fail("data were read"))
    (tmp_path / "file").touch()
    out = tmp_path / "file" / "base.safetensors"
    assert call(["pretrain", "split-mnist-5k", "--out", str(out)]) == 2
    assert f"cannot write to the folder {out.parent}: File exists; choose another file with --out" in (
        capsys.readouterr().err)


def test_a_benchmark_without_classes_is_refused(tmp_path, capsys):
    table = tmp_path / "numbers.csv"
    table.write_text("a,target\n" + "".join(f"{i},{i / 2}\n" for i in range(40)))
    args = ["pretrain", f"table:{table}:target_column=target", "--out", str(tmp_path / "x.safetensors")]
    assert call(args) == 2
    assert "has no classes, and clbench pretrain trains classifiers only" in capsys.readouterr().err


def test_held_out_classes_are_what_is_trained_on(tmp_path, capsys, monkeypatch):
    asked = []

    def stand_in(trial, *_):
        asked.append(trial)
        return Pretrained(classes=50, samples=1, steps=1, accuracy=0.5)

    monkeypatch.setattr("clbench.cli.pretrain.pretrain", stand_in)
    benchmarks = ["split-cifar100:held_out=50", "split-cifar100:held_out=50:task_sizes=25+25",
                  "arrays:mine.npz:held_out=0.3"]
    np.savez(tmp_path / "mine.npz", X_train=np.zeros((8, 3, 8, 8), np.uint8), y_train=np.arange(8) % 4)
    monkeypatch.chdir(tmp_path)
    for benchmark in benchmarks:
        assert call(["pretrain", benchmark, "--model", "resnet20", "--out", "b.safetensors"]) == 0
        assert "50 classes" in capsys.readouterr().out
    *held_out, own = [trial.benchmark.options for trial in asked]
    for options in held_out:
        assert (options["part"], options["tasks"], options["held_out"]) == ("held-out", 1, 50)
    assert own["held_out"] == 0.3 and "part" not in own  # a share of the samples, for the test set
