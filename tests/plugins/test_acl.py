import copy
import math

import pytest
import torch
import torch.nn.functional as F
from clbench_acl import ACLOptions
from clbench_acl.strategy import ACL, overlap, private_module, reversed_gradient
from helpers.methods import FEATURES, activate, batch, deep_model, make, move, task
from pydantic import ValidationError
from torch import nn

from clbench.testing.tiny import MODELS
from clbench.training.costs import measure


def learned(options, tasks=2, scenario="task"):
    strategy = make(ACL, options, scenario, deep_model)
    for index in range(tasks):
        activate(strategy, index)
        strategy.before_task(task(index))
        move(strategy, index)
        strategy.after_task(task(index))
    return strategy


def begun(options, scenario="task"):
    """Return a strategy in its third task, with a batch."""
    strategy = learned(options, 2, scenario)
    activate(strategy, 2)
    strategy.before_task(task(2))
    return strategy, strategy.prepare_batch(batch(2))


def by_hand(strategy, b):
    """Return the four terms, sample by sample."""
    shared = [strategy.model.features(x[None])[0] for x in b.x]
    private = [strategy.private[t](x[None])[0] for x, t in zip(b.x, b.tasks.tolist(), strict=True)]
    label = told = noise = apart = 0.0
    n = len(b.y)
    for s, p, y, t, z in zip(shared, private, b.y.tolist(), b.tasks.tolist(), strategy.noise, strict=True):
        own = strategy.heads[t].weight @ torch.cat([s, p]) + strategy.heads[t].bias
        label = label - own.log_softmax(0)[y - 2 * t] / n
        told = told - strategy.discriminator(s[None])[0].log_softmax(0)[1 + t] / n
        noise = noise - strategy.discriminator(z[None])[0].log_softmax(0)[0] / n
    for d in range(len(shared[0])):
        for e in range(len(private[0])):
            entry = sum(s[d] / s.norm() * (p[e] / p.norm().clamp_min(1e-12))
                        for s, p in zip(shared, private, strict=True))
            apart = apart + (entry / n)**2
    return label, told, noise, apart


@pytest.mark.parametrize("memory", [0, 3])
@pytest.mark.parametrize("scenario", ["task", "class"])
def test_the_loss_has_four_terms(memory, scenario):
    strategy, b = begun(ACLOptions(memory=memory, orthogonality=0.7, private_width=4), scenario)
    assert b.tasks.tolist() == [2] * 6 + ([0] * 3 + [1] * 3 if memory else [])
    label, told, noise, apart = by_hand(strategy, b)
    torch.testing.assert_close(strategy.loss(b), label + told + noise + 0.7 * apart, rtol=1e-10, atol=0)


def test_the_discriminator_learns_and_the_shared_module_unlearns():
    strategy, b = begun(ACLOptions(memory=3, adversarial=0.3, orthogonality=0.2, private_width=4))
    trained = {n: p for n, p in strategy.named_parameters() if p.requires_grad}
    got = dict(zip(trained, torch.autograd.grad(strategy.loss(b), trained.values()), strict=True))
    label, told, noise, apart = by_hand(strategy, b)
    forward, back, fake = (dict(zip(trained, torch.autograd.grad(term, trained.values(), allow_unused=True,
                                                                 retain_graph=True), strict=True))
                           for term in (label + 0.2 * apart, told, noise))
    assert {n.split(".")[0] for n in trained} == {"model", "private", "discriminator", "heads"}
    for name in trained:
        kind = name.split(".")[0]
        expected = {"model": lambda n: forward[n] - 0.3 * back[n], "discriminator": lambda n: back[n] + fake[n],
                    "private": lambda n: forward[n], "heads": lambda n: forward[n]}[kind](name)
        torch.testing.assert_close(got[name], expected, rtol=1e-9, atol=1e-14)
    assert all(back[n].abs().max() > 0 for n in trained if n.startswith("model."))


