"""Strategies on a tiny stream of float64 vectors, for tests that call each hook and compare with plain computations."""

from __future__ import annotations

import torch
from torch import nn

from clbench.data.samples import Samples
from clbench.models.network import Block, Network
from clbench.strategy.base import Batch, StreamInfo, Task

TASKS, CLASSES, FEATURES = 3, 6, 5


def linear_model() -> Network:
    """Return a softmax regression model."""
    return Network([Block(nn.Flatten(), nn.Identity())], nn.Linear(FEATURES, CLASSES))


def deep_model() -> Network:
    """Return a network with one hidden layer."""
    return Network([Block(nn.Flatten(), nn.Identity()), Block(nn.Linear(FEATURES, 7), nn.Tanh())],
                   nn.Linear(7, CLASSES))


def make(cls, options, scenario="task", model=linear_model, seed=0):
    """Return a strategy in float64; in scenario task the outputs of all tasks are active."""
    torch.manual_seed(seed)
    stream_info = StreamInfo(CLASSES, TASKS, scenario, (FEATURES,), torch.Generator().manual_seed(seed),
                             prepare=torch.Tensor.double)
    strategy = cls(model(), stream_info, options).double()
    for t in range(TASKS if scenario == "task" else 0):
        activate(strategy, t)
    return strategy


def activate(strategy, task):
    """Activate a task's outputs as the harness does."""
    if strategy.stream_info.scenario == "task":
        strategy.class_mask[task, 2 * task:2 * task + 2] = True
    else:
        strategy.class_mask[:task + 1, :2 * task + 2] = True


def task(index, n=12):
    """Return a task of two linearly separable classes."""
    g = torch.Generator().manual_seed(index)
    y = torch.arange(n) % 2
    x = torch.randn(n, FEATURES, generator=g, dtype=torch.float64)
    x[:, index] += 3.0 * y
    return Task(index, (2 * index, 2 * index + 1), Samples(x, y + 2 * index, torch.full((n,), index)))


def batch(index, n=6):
    """Return a prepared batch of a task."""
    part = task(index, n).train
    return Batch(part.x, part.y, part.tasks, index)


def move(strategy, step, size=0.3):
    """Add noise to all trainable parameters, in place of training."""
    g = torch.Generator().manual_seed(100 + step)
    with torch.no_grad():
        for p in strategy.parameters():
            if p.requires_grad:
                p += size * torch.randn(p.shape, generator=g, dtype=p.dtype)


# Every method with options that suit tiny models.
METHODS = [("naive", {}), ("joint", {}), ("ewc", {"fisher": "empirical", "strength": 10.0}), ("er", {}),
           ("lora", {"rank": 1}), ("pnn", {}), ("shared-private", {}), ("seq-lora", {"rank": 1}),
           ("o-lora", {"rank": 1}), ("inflora", {"rank": 1}), ("sd-lora", {"rank": 1}), ("lora-sub", {"rank": 1}),
           ("ewc-lora", {"rank": 1, "strength": 10.0}), ("lora-mean", {"rank": 1}), ("frozen", {}), ("independent", {}),
           ("icarl", {}), ("bic", {}), ("wa", {"clip": False}), ("lucir", {}),
           ("podnet", {"finetune_steps": 0.2}), ("dynamic-er", {}), ("acl", {}), ("packnet", {"prune": 0.5}),
           ("ncm", {}), ("slda", {}), ("ranpac", {}), ("simplecil", {}), ("fecam", {}),
           ("gem", {}), ("rwalk", {"interval": 2}), ("xdg", {"gated": 0.5}),
           ("cls-er", {"stable_rate": 1.0, "stable_decay": 0.5}), ("fetril", {}),
           ("acil", {"compensation": 0.6}), ("generative-replay", {"width": 16, "latent": 4}),
           ("gdumb", {}), ("mir", {"replayed": 4}), ("gpm", {}), ("hat", {}), ("osf", {}),
           ("l2p", {"pool": 4, "top": 2, "length": 2}), ("dualprompt", {}),
           ("s-iprompts", {"clusters": 2}),
           ("coda-prompt", {}), ("slca", {}), ("slca++", {"rank": 1}), ("lae", {"decay": 0.5, "width": 1}),
           ("ease", {"adapter": "lora", "width": 1}), ("ease", {"width": 4}),
           ("mos", {"adapter": "lora", "width": 1}), ("mos", {"width": 4})]
