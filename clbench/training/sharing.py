"""Parameters that several strategies have alike, kept in memory once."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from clbench.core.torch_private import copy_on_write
from clbench.strategy.base import Strategy


def share_equal(strategies: Sequence[Strategy], frozen: bool = False) -> set[str]:
    """Let parameters that all strategies have alike lie in memory once, and return their names.

    Each strategy keeps a tensor of its own, which is copied when it is first written to, so none can change another's.

    Args:
        strategies: with the same structure.
        frozen: whether only those that require no gradient are looked at.
    """
    first, *others = [dict(strategy.named_parameters()) for strategy in strategies]
    names = [name for name, parameter in first.items() if not (frozen and parameter.requires_grad)
             and all(name in other and (other[name].shape, other[name].dtype) == (parameter.shape, parameter.dtype)
                     and not (frozen and other[name].requires_grad) for other in others)]
    if not names or not others:
        return set()
    same = [torch.stack([(first[name] == other[name]).all() for other in others]).all() for name in names]
    equal = {name for name, is_same in zip(names, torch.stack(same).tolist(), strict=True) if is_same}
    for name in equal:
        for other in others:
            other[name].data = copy_on_write(first[name].data)
    return equal