def test_a_reversed_gradient_changes_no_value():
    x = torch.randn(50, requires_grad=True)
    y = reversed_gradient(x, 0.37)
    assert torch.equal(y, x)
    y.backward(torch.ones(50))
    assert torch.allclose(x.grad, torch.tensor(-0.37))


def test_the_overlap_is_none_where_one_side_is_orthogonal_and_whole_where_both_are_one_direction():
    s, p = torch.eye(4, dtype=torch.float64)[:2], torch.tensor([[3.0, 0], [3.0, 0]], dtype=torch.float64)
    assert overlap(s.repeat(3, 1)[[0] * 6], p[[0] * 6]) == pytest.approx(1.0)
    balanced = torch.cat([p, -p])
    assert overlap(s[[0] * 4], balanced) == pytest.approx(0.0)
    g = torch.Generator().manual_seed(0)
    a, b = (F.normalize(torch.randn(5, d, generator=g, dtype=torch.float64)) for d in (3, 7))
    expected = sum(float(a[i] @ a[j] * (b[i] @ b[j])) for i in range(5) for j in range(5)) / 25
    assert float(overlap(2 * a, 9 * b)) == pytest.approx(expected)


def test_private_parts_of_learned_tasks_are_fixed_and_the_shared_module_is_not():
    strategy = learned(ACLOptions(private_width=4))
    before = copy.deepcopy(strategy.state_dict())
    activate(strategy, 2)
    strategy.before_task(task(2))
    move(strategy, 2)
    changed = {n for n, value in strategy.state_dict().items() if n in before and not n.startswith("discriminator")
               and not torch.equal(value, before[n])}
    assert changed == {n for n in before if n.startswith("model.blocks")}
    assert strategy.discriminator[-1].out_features == 4  # noise and three tasks


def test_the_task_is_inferred_by_the_answers_only():
    strategy = learned(ACLOptions(infer="max-logit", private_width=4), scenario="class")
    x = batch(1).x
    logits = torch.stack([strategy.forward_task(x, t) for t in range(2)])
    assert torch.equal(strategy.learned_logits(x), logits)
    found = strategy.predict(x)
    assert torch.equal(found.task, logits.amax(2).argmax(0))
    with pytest.raises(ValidationError, match="infer"):
        ACLOptions(infer="prototype")
    with pytest.raises(ValidationError, match="'entropy' or 'max-logit'"):
        ACLOptions(infer="gaussian")  # its shared features change


def test_what_it_keeps():
    strategy = learned(ACLOptions(memory=5, private_width=4))
    kept = measure(strategy)
    assert kept.replay_samples == 10 and strategy.memory_tasks.tolist() == [0] * 5 + [1] * 5
    hidden = strategy.model.head.in_features
    assert kept.parameters["private"] == 2 * (FEATURES + 1) * 4
    assert kept.parameters["heads"] == 2 * 2 * (hidden + 4 + 1)
    assert kept.parameters["discriminator"] == 175 * (hidden + 1) + 175 * 176 + 3 * 176
    x, y = strategy.memory_x, strategy.memory_y
    for i in range(10):
        source = task(i // 5).train
        assert ((source.x == x[i]).all(1) & (source.y == y[i])).any()


@pytest.mark.parametrize("name", MODELS)
def test_the_private_module_is_of_the_models_kind(name):
    module = private_module(MODELS[name]((3, 32, 32), 4), (3, 32, 32), 10)
    assert module(torch.rand(2, 3, 32, 32)).shape == (2, 10)
    convolutions = [m for m in module.modules() if isinstance(m, nn.Conv2d)]
    assert [c.out_channels for c in convolutions] == ([] if name in ("mlp", "linear") else [5, 10])
    large = private_module(MODELS["cnn"]((3, 8, 8), 4), (3, 64, 64), 10)
    linear = next(m for m in large.modules() if isinstance(m, nn.Linear))
    assert linear.in_features == 20 * 8 * 8
    assert math.isfinite(float(large(torch.rand(1, 3, 64, 64)).sum().detach()))
