import torch
import torch.nn.functional as F
from clbench_er_ace import ERACEOptions
from clbench_er_ace.strategy import ERACE
from helpers.methods import activate, batch, make


def test_new_samples_compete_among_the_classes_of_their_batch_and_replayed_ones_among_all():
    strategy = make(ERACE, ERACEOptions(capacity=20), "class")
    activate(strategy, 1)
    strategy.augment_batch(batch(0))
    b = strategy.augment_batch(batch(1))
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
