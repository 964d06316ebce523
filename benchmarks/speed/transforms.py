"""Measure the gain of applying random transforms ahead of time: `python benchmarks/speed/transforms.py --help`."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

STEPS, BATCH, IMAGES = 40, 64, 1000


def picture_samples() -> Any:
    """Return images of CIFAR's size with torchvision's random crops, flips and color jitter, and normalization."""
    import torch
    from PIL import Image
    from torchvision.transforms import ColorJitter, Compose, Normalize, RandomCrop, RandomHorizontalFlip, ToTensor

    from clbench.data.samples import StochasticSamples

    raw = torch.randint(0, 256, (IMAGES, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    pictures = [Image.fromarray(x.numpy()) for x in raw]
    transform = Compose([RandomCrop(32, padding=4), RandomHorizontalFlip(), ColorJitter(0.2, 0.2, 0.2), ToTensor(),
                         Normalize((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))])
    x = torch.stack([transform(picture) for picture in pictures])
    y = torch.arange(IMAGES) % 10
    return StochasticSamples(x, y, torch.zeros_like(y), lambda i: transform(pictures[i]))


def answer(request: dict[str, Any], started: float) -> dict[str, Any]:
    """Train for some steps each way, repeatedly and in turns, and return the seconds of each time."""
    import torch

    from clbench.core import seeds
    from clbench.core.registry import discover
    from clbench.data import prefetch
    from clbench.experiment.recipe import Recipe
    from clbench.experiment.trial import Resolved
    from clbench.strategy.base import Strategy, StreamInfo, Task
    from clbench.training.building import build_model
    from clbench.training.loop import TrainingLoop
    from clbench.training.replica import Replica

    torch.set_num_threads(request["threads"])
    samples, registry = picture_samples(), discover()
    info = registry.model(request["model"])
    found: dict[str, list[float]] = {"here": [], "ahead": []}
    ends = []
    for _ in range(request["repeats"]):
        for how in found:
            with seeds.scope(0):
                model, _notes = build_model(Resolved(name=info.name, options=info.options().model_dump()), None,
                                            (3, 32, 32), 10, registry)
                strategy = Strategy(model, StreamInfo(10, 1, "class", (3, 32, 32), torch.Generator()))
                strategy.class_mask[:] = True
                prefetch.can_prefetch = lambda device, how=how: how == "ahead"
                stream = SimpleNamespace(augment=None, hidden=False)  # the loop needs only these attributes
                trainer = TrainingLoop([Replica(strategy, stream, 0)], Recipe(
                    optimizer="sgd", lr=0.01, batch_size=BATCH, iterations=STEPS))
                began = time.perf_counter()
                trainer.take_task_steps([Task(0, tuple(range(10)), samples)])
            found[how].append(time.perf_counter() - began)
            ends.append(torch.cat([p.detach().flatten() for p in strategy.parameters()]))
    return {**found, "equal": all(torch.equal(end, ends[0]) for end in ends)}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print the ratio."""
    from processes import ask

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1, help="of torch; as many as there are cores leave none free")
    parser.add_argument("--repeats", type=int, default=3)
    found = parser.parse_args(argv)
    seconds = ask("transforms", {"model": found.model, "repeats": found.repeats, "threads": found.threads},
                  found.cores)
    middle = {how: statistics.median(seconds[how]) for how in ("here", "ahead")}
    print(json.dumps({**seconds, "ratio": round(middle["here"] / middle["ahead"], 2)}))
    return 0 if seconds["equal"] else 1  # both ways must give the same weights


if __name__ == "__main__":
    sys.exit(main())
