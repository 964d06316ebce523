"""Optimisers and schedules by name."""

from __future__ import annotations

from typing import Any

import torch

from clbench.experiment.spec import Recipe


def make_optimizer(recipe: Recipe, parameters: Any) -> torch.optim.Optimizer:
    """Return the recipe's optimiser over parameters."""
    parameters = list(parameters)
    if not parameters:
        raise ValueError("nothing to train: no parameter requires a gradient")
    if recipe.optimizer == "adam":
        # Fused: 10.3 -> 5.9 ms a step for mlp at batch 128 on one CPU thread. For SGD it gains nothing there.
        fused = all(p.device.type in ("cpu", "cuda") for p in parameters)
        return torch.optim.Adam(parameters, lr=recipe.lr, weight_decay=recipe.weight_decay, fused=fused)
    # One call for all parameters and the same sums: 0.17 -> 0.08 ms a step of mlp on two CPU threads.
    return torch.optim.SGD(parameters, lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay,
                           foreach=True)


def make_schedule(recipe: Recipe, optimizer: torch.optim.Optimizer,
                  steps: int) -> torch.optim.lr_scheduler.LRScheduler | None:
    """Return the recipe's schedule over the steps of a phase, None where the rate is constant."""
    if recipe.schedule == "constant":
        return None
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
