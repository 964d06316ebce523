"""The precision of the arithmetic: fp32; tf32, where CUDA rounds the inputs of matrix products; bf16, mixed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

from clbench.spec import Recipe


def forward(recipe: Recipe, device: torch.device) -> AbstractContextManager[object]:
    """Return the context for losses in training and for predictions; it may be entered many times.

    With bf16 matrix products and convolutions run in bfloat16; weights, optimiser and losses stay float32. So does all
    that strategies compute beside their loss: squares of small gradients and sums over a task would lose most there.
    """
    return torch.autocast(device.type, torch.bfloat16) if recipe.precision == "bf16" else nullcontext()


@contextmanager
def products(recipe: Recipe) -> Iterator[None]:
    """Let CUDA's matrix products and convolutions inside the block use TensorFloat-32 if the recipe says so."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if recipe.precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = recipe.precision == "tf32"
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]
