import numpy as np
import pytest
import torch
from clbench_gpm import GPMOptions
from clbench_gpm.strategy import GPM
from helpers.methods import activate, deep_model, make, task
from helpers.per_task import make_model, make_stream_info, make_task

from clbench.core.errors import SpecError
from clbench.core.registry import discover
from clbench.experiment.spec import Recipe
from clbench.models.network import Block, Network
from clbench.strategy.base import Batch
from clbench.strategy.subspace import rows
from clbench.testing import tiny
from clbench.testing.tiny import bench
from clbench.training.costs import measure

SGD = Recipe(optimizer="sgd", lr=0.05, momentum=0.9, batch_size=8, epochs=3)


def reference(matrix, basis, threshold):
    """Equations 8 and 9 with numpy's SVD of the inputs (columns): the basis with the directions that are added."""
    rest = matrix - basis @ (basis.T @ matrix)
    u, s, _ = np.linalg.svd(rest, full_matrices=False)
    total = (matrix**2).sum()
    held = (total - (s**2).sum()) / total
    count = 0
    while held < threshold and count < len(s):
        held += s[count] ** 2 / total
        count += 1
    return np.hstack([basis, u[:, :count]])


def inputs_of(strategy, samples):
    """The input matrix of each projected layer, as columns."""
    found, handles = {}, []
    for name, layer in strategy.projected().items():
        handles.append(layer.register_forward_pre_hook(
            lambda layer, x, name=name: found.update({name: rows(layer, x[0]).detach().numpy().T})))
    strategy.model(samples.x.double())
    for handle in handles:
        handle.remove()
    return found


def train(strategy, index, steps=5, lr=0.3):
    """Plain SGD by hand, with the strategy's gradients."""
    t = task(index)
    activate(strategy, index)
    strategy.before_task(t)
    learned = {n: p for n, p in strategy.named_parameters() if p.requires_grad}
    for _ in range(steps):
        loss = strategy.loss(Batch(t.train.x, t.train.y, t.train.tasks, index))
        found = dict(zip(learned, torch.autograd.grad(loss, list(learned.values())), strict=True))
        for name, gradient in strategy.edit_gradients(found).items():
            learned[name].data -= lr * gradient
    strategy.after_task(t)
    return t


@pytest.mark.parametrize("scenario", ["task", "class"])
def test_subspaces_are_those_of_the_papers_svd(scenario):
    strategy = make(GPM, GPMOptions(threshold=0.8, increase=0.05, samples=12), scenario, deep_model)
    layers = ["blocks.1.body"] + (["head"] if scenario == "class" else [])
    assert list(strategy.projected()) == layers
    bases = {name: np.zeros((strategy.stored_projector(name).shape[0], 0)) for name in layers}
    for index in range(3):
        t = train(strategy, index)
        for name, matrix in inputs_of(strategy, t.train).items():
            bases[name] = reference(matrix, bases[name], 0.8 + 0.05 * index)
            expected = torch.from_numpy(bases[name] @ bases[name].T)
            torch.testing.assert_close(strategy.stored_projector(name), expected, rtol=1e-8, atol=1e-8)
    assert 0 < bases[layers[0]].shape[1] <= 5


def test_outputs_of_a_layer_for_stored_inputs_stay_the_same_with_sgd():
    strategy = make(GPM, GPMOptions(threshold=1.0, increase=0.0, samples=12, outputs="seen"), "class", deep_model)
    few = torch.randn(2, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)  # a plane

    def narrow(index):
        t = task(index)
        t.train.x.copy_(t.train.x[:, :2] @ few)
        return t

    t = narrow(0)
    activate(strategy, 0)
    strategy.before_task(t)
    strategy.after_task(t)
    layer = strategy.model.blocks[1].body
    old, weight, logits = layer(t.train.x).detach(), layer.weight.detach().clone(), strategy.model(t.train.x).detach()
    train(strategy, 1)
    assert (layer.weight - weight).abs().max() > 1e-2
    torch.testing.assert_close(layer(t.train.x), old, rtol=0, atol=1e-13)
    torch.testing.assert_close(strategy.model(t.train.x), logits, rtol=0, atol=1e-12)  # so through the head


def test_adam_steps_leave_the_complement_which_is_why_it_needs_sgd(monkeypatch):
    changed = {}
    for optimizer in ("sgd", "adam"):
        recipe = Recipe(optimizer=optimizer, lr=0.05 if optimizer == "sgd" else 0.01, batch_size=8, epochs=3)
        monkeypatch.setattr(tiny, "RECIPE", recipe)
        b = bench(discover().strategy("gpm"), {"threshold": 0.99}, "task", model="mlp")
        b.learn(0)
        layer = b.strategy.model.blocks[0].body[1]
        projector, weight = b.strategy.stored_projector("blocks.0.body.1"), layer.weight.detach().clone()
        b.learn(1)
        change = layer.weight.detach() - weight
        changed[optimizer] = float((change @ projector).norm() / change.norm())
    assert changed["sgd"] < 1e-4 < 0.05 < changed["adam"]


@pytest.mark.parametrize("model", ["cnn", "resnet20", "vit"])
def test_momentum_stays_in_the_complement_and_all_else_is_fixed(model, monkeypatch):
    monkeypatch.setattr(tiny, "RECIPE", SGD)
    b = bench(discover().strategy("gpm"), {"threshold": 0.9}, "task", model=model)
    b.learn(0)
    strategy = b.strategy
    projected = {f"model.{name}.weight": strategy.stored_projector(name) for name in strategy.projected()}
    before = {n: t.clone() for n, t in strategy.state_dict().items() if not n.startswith("subspace__")}
    b.learn(1)
    after = strategy.state_dict()
    for name, old in before.items():
        change = after[name] - old
        if name in projected:
            flat = change.flatten(1)
            assert flat.norm() > 0 and (flat @ projected[name]).norm() < 1e-4 * flat.norm() + 1e-6, name
        elif name.startswith("model.head"):
            assert change.any()
        else:
            assert not change.any(), name  # biases, normalization and its statistics, positions


def test_the_head_is_projected_where_its_rows_compete():
    for scenario, expected in (("task", False), ("class", True), ("domain", True)):
        strategy = GPM(make_model("cnn"), make_stream_info(scenario), GPMOptions())
        assert ("head" in strategy.projected()) is expected
        strategy.before_task(make_task(0))
        assert all(p.requires_grad for p in strategy.parameters())
        strategy.before_task(make_task(1))
        assert strategy.model.head.weight.requires_grad
        assert strategy.model.head.bias.requires_grad is not expected


def test_half_a_projector_per_layer_is_kept():
    strategy = GPM(make_model(), make_stream_info("class"), GPMOptions())
    strategy.before_task(make_task(0))
    strategy.after_task(make_task(0))
    strategy.before_task(make_task(1))
    sizes = [64, 12, 12]
    assert measure(strategy).bytes["subspaces"] == 4 * sum(d * (d + 1) // 2 for d in sizes)


def test_a_layer_that_is_never_called_is_refused():
    class Reads(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.read = torch.nn.Linear(5, 5)

        def forward(self, x):
            return x @ self.read.weight

    def model():
        return Network([Block(Reads(), torch.nn.Identity())], torch.nn.Linear(5, 6))

    strategy = make(GPM, GPMOptions(), "task", model)
    strategy.before_task(task(0))
    with pytest.raises(SpecError, match=r"gpm: blocks\.0\.body\.read is never called"):
        strategy.after_task(task(0))
