"""Measure attention's gradients in bfloat16 and in float32 on a CPU: `python benchmarks/speed/attention.py`.

The first part measures attention alone, forward and backward, for several numbers of tokens. Up to
`clbench.training.precision.SHORT` tokens, float32 is faster. The second part measures whole trials in bf16 on an
untrained ViT-S/14 with images of 56 pixels (17 tokens). A normal trial and one with all attention in bfloat16 take
turns. Needs the extra clbench[timm].
"""

from __future__ import annotations

import argparse
import statistics
import time
from unittest.mock import patch

import torch
from tabulate import tabulate
from torch import Tensor
from turns import in_turns

from clbench.experiment.spec import build
from clbench.training import precision

TOKENS = (17, 65, 128, 197, 257)
HEADS, WIDTH = 6, 64
SAMPLES = 2048  # approximate number of tokens of a batch
METHODS = ("frozen:base=random", "lora:base=random", "naive")


def main() -> None:
    """Print milliseconds by number of tokens, and seconds of training by method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    rows = []
    for tokens in TOKENS:
        batch = max(1, SAMPLES // tokens)
        inputs = [torch.rand(batch, HEADS, tokens, WIDTH, dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]
        times = [milliseconds(inputs, limit, 5 * given.repeats) for limit in (0, tokens)]
        rows.append([tokens, batch, *times, times[0] / times[1]])
    print(tabulate(rows, ["tokens", "batch", "bfloat16 (ms)", "float32 (ms)", "ratio"], floatfmt=".2f"), end="\n\n")
    print(tabulate(trials(given.threads, given.repeats), ["method", "training, bfloat16 (s)", "as it is (s)", "ratio"],
                   floatfmt=".2f"))


def milliseconds(inputs: list[Tensor], limit: int, repeats: int) -> float:
    """Return the median time of attention and its gradients, which are in float32 up to `limit` tokens."""
    found = []
    with patch.object(precision, "SHORT", limit), torch.autocast("cpu", torch.bfloat16):
        for _ in range(repeats + 1):
            start = time.perf_counter()
            torch.autograd.grad(precision.attend(*inputs).sum(), inputs)
            found.append(1000 * (time.perf_counter() - start))
    return statistics.median(found[1:])


def trials(threads: int, repeats: int) -> list[list[str | float]]:
    """Return for each method the median seconds of training in both ways, and their ratio."""
    spec = build({"benchmark": "synthetic:tasks_2", "model": "timm:vit_small_patch14_dinov2:size=56",
                  "seeds": repeats, "methods": list(METHODS),
                  "recipe": {"precision": "bf16", "batch_size": 16, "iterations": 20}})
    pairs = in_turns(spec, threads, "attention.py", lambda: patch.object(precision, "SHORT", 0))
    medians = {label: [statistics.median(sum(record.timings.train) for record in side)
                       for side in zip(*found, strict=True)] for label, found in pairs.items()}
    return [[label, old, new, old / new] for label, (old, new) in medians.items()]


if __name__ == "__main__":
    main()
