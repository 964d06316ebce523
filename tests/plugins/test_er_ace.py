import json
import math

import pytest
import torch
import torch.nn.functional as F
from clbench_er_ace import ERACEOptions
from clbench_er_ace.strategy import ERACE
from helpers.methods import CLASSES, activate, batch, deep_model, make

from clbench import cli
from clbench.testing import CHECKS, check


def test_new_samples_compete_among_the_classes_of_their_batch_and_replayed_ones_among_all():
    strategy = make(ERACE, ERACEOptions(capacity=20), "class")
    activate(strategy, 1)
    strategy.prepare_batch(batch(0))
    b = strategy.prepare_batch(batch(1))
    assert b.replayed == 6
    logits = strategy.model(b.x)
    expected = F.cross_entropy(logits[:6, 2:4], b.y[:6] - 2) + F.cross_entropy(logits[6:, :4], b.y[6:])
    torch.testing.assert_close(strategy.loss(b), expected, rtol=1e-12, atol=0)


def test_a_batch_of_new_classes_does_not_touch_old_outputs():
    strategy = make(ERACE, ERACEOptions(), "class")
    activate(strategy, 1)
    strategy.loss(batch(1)).backward()
    gradient = strategy.model.head.weight.grad
    assert (gradient[:2] == 0).all() and (gradient[2:4] != 0).any()


def test_the_cosine_head_by_hand():
    strategy = make(ERACE, ERACEOptions(capacity=20, head="cosine"), "class", deep_model)
    activate(strategy, 1)
    strategy.prepare_batch(batch(0))
    b = strategy.prepare_batch(batch(1))
    assert b.replayed == 6
    features, weights = strategy.model.features(b.x).tolist(), strategy.model.head.weight.tolist()

    def logit(n, c):
        dot = sum(p * q for p, q in zip(features[n], weights[c], strict=True))
        return 10 * dot / (math.hypot(*features[n]) * math.hypot(*weights[c]))

    logits = [[logit(n, c) for c in range(CLASSES)] for n in range(len(b.y))]
    torch.testing.assert_close(strategy(b.x), torch.tensor(logits, dtype=torch.float64), rtol=1e-12, atol=1e-12)

    def mean_loss(rows, classes):
        parts = [math.log(sum(math.exp(logits[n][c]) for c in classes)) - logits[n][b.y[n]] for n in rows]
        return sum(parts) / len(parts)

    expected = mean_loss(range(6), (2, 3)) + mean_loss(range(6, 12), range(4))
    assert strategy.loss(b).item() == pytest.approx(expected, rel=1e-12)


def test_the_cosine_head_knows_no_lengths_and_takes_a_sample_without_features():
    strategy = make(ERACE, ERACEOptions(head="cosine"), "class", deep_model)
    head, x = strategy.model.head, torch.randn(4, 7, dtype=torch.float64)
    logits = head(x)
    assert logits.abs().max() <= 10
    torch.testing.assert_close(head(3 * x), logits, rtol=1e-12, atol=1e-12)
    x = torch.zeros(1, 7, dtype=torch.float64, requires_grad=True)
    head(x).sum().backward()
    assert (head(x) == 0).all() and x.grad.isfinite().all()


def test_the_cosine_head_has_the_same_weights_at_first_and_no_bias():
    linear = make(ERACE, ERACEOptions(), "class", deep_model)
    cosine = make(ERACE, ERACEOptions(head="cosine"), "class", deep_model)
    ours = dict(cosine.named_parameters())
    assert [n for n, _ in linear.named_parameters() if n not in ours] == ["model.head.bias"]
    for name, value in linear.named_parameters():
        if name in ours:
            assert torch.equal(value, ours[name])
    assert linear.trainable() - cosine.trainable() == CLASSES


def test_params_count_the_cosine_head_without_bias(capsys):
    assert cli.call(["params", "--model", "mlp:width=20", "--methods", "er-ace,er-ace:head=cosine", "--classes", "6",
                     "--tasks", "3", "--input-shape", "1x5x6", "--scenario", "class", "--format", "json"]) == 0
    counts = {m["method"]: m for m in json.loads(capsys.readouterr().out)["methods"]}
    linear, cosine = counts["er-ace"], counts["er-ace:head=cosine"]
    weights = (30 + 1) * 20 + (20 + 1) * 20 + 20 * 6
    assert cosine["parameters"] == cosine["trainable"] == [weights] * 3
    assert linear["parameters"] == linear["trainable"] == [weights + 6] * 3
    assert [kept["bytes"]["base"] for kept in cosine["kept"]] == [4 * weights] * 3
    assert cosine["kept"][-1]["bytes"]["replay"] == linear["kept"][-1]["bytes"]["replay"]


@pytest.mark.parametrize("name", CHECKS)
def test_the_cosine_head_conforms(name):
    check("er-ace", name, {"head": "cosine"})


def test_a_linear_head_leaves_keys_as_they_were():
    assert "head" not in ERACEOptions().model_dump() and ERACEOptions.stored({}).head == "linear"
    assert ERACEOptions(head="cosine").model_dump()["head"] == "cosine"
