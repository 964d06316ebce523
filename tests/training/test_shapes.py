"""FLOPs of training, counted on shapes, beside those that runs record."""

from itertools import cycle

import pytest
import torch
import torch.nn.functional as F

from clbench.accounting.count import count
from clbench.accounting.flops import FlopCount
from clbench.accounting.shapes import on_shapes, stream_without_values
from clbench.core.errors import SpecError
from clbench.core.registry import discover
from clbench.execution.trial_runner import TrialRunner
from clbench.experiment.execution_settings import ExecutionSettings
from clbench.experiment.plan import plan
from clbench.experiment.spec import build
from clbench.training import precision
from clbench.training.replica import Replica

REGISTRY = discover()
PICTURES = "helpers.tiny_benchmarks:pictures"  # two tasks of 24 images
EPOCHS, ITERATIONS = {"epochs": 5, "batch_size": 10}, {"iterations": 8, "batch_size": 10}


@pytest.fixture(scope="module")
def runner(tmp_path_factory):
    return TrialRunner(ExecutionSettings(data=tmp_path_factory.mktemp("data")), "cpu", "a test", REGISTRY)


def planned(method, model, recipe=EPOCHS, scenario="task", benchmark=PICTURES):
    return plan(build({"methods": [method], "model": model, "scenario": scenario, "seeds": 1, "recipe": recipe,
                       "benchmark": benchmark}), REGISTRY)[0]


@pytest.fixture
def consolidated(monkeypatch):
    """Note what each task's consolidation computes."""
    found, finish = [], Replica.finish

    def counted(self, task):
        with FlopCount() as count:
            finish(self, task)
        found.append(count.total)

    monkeypatch.setattr(Replica, "finish", counted)
    return found


def both(runner, consolidated, one):
    """Return the FLOPs of each task's training without consolidation, as forecast and as recorded, and the two."""
    ahead = count(one, stream_without_values(runner.stream(one.trial)), REGISTRY, training=True)
    after = [consolidated.copy(), consolidated.clear()][0]
    record = runner.run(one)
    assert record.status == "done", record.failure
    assert ahead.train_flops is not None, ahead.remarks
    assert ahead.trainable == record.costs.trainable
    assert ahead.flops == record.costs.inference_flops[-1]
    return ([total - own for total, own in zip(ahead.train_flops, after, strict=True)],
            [total - own for total, own in zip(record.costs.train_flops, consolidated, strict=True)], ahead, record)


METHODS = ["naive", "ewc", "er:capacity=30", "lora", "pnn"]


@pytest.mark.parametrize(("method", "model", "recipe", "scenario"), [
    *((method, "mlp:width=16", recipe, "task") for method, recipe in zip(METHODS, cycle((EPOCHS, ITERATIONS)))),
    *(pytest.param(method, "mlp:width=16", EPOCHS, "class", marks=pytest.mark.slow) for method in (
        "joint", "lwf", "a-gem:capacity=12", "seq-lora", "ewc-lora", "lora-mean", "frozen", "ncm", "independent",
        "shared-private", "packnet", "lora:dora=true")),
    *((method, "cnn:channels=4", EPOCHS, "task") for method in ("er:capacity=30", "lora")),
    *(pytest.param(method, "timm:test_vit:size=32", EPOCHS, "task", marks=pytest.mark.extra("timm"))
      for method in ("ewc", "lora"))])
def test_a_forecast_is_what_a_run_records(runner, consolidated, method, model, recipe, scenario):
    ahead, recorded, found, record = both(runner, consolidated, planned(method, model, recipe, scenario))
    assert ahead == recorded
    if method not in ("ewc", "ewc-lora"):  # per-sample gradients need values
        assert found.train_flops == record.costs.train_flops


def test_a_forecast_in_bf16_counts_copies_that_learn_beside_frozen_ones(runner, consolidated, monkeypatch):
    monkeypatch.setattr(precision, "MANY", 1)
    ahead, recorded, *_ = both(runner, consolidated, planned(
        "independent", "cnn:channels=4", {**EPOCHS, "precision": "bf16"}))
    assert ahead == recorded


def test_the_flops_of_a_multilayer_perceptrons_training_are_those_of_its_products(runner):
    one = planned("naive", "mlp:width=16", {"epochs": 5, "batch_size": 10})
    found = count(one, stream_without_values(runner.stream(one.trial)), REGISTRY, training=True)
    inputs, width, outputs = 3 * 16 * 16, 16, 4
    forward = 2 * (inputs * width + width * width + width * outputs)
    backward = 2 * forward - 2 * inputs * width  # of weights and inputs, but not of the first layer's inputs
    assert found.train_flops == [5 * 24 * (forward + backward)] * 2


