"""Optimisers and schedules by name: one more is an entry here, and its name in `clbench.experiment.spec`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LRScheduler

from clbench.experiment.spec import Recipe


def _adam(kind: type[torch.optim.Adam], recipe: Recipe, parameters: list[nn.Parameter]) -> Optimizer:
    # Fused: 10.3 -> 5.9 ms a step for mlp at batch 128 on one CPU thread. For SGD it gains nothing there.
    fused = all(p.device.type in ("cpu", "cuda") for p in parameters)
    return kind(parameters, lr=recipe.lr, weight_decay=recipe.weight_decay, fused=fused)


def _sgd(recipe: Recipe, parameters: list[nn.Parameter]) -> Optimizer:
    # One call for all parameters and the same sums: 0.17 -> 0.08 ms a step of mlp on two CPU threads.
    return torch.optim.SGD(parameters, lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay,
                           foreach=True)


OPTIMIZERS: dict[str, Callable[[Recipe, list[nn.Parameter]], Optimizer]] = {
    "adam": partial(_adam, torch.optim.Adam),
    "adamw": partial(_adam, torch.optim.AdamW),
    "sgd": _sgd,
}
SCHEDULES: dict[str, Callable[[float], float]] = {  # share of the steps behind the warm-up -> factor of the rate
    "constant": lambda _: 1.0,
    "cosine": lambda share: (1 + math.cos(math.pi * share)) / 2,
}


def make_optimizer(recipe: Recipe, parameters: Iterable[nn.Parameter], members: int = 1) -> Optimizer:
    """Return the recipe's optimiser over parameters; before each step it clips gradients, if the recipe says so.

    Args:
        recipe: what names the optimiser and its options.
        parameters: what is trained; of a stack, [S, ...] each.
        members: S, how many trials are stacked in the parameters.

    Raises:
        ValueError: there is no parameter.
    """
    parameters = list(parameters)
    if not parameters:
        raise ValueError("nothing to train: no parameter requires a gradient")
    optimizer = OPTIMIZERS[recipe.optimizer](recipe, parameters)
    if recipe.max_grad_norm is not None:
        limit = recipe.max_grad_norm

        def clip(optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
            clip_gradients([p.grad for group in optimizer.param_groups for p in group["params"]], limit, members)

        optimizer.register_step_pre_hook(clip)
    return optimizer


def clip_gradients(gradients: Iterable[Tensor | None], limit: float, members: int = 1) -> None:
    """Scale gradients, in place, so that their norm over all parameters is at most `limit`.

    The norm is Euclidean, as in `torch.nn.utils.clip_grad_norm_` (Pascanu et al. 2013). Of a stack, whose gradients are
    [S, ...], each member has a norm of its own.
    """
    rows = [g.view(members, -1) for g in gradients if g is not None]
    norms = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(row, dim=1) for row in rows]), dim=0)
    factors = (limit / (norms + 1e-6)).clamp(max=1.0)
    for row in rows:
        row.mul_(factors[:, None].to(row.dtype))


def make_schedule(recipe: Recipe, optimizer: Optimizer, steps: int) -> LRScheduler | None:
    """Return the recipe's schedule over the steps of a phase, None where the rate is constant.

    With a warm-up the rate rises linearly in the first steps, to its whole at the end of them.
    """
    warmup = round(recipe.warmup_ratio * steps)
    if not warmup:
        if recipe.schedule == "constant":
            return None
        if recipe.schedule == "cosine":  # torch's own, by recursion: what records without a warm-up were made with
            return CosineAnnealingLR(optimizer, T_max=steps)
    after = SCHEDULES[recipe.schedule]
    return LambdaLR(optimizer, lambda step: (step + 1) / (warmup + 1) if step < warmup
                    else after((step - warmup) / max(steps - warmup, 1)))
