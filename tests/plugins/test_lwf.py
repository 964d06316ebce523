import pytest
import torch
import torch.nn.functional as F
from clbench_lwf import LwFOptions
from clbench_lwf.strategy import LwF
from helpers.methods import activate, batch, deep_model, make, move, task

from clbench.strategy.distillation import distillation
from clbench.training.trials.costs import measure


def papers_loss(logits, old, columns, temperature):
    """Equations 2 to 4: probabilities to the power of 1/T, normalised."""
    p, q = old[:, columns].softmax(1) ** (1 / temperature), logits[:, columns].softmax(1) ** (1 / temperature)
    p, q = p / p.sum(1, keepdim=True), q / q.sum(1, keepdim=True)
    return -(p * q.log()).sum(1).mean()


@pytest.mark.parametrize("temperature", [1.0, 2.0, 7.0])
def test_distillation_is_the_papers(temperature):
    g = torch.Generator().manual_seed(0)
    logits, old = (torch.randn(5, 6, generator=g, dtype=torch.float64) for _ in range(2))
    outputs = torch.tensor([True, False, True, True, False, False])
    got = distillation(logits, old, outputs, temperature)
    torch.testing.assert_close(got, papers_loss(logits, old, [0, 2, 3], temperature), rtol=1e-12, atol=0)
    assert distillation(old, old, outputs, temperature) <= got


@pytest.mark.parametrize(("scenario", "groups"), [("task", [[0, 1], [2, 3]]), ("class", [[0, 1, 2, 3]])])
def test_old_tasks_are_kept_apart_only_where_the_task_is_known(scenario, groups):
    strategy = make(LwF, LwFOptions(strength=0.7), scenario, deep_model)
    for index in range(2):
        activate(strategy, index)
        strategy.before_task(task(index))
        move(strategy, index)
        strategy.after_task(task(index))
    b = batch(2)
    activate(strategy, 2)
    old = strategy.model(b.x).detach()
    move(strategy, 9)
    logits = strategy.model(b.x)
    columns = [4, 5] if scenario == "task" else list(range(6))
    expected = F.cross_entropy(logits[:, columns], b.y - columns[0])
    for group in groups:
        expected = expected + 0.7 * papers_loss(logits, old, group, 2.0)
    torch.testing.assert_close(strategy.loss(b), expected, rtol=1e-12, atol=0)


def test_the_first_task_is_fine_tuning_and_one_old_network_is_kept():
    strategy = make(LwF, LwFOptions())
    b = batch(0)
    assert torch.equal(strategy.loss(b), strategy.cross_entropy(strategy.model(b.x), b))
    for index in range(3):
        strategy.after_task(task(index))
        strategy.train()
    own = sum(p.numel() for p in strategy.model.parameters())
    assert measure(strategy).parameters == {"base": own, "old network": own}
    assert strategy.model.training and not strategy.old.training
    assert {n for n, p in strategy.named_parameters() if p.requires_grad} == {
        f"model.{n}" for n, _ in strategy.model.named_parameters()}
