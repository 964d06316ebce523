import copy

import pytest
import torch
import torch.nn.functional as F
from clbench_mir import MIROptions
from clbench_mir.strategy import MIR
from helpers.methods import batch, deep_model, make, task

from clbench.core.registry import discover
from clbench.strategy.granted import PhaseSpec
from clbench.testing.tiny import bench


def ready(scenario="class", lr=0.4, head_lr=None, **options):
    """Return a strategy in its third task, with a memory of the first two."""
    strategy = make(MIR, MIROptions(**options), scenario, deep_model)
    for index in range(2):
        if scenario == "class":
            strategy.class_mask[:, :2 * index + 2] = True
        strategy.after_task(task(index))
    if scenario == "class":
        strategy.class_mask[:] = True
    strategy.before_phase(task(2), PhaseSpec(0, 10, lr, head_lr))
    return strategy


def one_loss(model, x, y, task_, scenario):
    """The cross-entropy of one sample, written out."""
    logits = model(x[None])[0]
    own = logits[2 * task_:2 * task_ + 2] if scenario == "task" else logits
    return own.exp().sum().log() - logits[y]


@pytest.mark.parametrize(("scenario", "head_lr"), [("task", None), ("class", None), ("class", 1.5)])
def test_the_most_interfered_are_replayed_by_brute_force(scenario, head_lr):
    strategy = ready(scenario, head_lr=head_lr, capacity=24, replayed=5, candidates=3)
    new = batch(2)
    twin = copy.deepcopy(strategy)
    drawn = twin.sample(15)  # the same draw
    plain = copy.deepcopy(strategy.model)
    losses = [one_loss(plain, x, int(y), 2, scenario) for x, y in zip(new.x, new.y, strict=True)]
    gradients = torch.autograd.grad(torch.stack(losses).mean(), list(plain.parameters()))
    stepped = copy.deepcopy(plain)
    for (name, p), g in zip(stepped.named_parameters(), gradients, strict=True):
        p.data -= (head_lr if head_lr and name.startswith("head.") else 0.4) * g
    with torch.no_grad():
        rises = [float(one_loss(stepped, x, int(y), int(t), scenario) - one_loss(plain, x, int(y), int(t), scenario))
                 for x, y, t in zip(drawn.x, drawn.y, drawn.tasks, strict=True)]
    best = sorted(range(15), key=lambda i: -rises[i])[:5]
    torch.testing.assert_close(twin.scores(new, drawn), torch.tensor(rises, dtype=torch.float64), rtol=1e-9, atol=1e-12)
    out = strategy.prepare_batch(new)
    assert out.replayed == 5 and torch.equal(out.x[:6], new.x)
    assert torch.equal(out.x[6:], drawn.x[best]) and torch.equal(out.y[6:], drawn.y[best])
    assert torch.equal(out.tasks[6:], drawn.tasks[best])
    assert min(rises[i] for i in best) > max(rises[i] for i in range(15) if i not in best)


def test_the_imagined_step_depends_on_the_learning_rate_and_leaves_no_trace():
    strategy = ready(capacity=24)
    new, memory = batch(2), strategy.memory
    before = {n: t.clone() for n, t in strategy.state_dict().items()}
    small = strategy.scores(new, memory)
    strategy.before_phase(task(2), PhaseSpec(0, 10, 0.8))
    large = strategy.scores(new, memory)
    strategy.before_phase(task(2), PhaseSpec(0, 10, 0.0))
    assert strategy.scores(new, memory).abs().max() == 0 < (large - small).abs().max()
    assert all(torch.equal(before[n], t) for n, t in strategy.state_dict().items())
    assert all(p.grad is None for p in strategy.parameters())


def test_running_statistics_and_modes_are_left_alone():
    b = bench(discover().strategy("mir"), {"capacity": 20, "replayed": 3}, "class", model="resnet20")
    b.learn(0)
    b.replica.begin(1)
    b.strategy.train()
    before = {n: t.clone() for n, t in b.strategy.model.state_dict().items()}
    assert b.strategy.prepare_batch(b.batch(1)).replayed == 3
    assert all(torch.equal(before[n], t) for n, t in b.strategy.model.state_dict().items())
    assert all(m.training for m in b.strategy.model.modules())


def test_the_loss_is_the_mean_over_both():
    strategy = ready(capacity=24, replayed=5)
    out = strategy.prepare_batch(batch(2))
    expected = F.cross_entropy(strategy.model(out.x), out.y)
    torch.testing.assert_close(strategy.loss(out), expected)


def test_by_default_as_many_are_replayed_as_are_new_and_only_of_earlier_tasks():
    strategy = ready(capacity=24)
    out = strategy.prepare_batch(batch(2, 4))
    assert out.replayed == 4 and set(out.tasks[4:].tolist()) <= {0, 1}
    first = make(MIR, MIROptions(), "class", deep_model)
    assert first.prepare_batch(b := batch(0)) is b and not len(first.memory_y)
    by_step = make(MIR, MIROptions(update="step"), "class", deep_model)
    by_step.class_mask[:, :2] = True
    by_step.prepare_batch(batch(0))
    assert by_step.prepare_batch(batch(0)).tasks[6:].tolist() == [0] * 6


def test_a_memory_without_a_choice_is_replayed_whole():
    strategy = ready(capacity=3)
    out = strategy.prepare_batch(batch(2))
    assert out.replayed == 3 and sorted(out.y[6:].tolist()) == sorted(strategy.memory_y.tolist())


def test_outputs_of_new_samples_may_be_their_own():
    strategy = ready(capacity=24, outputs="own")
    strategy.class_mask[:] = False
    for index in range(3):
        strategy.class_mask[index, 2 * index:2 * index + 2] = True
    drawn = strategy.memory
    plain = copy.deepcopy(strategy.model)
    new = batch(2)
    gradients = torch.autograd.grad(F.cross_entropy(plain(new.x)[:, 4:], new.y - 4), list(plain.parameters()))
    before = F.cross_entropy(plain(drawn.x), drawn.y, reduction="none")  # replayed samples: among all so far
    for p, g in zip(plain.parameters(), gradients, strict=True):
        p.data -= 0.4 * g
    after = F.cross_entropy(plain(drawn.x), drawn.y, reduction="none")
    torch.testing.assert_close(strategy.scores(new, drawn), (after - before).detach(), rtol=1e-9, atol=1e-12)