def test_a_budget_of_fewer_steps_than_phases_is_refused(runner):
    one = planned("lora", "mlp:width=16", {"iterations": 1})
    with pytest.raises(SpecError, match="1 steps cannot be split into 2 phases; give the task a larger budget"):
        count(one, stream_without_values(runner.stream(one.trial)), REGISTRY, training=True)


def test_labels_and_masks_go_with_tensors_without_values():
    logits = torch.empty(4, 3, device="meta", requires_grad=True)
    mask, labels = torch.tensor([[True, False, False]]), torch.arange(4) % 3
    with on_shapes():
        loss = F.cross_entropy(logits.masked_fill(mask, -1.0), labels)
        loss.backward()
        assert loss.is_meta and logits.grad.shape == (4, 3)
        assert (labels + labels).tolist() == [0, 2, 4, 0]
        rows = logits[labels == 0]
        assert rows.shape == (2, 3)  # which a mask without values could not say
        with pytest.raises(RuntimeError, match="without values into a tensor that has some"):
            torch.zeros(3).add_(logits[0].detach())


def test_shapes_are_remembered_for_the_same_operation_only():
    with on_shapes():
        for rows in (2, 3, 2):
            x = torch.empty(rows, 5, device="meta")
            assert (x.sum(0).shape, x.sum(1).shape, (x @ x.T).shape) == ((5,), (rows,), (rows, rows))
            values, order = x.topk(2, dim=1)
            assert (values.dtype, order.dtype) == (torch.float32, torch.int64)
            assert x.double().sum().dtype == torch.float64


def test_the_gradients_of_attention_are_those_of_the_fused_one():
    q = torch.empty(2, 3, 5, 8, device="meta", requires_grad=True)
    with on_shapes(), FlopCount() as count:
        F.scaled_dot_product_attention(q, q, q).sum().backward()
    values = torch.randn(2, 3, 5, 8, requires_grad=True)
    with FlopCount() as real:
        F.scaled_dot_product_attention(values, values, values).sum().backward()
    assert count.total == real.total == 7 * 2 * (2 * 3 * 5 * 5 * 8)


def test_a_model_that_does_not_take_its_inputs_is_found_before_training(runner):
    one = planned("naive", "cnn:size=1")
    line = (r"model cnn:size=1:channels=32:depth=2 does not work on inputs \[3, 1, 1\]: .*; choose another size "
            r"\(cnn:size=PX\) or another model")
    with pytest.raises(SpecError, match=line):
        runner.prepare(one.trial)
    with pytest.raises(SpecError, match=line):
        count(one, stream_without_values(runner.stream(one.trial)), REGISTRY, training=True)


PLUGIN = '''
import math

from torch import nn
from clbench import Block, ModelInfo, Network, hookimpl

def no_network(options, input_shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(3, classes))

def not_flat(options, input_shape, classes):
    return Network([Block(nn.Conv2d(3, 4, 3), nn.ReLU())], nn.Linear(4, classes))

def other_classes(options, input_shape, classes):
    hidden = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(input_shape), 5))
    return Network([Block(hidden, nn.ReLU())], nn.Linear(5, classes + 1))

@hookimpl
def clbench_models():
    return [ModelInfo("no-network", no_network, ""), ModelInfo("not-flat", not_flat, ""),
            ModelInfo("other-classes", other_classes, "")]
'''


@pytest.fixture(scope="module")
def faulty(tmp_path_factory):
    file = tmp_path_factory.mktemp("plugin") / "faulty_models.py"
    file.write_text(PLUGIN)
    return discover(files=file)


@pytest.mark.parametrize(("model", "message"), [
    ("no-network", r"the build function of model no-network returned a Sequential; it must return a clbench\.Network"),
    ("not-flat", r"not-flat does not work on inputs .*: its features are \[N, 4, \d+, \d+\], and must be one vector"),
    ("other-classes", r"model other-classes has \d outputs, and must have \d, the number of classes"),
])
def test_a_mistake_in_a_plugins_model_is_named_before_training(model, message, faulty, tmp_path):
    runner = TrialRunner(ExecutionSettings(data=tmp_path), "cpu", "a test", faulty)
    spec = build({"methods": "naive", "benchmark": PICTURES, "model": model, "scenario": "class", "seeds": 1})
    with pytest.raises(SpecError, match=message):
        runner.prepare(plan(spec, faulty)[0].trial)
