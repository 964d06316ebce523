"""A `StreamInfo` of small tasks, a few training steps by hand, and seeds stacked by torch.func."""

import math

import torch
from torch import nn
from torch.func import functional_call, grad, stack_module_state, vmap

from clbench.data.samples import Samples
from clbench.models.builtin import CNNOptions, MLPOptions
from clbench.models.small import cnn, mlp
from clbench.strategy.base import Batch, StreamInfo, Task
from clbench.strategy.granted import PhaseSpec

IMAGE = (1, 8, 8)
TASKS, CLASSES = 3, 6


def make_stream_info(scenario="task", classes=CLASSES, pretrained=False):
    return StreamInfo(classes, TASKS, scenario, IMAGE, torch.Generator().manual_seed(0), pretrained)


def make_model(kind="mlp", classes=CLASSES, seed=0, dtype=torch.float32):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if kind == "mlp":
            return mlp(MLPOptions(width=12, depth=2), IMAGE, classes).to(dtype)
        return cnn(CNNOptions(channels=4, depth=2), IMAGE, classes).to(dtype)


def inputs(count=5, seed=9, dtype=torch.float32):
    return torch.rand(count, *IMAGE, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def make_task(index, classes=None, count=24, seed=0):
    classes = (2 * index, 2 * index + 1) if classes is None else classes
    y = torch.tensor(classes).repeat(math.ceil(count / len(classes)))[:count]
    return Task(index, tuple(classes), Samples(inputs(count, 100 * seed + index), y, torch.full((count,), index)))


def as_batch(task):
    return Batch(task.train.x, task.train.y, task.train.tasks, task.index)


def begin(strategy, task, seed=0):
    strategy.class_mask[task.index, list(task.classes)] = True
    with torch.random.fork_rng():
        torch.manual_seed(1000 * seed + task.index)
        strategy.before_task(task)


def steps(strategy, task, count=4, lr=0.5):
    learn = [p for p in strategy.parameters() if p.requires_grad]
    strategy.train()
    for _ in range(count):
        for parameter, gradient in zip(learn, torch.autograd.grad(strategy.loss(as_batch(task)), learn), strict=True):
            parameter.data -= lr * gradient
    return sum(p.numel() for p in learn)


def learn(strategy, task, seed=0):
    """Train on a task as the harness does; return the number of trainable parameters of each phase."""
    begin(strategy, task, seed)
    trainable = []
    for phase in range(strategy.phases(task)):
        strategy.before_phase(task, PhaseSpec(phase, 4, 0.5))
        trainable.append(steps(strategy, task))
    strategy.after_task(task)
    return trainable


def answer(strategy, task=None, x=None):
    strategy.eval()
    with torch.no_grad():
        return strategy.predict(inputs() if x is None else x, task)


class LossOf(nn.Module):
    def __init__(self, strategy):
        super().__init__()
        self.strategy = strategy

    def forward(self, x, y, tasks, task):
        return self.strategy.loss(Batch(x, y, tasks, task))


def stacked_gradients(strategies, tasks):
    """Return loss and gradients of each strategy on its own task, computed one by one and stacked under vmap."""
    team = [LossOf(s) for s in strategies]
    names = [n for n, p in team[0].named_parameters() if p.requires_grad]
    alone = []
    for member, task in zip(team, tasks, strict=True):
        loss = member.strategy.loss(as_batch(task))
        gradients = torch.autograd.grad(loss, [dict(member.named_parameters())[n] for n in names])
        alone.append([loss.detach(), *gradients])
    parameters, buffers = stack_module_state(team)
    trained = {n: parameters[n].detach() for n in names}
    frozen = {n: p.detach() for n, p in parameters.items() if n not in trained}

    def loss_of(trained, frozen, buffers, x, y, of):
        return functional_call(team[0], ({**trained, **frozen}, buffers), (x, y, of, tasks[0].index))

    batches = [torch.stack([getattr(t.train, part) for t in tasks]) for part in ("x", "y", "tasks")]
    losses = vmap(loss_of)(trained, frozen, buffers, *batches)
    gradients = vmap(grad(loss_of))(trained, frozen, buffers, *batches)
    stacked = [[losses[i], *(gradients[n][i] for n in names)] for i in range(len(team))]
    return alone, stacked


def check_stacking(make, tasks=2):
    """Check that two seeds with different class orders get the same gradients stacked as alone, in their last task."""
    orders = [[(0, 1), (2, 3)], [(5, 2), (3, 0)]]
    team, last = [], []
    for seed, order in enumerate(orders):
        strategy = make(seed)
        *earlier, final = [make_task(i, classes, seed=seed) for i, classes in enumerate(order[:tasks])]
        for task in earlier:
            learn(strategy, task, seed)
        begin(strategy, final, seed)
        strategy.before_phase(final, PhaseSpec(0, 4, 0.5))
        strategy.train()
        team.append(strategy)
        last.append(final)
    alone, stacked = stacked_gradients(team, last)
    assert len(alone[0]) > 2
    for one, many in zip(alone, stacked, strict=True):
        for a, b in zip(one, many, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    assert not torch.equal(alone[0][0], alone[1][0])
