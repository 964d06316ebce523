"""Small data sets in CIFAR's format, and streams of built-in benchmarks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from clbench.core.options import validate
from clbench.core.registry import Registry
from clbench.data import datasets
from clbench.data.stream import Stream, load_stream
from clbench.experiment.trial import Resolved


def small_cifar(folder: Path, monkeypatch: Any) -> Path:
    """Return a data folder with small data sets of random pixels in CIFAR's format."""
    generator = torch.Generator().manual_seed(0)
    monkeypatch.setattr(datasets, "CIFAR_SIZES", (400, 200))
    for name, classes in (("CIFAR10", 10), ("CIFAR100", 100)):
        tensors = {}
        for part, count in (("train", 400), ("test", 200)):
            tensors[f"{part}_x"] = torch.randint(0, 256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)
            tensors[f"{part}_y"] = torch.randperm(count, generator=generator) % classes
        save_file(tensors, datasets.cifar_file(name, folder))
    return folder


def stream(registry: Registry, name: str, data_dir: Path, scenario: str = "task", seed: int = 0,
           **options: Any) -> Stream:
    """Return the stream of a built-in benchmark with these options."""
    info = registry.benchmark(name)
    full = validate(info.options, options, name, "clbench benchmarks").model_dump()
    return load_stream(Resolved(name=name, options=full), scenario, seed, data_dir, registry)
