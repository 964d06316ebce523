import copy

import pytest
import torch
import torch.nn.functional as F
from clbench_der import DEROptions, DERPPOptions
from clbench_der.strategy import DER, DERPP
from helpers.methods import batch, deep_model, make, move, task

from clbench.training.costs import measure


def offer(strategy, rounds):
    for step in range(rounds):
        strategy.prepare_batch(batch(step % 3, 5 + step))


@pytest.mark.parametrize("cls, options", [(DER, DEROptions(capacity=9)), (DERPP, DERPPOptions(capacity=9))])
def test_logits_stay_beside_the_samples_they_are_of(cls, options):
    strategy = make(cls, options, "class", deep_model)
    offer(strategy, 7)  # far more than it holds: slots are replaced
    assert len(strategy.memory_y) == len(strategy.memory_logits) == 9
    torch.testing.assert_close(strategy.memory_logits, strategy.model(strategy.memory_x))


def test_logits_are_those_of_when_a_sample_was_met():
    strategy = make(DER, DEROptions(capacity=50), "class")
    first = batch(0)
    strategy.prepare_batch(first)
    then = strategy.model(first.x).detach()
    move(strategy, 0)
    strategy.prepare_batch(batch(1))
    torch.testing.assert_close(strategy.memory_logits[:6], then)
    torch.testing.assert_close(strategy.memory_logits[6:], strategy.model(batch(1).x).detach())


@pytest.mark.parametrize("cls, options", [(DER, DEROptions(capacity=9, alpha=0.4)),
                                          (DERPP, DERPPOptions(capacity=9, alpha=0.4, beta=0.7))])
def test_the_loss_by_hand(cls, options):
    strategy = make(cls, options, "class", deep_model)
    strategy.class_mask[:] = True
    offer(strategy, 3)
    move(strategy, 1)
    memory = copy.deepcopy(strategy.memory), strategy.memory_logits.clone()
    generator = torch.Generator()
    generator.set_state(strategy.stream_info.generator.get_state())
    new = batch(2, 4)
    got = strategy.loss(strategy.prepare_batch(new))
    draws = [torch.randperm(9, generator=generator)[:4] for _ in range(2)]
    expected = F.cross_entropy(strategy.model(new.x), new.y)
    expected = expected + 0.4 * (strategy.model(memory[0].x[draws[0]]) - memory[1][draws[0]]).square().mean()
    if cls is DERPP:
        expected = expected + 0.7 * F.cross_entropy(strategy.model(memory[0].x[draws[1]]), memory[0].y[draws[1]])
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=0)


def test_the_first_batch_is_fine_tuning_and_what_is_kept_is_counted():
    strategy = make(DER, DEROptions(capacity=9), "class")
    b = batch(0)
    strategy.class_mask[:] = True
    assert strategy.prepare_batch(b) is b
    torch.testing.assert_close(strategy.loss(b), F.cross_entropy(strategy.model(b.x), b.y))
    strategy.prepare_batch(batch(1))
    kept = measure(strategy)
    assert kept.replay_samples == 9
    assert kept.bytes["replay"] == 9 * (5 + 1 + 1 + 6) * 8  # inputs and logits (float64 here), label, task


def test_a_memory_with_logits_is_loaded_into_a_new_strategy():
    strategy = make(DER, DEROptions(capacity=9), "class")
    offer(strategy, 4)
    twin = make(DER, DEROptions(capacity=9), "class", seed=1)
    twin.load_state_dict(strategy.state_dict())
    for name in ("memory_x", "memory_y", "memory_logits"):
        assert torch.equal(getattr(twin, name), getattr(strategy, name))
    twin.offer(task(1).train)
