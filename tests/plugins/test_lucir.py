import math

import numpy as np
import pytest
import torch
from clbench_lucir import LUCIROptions
from clbench_lucir.strategy import LUCIR, remove_last_relu
from helpers.exemplars import begun, softmax
from helpers.methods import CLASSES, FEATURES, activate, batch, deep_model, make, move, task
from torch import nn

from clbench.models.network import Block, Network
from clbench.strategy.granted import PhaseSpec


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def papers_loss(f, before, weights, eta, y, old, seen, o):
    """Cross-entropy, less-forget and margin ranking, sample by sample, in numpy; `old` classes, `seen[i]` compete."""
    cosines = unit(f) @ unit(weights).T
    labels = [-math.log(softmax(eta * cosines[i:i + 1, seen[i]])[0, seen[i].index(c)]) for i, c in enumerate(y)]
    less = [1 - float(a @ b) for a, b in zip(unit(f), unit(before), strict=True)]
    ranked = []
    for i, c in enumerate(y):
        if c in old:
            new = sorted((cosines[i, k] for k in seen[i] if k not in old), reverse=True)[:o.negatives]
            ranked += [max(0.0, o.margin - cosines[i, c] + v) for v in new]
    strength = o.lambda_base * math.sqrt(len(old) / (CLASSES - len(old)))
    return (sum(labels) / len(labels) + strength * sum(less) / len(less)
            + o.ranking * (sum(ranked) / len(ranked) if ranked else 0.0))


@pytest.mark.parametrize("scenario", ["class", "task"])
@pytest.mark.parametrize("negatives", [1, 2, 3])  # there are two new classes
def test_the_loss_is_the_papers(scenario, negatives):
    options = LUCIROptions(capacity=12, lambda_base=3.0, ranking=0.7, margin=0.4, negatives=negatives, eta=2.0)
    strategy, b, _ = begun(LUCIR, options, scenario)
    f, before = (net.features(b.x).detach().numpy() for net in (strategy.model, strategy.old))
    weights = strategy.model.head.weight.detach().numpy().copy()
    weights[:4] = strategy.old.head.weight.numpy()[:4]
    assert not np.allclose(weights, strategy.model.head.weight.detach().numpy())
    seen = [list(range(6)) if scenario == "class" else [2 * t, 2 * t + 1] for t in b.tasks.tolist()]
    eta = strategy.model.head.scale.item()
    expected = papers_loss(f, before, weights, eta, b.y.tolist(), {0, 1, 2, 3}, seen, options)
    assert strategy.loss(b).item() == pytest.approx(expected, rel=1e-12)


def test_samples_of_new_classes_only_are_not_ranked():
    strategy, b, _ = begun(LUCIR, LUCIROptions(capacity=12), "class")
    new = batch(2)
    assert strategy.ranking(strategy.head.cosines(strategy.model.features(new.x)), new).item() == 0.0
    assert strategy.ranking(strategy.head.cosines(strategy.model.features(b.x)), b).item() > 0.0


def test_weights_of_old_classes_have_no_gradient_and_end_as_they_began():
    strategy, b, _ = begun(LUCIR, LUCIROptions(capacity=12), "class")
    strategy.loss(b).backward()
    gradient = strategy.model.head.weight.grad
    assert (gradient[:4] == 0).all() and (gradient[4:] != 0).all()
    assert strategy.trainable() == sum(p.numel() for p in strategy.model.parameters()) - 4 * 7
    before, new = strategy.old.head.weight[:4].clone(), strategy.model.head.weight[4:].clone()
    strategy.after_task(task(2))
    assert torch.equal(strategy.model.head.weight[:4], before) and torch.equal(strategy.model.head.weight[4:], new)


def test_the_logits_are_scaled_cosines_and_the_scale_learns_at_its_own_rate():
    strategy, x = make(LUCIR, LUCIROptions(eta=3.0), "class", deep_model), batch(0).x
    f, w = strategy.model.features(x).detach().numpy(), strategy.model.head.weight.detach().numpy()
    np.testing.assert_allclose(strategy(x).detach().numpy(), 3.0 * unit(f) @ unit(w).T, rtol=1e-12, atol=1e-14)
    assert strategy.model.head.scale.requires_grad and strategy.model.head.bias is None
    strategy.before_phase(task(0), PhaseSpec(0, 4, 0.01))
    assert strategy.learning_rates() == {"model.head.scale": pytest.approx(10.0)}


def test_new_classes_begin_with_their_mean_features():
    strategies = {}
    for imprint in (True, False):
        strategies[imprint] = make(LUCIR, LUCIROptions(capacity=12, imprint=imprint), "class", deep_model)
        activate(strategies[imprint], 0)
        strategies[imprint].before_task(task(0))
        move(strategies[imprint], 0)
        strategies[imprint].after_task(task(0))
        before = strategies[imprint].model.head.weight.detach().clone()
        strategies[imprint].before_task(task(1))
        assert torch.equal(strategies[imprint].model.head.weight[[0, 1, 4, 5]], before[[0, 1, 4, 5]])
    assert torch.equal(strategies[False].model.head.weight, before)
    strategy, train = strategies[True], task(1).train
    length = np.linalg.norm(before[:2].numpy(), axis=1).mean()
    for c in (2, 3):
        f = unit(strategy.model.features(train.x[train.y == c]).detach().numpy()).mean(0)
        torch.testing.assert_close(strategy.model.head.weight[c].detach(),
                                   torch.from_numpy(length * f / np.linalg.norm(f)), rtol=1e-12, atol=0)


def test_the_last_relu_is_removed_or_a_note_says_that_there_is_none():
    def net(activation):
        return Network([Block(nn.Flatten(), nn.ReLU()), Block(nn.Linear(FEATURES, 7), activation)],
                       nn.Linear(7, CLASSES))
    for activation in (nn.ReLU(), nn.Sequential(nn.ReLU(), nn.Flatten())):
        network = net(activation)
        assert network.features(torch.randn(50, FEATURES)).min() == 0
        assert remove_last_relu(network) and network.features(torch.randn(50, FEATURES)).min() < 0
        assert isinstance(network.blocks[0].activation, nn.ReLU)
    assert make(LUCIR, LUCIROptions(), "class", deep_model).notes == [
        "lucir: the model's last block does not end in a ReLU; its features are as they are"]
    kept = make(LUCIR, LUCIROptions(last_relu="keep"), "class", lambda: net(nn.ReLU()))
    assert isinstance(kept.model.blocks[-1].activation, nn.ReLU) and not kept.notes
