"""Optimizers and schedules by name. To add one, add an entry here and its name in `clbench.experiment.recipe`.

With `recipe.head_decay = "learning"`, a step changes only those rows of the heads that a gradient reaches. The heads of
most reference implementations grow: the row of a class exists only from the class's task on, or older rows are frozen.
A head that has all rows from the start would apply weight decay to rows without a gradient, too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from functools import partial
from itertools import chain, groupby
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LRScheduler

from clbench.core.errors import PluginError, SpecError
from clbench.experiment.recipe import DECAY, Recipe
from clbench.strategy.base import Strategy

Group = dict[str, Any]  # parameters ("params") and their learning rate ("lr")
# Of each parameter that was trained so far, by name: the parameter of each member of the stack, and the optimizer state
OptimizerStates = dict[str, tuple[list[nn.Parameter], dict[str, Any]]]


def _parameters(groups: Iterable[Group]) -> Iterator[nn.Parameter]:
    """Return the parameters of all groups, in their order."""
    return chain.from_iterable(group["params"] for group in groups)


def _adam(kind: type[torch.optim.Adam], recipe: Recipe, groups: list[Group]) -> Optimizer:
    # A fused step takes 5.9 instead of 10.3 ms for mlp at batch size 128 on one CPU thread. For SGD it saves nothing.
    fused = all(p.device.type in ("cpu", "cuda") for p in _parameters(groups))
    return kind(groups, lr=recipe.lr, weight_decay=recipe.weight_decay, fused=fused)


def _sgd(recipe: Recipe, groups: list[Group]) -> Optimizer:
    # One call for all parameters takes 0.08 instead of 0.17 ms a step of mlp on two CPU threads, with the same values.
    return torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay,
                           foreach=True)


OPTIMIZERS: dict[str, Callable[[Recipe, list[Group]], Optimizer]] = {
    "adam": partial(_adam, torch.optim.Adam),
    "adamw": partial(_adam, torch.optim.AdamW),
    "sgd": _sgd,
}
NEARLY = 1e-9  # tolerance, so that rounding does not move a milestone to the next step


def _step_factor(recipe: Recipe, place: int, count: int) -> float:
    """Return the factor of the learning rate after the milestones that have been passed."""
    share = place / count
    passed_count = sum(share >= milestone - NEARLY for milestone in recipe.milestones)
    return float((recipe.decay or DECAY) ** passed_count)


# (recipe, index of the step or epoch after the warm-up, number of these steps or epochs) -> factor of the learning rate
SCHEDULES: dict[str, Callable[[Recipe, int, int], float]] = {
    "constant": lambda _, __, ___: 1.0,
    "cosine": lambda _, place, count: (1 + math.cos(math.pi * (place / count))) / 2,
    # 99% of a quarter of a cosine: CODA-Prompt's `utils/schedulers.py`, whose first call of `step` repeats place 0.
    "quarter-cosine": lambda _, place, count: math.cos(99 * math.pi * place / (200 * max(count - 1, 1))),
    "steps": _step_factor,
}


def make_optimizer(recipe: Recipe, parameters: Iterable[nn.Parameter], members: int = 1,
                   rates: Sequence[float] = ()) -> Optimizer:
    """Return the recipe's optimizer for parameters; it clips gradients before each step if `max_grad_norm` is set.

    Args:
        recipe: names the optimizer and its options.
        parameters: the parameters to train; in a stack, each is [S, ...].
        members: S, the number of trials that are stacked in the parameters.
        rates: the factor of the learning rate for each parameter, in sorted order; by default 1 for all.

    Raises:
        ValueError: there is no parameter.
    """
    parameters = list(parameters)
    if not parameters:
        raise ValueError("nothing to train: no parameter requires a gradient")
    rates = rates or [1.0] * len(parameters)
    groups = [{"params": [p for p, _ in group], "lr": recipe.lr * rate}
              for rate, group in groupby(zip(parameters, rates, strict=True), key=itemgetter(1))]
    optimizer = OPTIMIZERS[recipe.optimizer](recipe, groups)
    if recipe.max_grad_norm is not None:
        limit = recipe.max_grad_norm

        def clip(optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
            clip_gradients([p.grad for p in _parameters(optimizer.param_groups)], limit, members)

        optimizer.register_step_pre_hook(clip)
    return optimizer


def rates_of(strategy: Strategy, names: Iterable[str], recipe: Recipe) -> dict[str, float]:
    """Return the factor of the recipe's learning rate for each named parameter, sorted by the factor.

    Raises:
        PluginError: `strategy.learning_rates` has a factor that is not above 0.
        SpecError: the recipe has a learning rate for the heads that the strategy cannot use (`require_head_rate`).
    """
    names = list(names)
    patterns = strategy.learning_rates()
    if recipe.head_lr is not None:
        require_head_rate(strategy)
        patterns = {**patterns, **dict.fromkeys(strategy.head_parameters, recipe.head_lr / recipe.lr)}
    if wrong_patterns := [pattern for pattern, rate in patterns.items() if not rate > 0]:
        raise PluginError(f"{type(strategy).__name__}: the learning rate of {wrong_patterns[0]!r} is multiplied by "
                          f"{patterns[wrong_patterns[0]]:g}; a multiplier is above 0, what is not to learn has "
                          "no gradient")
    rates = {name: next((rate for pattern, rate in patterns.items() if fnmatchcase(name, pattern)), 1.0)
             for name in names}
    return dict(sorted(rates.items(), key=itemgetter(1)))


def require_head_rate(strategy: Strategy) -> None:
    """Check that a strategy's heads can have a learning rate of their own (`recipe.head_lr`).

    Raises:
        SpecError: the strategy has its own training loop, sets the rate of its heads itself, or has no heads.
    """
    name = type(strategy).__name__
    if strategy.owns_loop:
        raise SpecError(f"head_lr cannot be used with {name}, which trains by its own loop; leave recipe.head_lr out")
    heads = [n for n, _ in strategy.named_parameters() if matches(n, strategy.head_parameters)]
    if not heads:
        raise SpecError(f"head_lr cannot be used with {name}: none of its parameters is named "
                        f"{' or '.join(strategy.head_parameters)}; leave recipe.head_lr out, or name the heads in "
                        f"{name}.head_parameters")
    if any(matches(n, strategy.learning_rates()) for n in heads):
        raise SpecError(f"head_lr cannot be used with {name}, which sets the learning rate of its heads itself; leave "
                        "recipe.head_lr out")


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Return whether a name fits one of several patterns (fnmatch)."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def clip_gradients(gradients: Iterable[Tensor | None], limit: float, members: int = 1) -> None:
    """Scale gradients, in place, so that their norm over all parameters is at most `limit`.

    The norm is Euclidean, as in `torch.nn.utils.clip_grad_norm_` (Pascanu et al. 2013). In a stack, where gradients are
    [S, ...], the gradients of each member have a norm of their own.
    """
    present = [gradient for gradient in gradients if gradient is not None]
    # `reshape` and not `view`, because gradients of convolutions are channels-last; these are copied.
    norms = torch.stack([torch.linalg.vector_norm(gradient.reshape(members, -1), dim=1) for gradient in present])
    factors = (limit / (torch.linalg.vector_norm(norms, dim=0) + 1e-6)).clamp(max=1.0)
    for gradient in present:
        factor = factors[0] if members == 1 else factors.view(members, *[1] * (gradient.dim() - 1))
        gradient.mul_(factor.to(gradient.dtype))


def set_gradient(parameter: nn.Parameter, gradient: Tensor) -> None:
    """Set the gradient of a parameter, in the memory format of the parameter.

    Fused optimizers read both in the order in which memory stores them.
    """
    is_same_format = gradient.stride() == parameter.stride()
    parameter.grad = gradient if is_same_format else torch.empty_like(parameter).copy_(gradient)


def make_schedule(recipe: Recipe, optimizer: Optimizer, steps: int, epoch: int = 1) -> LRScheduler | None:
    """Return the recipe's schedule over the steps of a phase; None if the learning rate is constant.

    During a warm-up, the rate rises linearly to its full value. `epoch` is the number of steps in a pass over the
    samples; a schedule by epochs changes the rate each time so many steps have been taken since the warm-up.
    """
    interval = epoch if recipe.schedule_by == "epoch" else 1
    warmup = round(recipe.warmup_ratio * steps)
    if not warmup:
        if recipe.schedule == "constant":
            return None
        if recipe.schedule == "cosine" and interval == 1:
            # torch's recursive implementation, because existing records without a warm-up were made with it
            return CosineAnnealingLR(optimizer, T_max=steps)
    schedule, count = partial(SCHEDULES[recipe.schedule], recipe), math.ceil(max(steps - warmup, 1) / interval)
    return LambdaLR(optimizer, lambda step: (step + 1) / (warmup + 1) if step < warmup
                    else schedule((step - warmup) // interval, count))


def guarded_heads(strategy: Strategy, trained: Mapping[str, nn.Parameter], recipe: Recipe) -> list[nn.Parameter]:
    """Return the trained head parameters with a row for each output; none unless `head_decay` is `learning`."""
    if recipe.head_decay == "all":
        return []
    rows = {name: len(p) for name, p in strategy.named_parameters() if p.dim()}
    return [parameter for name, parameter in trained.items()
            if rows.get(name) == strategy.stream_info.classes and matches(name, strategy.head_parameters)]


@contextmanager
def keep_idle_rows(optimizer: Optimizer, heads: Sequence[nn.Parameter], row_dim: int) -> Iterator[None]:
    """Restore the rows of heads whose gradient is 0, after the optimizer step that is taken inside the block.

    The optimizer's state of these rows, such as their momentum, is restored too. Weight decay would collect in it and
    move the rows once they have a gradient.

    Args:
        optimizer: the optimizer that takes the step.
        heads: parameters with gradients, [C, ...]; in a stack [S, C, ...].
        row_dim: dimension of the rows, 0; in a stack 1.
    """
    saved_heads = [(parameter, learning_rows(parameter, row_dim), parameter.detach().clone(),
                    {name: value.clone() for name, value in _state_of_rows(optimizer, parameter).items()})
                   for parameter in heads]
    yield
    with torch.no_grad():
        for parameter, learning, old_values, old_state in saved_heads:
            parameter.copy_(torch.where(learning, parameter, old_values))
            for name, value in _state_of_rows(optimizer, parameter).items():
                # State that the step has created starts at 0.
                value.copy_(torch.where(learning, value, old_state.get(name, torch.zeros_like(value))))


def _state_of_rows(optimizer: Optimizer, parameter: nn.Parameter) -> dict[str, Tensor]:
    """Return the state of a parameter that has a number for each of its elements, by name."""
    return {name: value for name, value in optimizer.state[parameter].items()
            if isinstance(value, Tensor) and value.shape == parameter.shape}


def learning_rows(parameter: nn.Parameter, row_dim: int) -> Tensor:
    """Return a mask of the rows whose gradient is not 0; it broadcasts over the parameter."""
    if parameter.grad is None:
        return torch.zeros_like(parameter, dtype=torch.bool)
    has_gradient = parameter.grad != 0
    columns = tuple(range(row_dim + 1, parameter.dim()))
    return has_gradient.any(columns, keepdim=True) if columns else has_gradient
