"""Every method of ours in mixed precision: what autocast rounds must not meet what stays in float32 unprepared."""

import pytest
import torch
from helpers.stacks import lead

from clbench.core.registry import discover
from clbench.experiment.spec import Recipe

REGISTRY = discover()
METHODS = [name for name in sorted(REGISTRY.strategies)
           if not name.startswith("avalanche:") and REGISTRY.origins["method", name].distribution == "clbench"]


QUICK = ("naive", "ewc", "er", "lora", "pnn", "shared-private", "lwf", "icarl", "podnet", "ranpac", "slca", "ease")


@pytest.mark.parametrize("method", [
    pytest.param(method, marks=() if method in QUICK else pytest.mark.slow) for method in METHODS])
def test_every_method_learns_two_tasks_in_bf16(method):
    recipe = Recipe(lr=1e-3, batch_size=12, epochs=2, precision="bf16")
    options = {"finetune_steps": 0.5} if method == "podnet" else {}  # both phases need a step
    b, = lead(REGISTRY.strategy(method), options, [0], recipe, "class", tasks=2)
    x = b.stream.prepare(b.stream.tasks[0].test.x)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        logits = b.strategy.eval()(x)
    assert torch.isfinite(logits).any(1).all() and not logits.isnan().any()
    assert all(p.dtype != torch.bfloat16 for p in b.strategy.parameters())
