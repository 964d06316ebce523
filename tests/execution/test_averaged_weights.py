"""A method that predicts with averaged weights (CLS-ER) is checked, exported and loaded by what it predicts."""

import pytest
import torch
from helpers import TESTS

import clbench
from clbench import cli
from clbench.core.registry import discover
from clbench.results.store import Store
from clbench.testing.checks import CHECKS, check
from clbench.testing.tiny import NonConforming, bench

PLUGIN = TESTS / "helpers" / "mean_er.py"
VERSION = tuple(int(part) for part in torch.__version__.split(".")[:2])
SMALL = {"benchmark": "helpers.tiny_benchmarks:pictures", "model": "mlp:width=16", "scenario": "class", "seeds": 1,
         "epochs": 3, "batch_size": 8, "workers": 0, "keep": "models"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Return the folder of a run of `mean-er`."""
    folder = tmp_path_factory.mktemp("averaged") / "run"
    record, = clbench.run(methods="mean-er", plugins=[PLUGIN], out=folder, **SMALL)
    assert record.status == "done"
    return folder


@pytest.fixture(scope="module")
def info():
    return discover(files=[PLUGIN]).strategy("mean-er")


@pytest.mark.parametrize("name", CHECKS)
def test_it_keeps_all_rules(info, name):
    check(info, name)


def test_the_command_says_so(capsys):
    assert cli.call(["check", str(PLUGIN)]) == 0
    assert f"mean-er keeps all {len(CHECKS)} rules" in capsys.readouterr().out


def test_predictions_that_vary_break_a_rule(info):
    class Noisy(type(bench(info, {}, "class").strategy)):
        def predict(self, x, task=None):
            found = super().predict(x, task)
            return clbench.Prediction(found.logits + torch.rand(()))

    with pytest.raises(NonConforming, match="predict gives different logits for the same samples"):
        check(clbench.StrategyInfo("noisy", Noisy, "varies", info.options), "logits")


def test_the_average_is_the_one_that_predicts(info):
    """The stable weights after a run of steps are the moving average of the trained weights, computed by hand."""
    b = bench(info, {"stable_rate": 1.0, "stable_decay": 0.75, "capacity": 10}, "class")
    strategy = b.strategy
    expected = strategy.model.head.weight.detach().double().clone()
    trained = []
    update = strategy.update

    def noted(average, decay):
        if average is strategy.stable:
            trained.append(strategy.model.head.weight.detach().double().clone())
        update(average, decay)

    strategy.update = noted
    b.learn(0)
    del strategy.update
    for weight in trained:
        expected = 0.75 * expected + 0.25 * weight
    torch.testing.assert_close(strategy.stable.head.weight.double(), expected, rtol=1e-5, atol=1e-6)
    assert len(trained) > 2 and not torch.allclose(strategy.stable.head.weight, strategy.model.head.weight)


def test_a_loaded_model_answers_as_the_trial_did(run, monkeypatch):
    monkeypatch.setenv("CLBENCH_DATA", str(run))
    record, = Store(run).read()[0]
    model = clbench.load_model(run, plugins=[PLUGIN])
    assert model.header.kind == "strategy" and model.network is None
    assert model.evaluate() == model.evaluate(str(run)) == record.R[-1]
    x = torch.rand(5, *model.outline.input_shape)
    averaged = model.strategy.stable(x).masked_fill(~model.offered[0], float("-inf"))
    assert torch.equal(model(x), averaged)
    trained = model.strategy.model(x).masked_fill(~model.offered[0], float("-inf"))
    assert not torch.allclose(averaged, trained)


@pytest.mark.skipif(VERSION < (2, 5), reason="torch.export of torch 2.4 refuses operations in place, with an error")
def test_an_exported_program_has_the_averaged_weights(run, tmp_path):
    assert cli.call(["export", str(run), "--to", str(tmp_path), "--format", "torch-export",
                     "--plugin", str(PLUGIN)]) == 0
    model = clbench.load_model(run, plugins=[str(PLUGIN)])
    program = torch.export.load(tmp_path / "model.pt2").module()
    images = torch.randint(0, 256, (6, *model.outline.sample_shape), dtype=torch.uint8)
    logits = program(images)
    x = model.prepare(images)
    wanted, trained = (net(x).masked_fill(~model.offered[0], float("-inf"))
                       for net in (model.strategy.stable, model.strategy.model))
    torch.testing.assert_close(logits, wanted, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(logits, trained, rtol=1e-4, atol=1e-5)


def test_exported_weights_have_the_averages(run, tmp_path):
    from safetensors.torch import load_file

    assert cli.call(["export", str(run), "--to", str(tmp_path), "--plugin", str(PLUGIN)]) == 0
    weights = load_file(tmp_path / "model.safetensors")
    model = clbench.load_model(run, plugins=[PLUGIN])
    for name, tensor in model.strategy.stable.state_dict().items():
        assert torch.equal(weights[f"stable.{name}"], tensor)


def test_a_method_of_a_file_needs_its_file(run, tmp_path, capsys):
    assert cli.call(["export", str(run), "--to", str(tmp_path)]) == 2
    assert "no method 'mean-er'" in capsys.readouterr().err
