"""Parts that all contenders share: the images, the tasks, the initial weights, the clock."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from measure import Setting
from torch import Tensor, nn

from clbench.core import seeds
from clbench.core.device import synchronize
from clbench.core.registry import discover
from clbench.data import datasets
from clbench.data.datasets import STATISTICS, Images
from clbench.experiment.plan import plan
from clbench.experiment.spec import Spec, build
from clbench.training.building import build_model


@dataclass(frozen=True)
class Facts:
    """A stream: its data set, classes, tasks, the shape of an image, and its options in clbench."""

    data: str
    classes: int
    tasks: int
    shape: tuple[int, int, int]
    options: dict[str, Any]


MNIST = Facts("MNIST", 10, 5, (1, 28, 28), {"normalize": True})
STREAMS = {"split-mnist": MNIST, "split-mnist-5k": MNIST,
           "split-cifar100": Facts("CIFAR100", 100, 10, (3, 32, 32), {"normalize": "dataset", "augment": False})}
EVAL_BATCH = 128  # for loaders; tensors on the device are evaluated in larger batches
TENSOR_EVAL_BATCH = 1000
MEMORY = 200  # samples
EWC_LAMBDA = 100.0  # Avalanche's definition: no factor 1/2, and squared gradients of batch means


@dataclass
class Clock:
    """Seconds by phase, with the work of the accelerator."""

    device: torch.device
    began: float = field(default_factory=time.perf_counter)
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the time inside to a phase."""
        before = time.perf_counter()
        yield
        synchronize(self.device)
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - before

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a wrapper of a function that adds its time to a phase."""
        def inner(*args: Any, **kwargs: Any) -> Any:
            with self.phase(name):
                return function(*args, **kwargs)
        return inner

    def whole(self) -> float:
        """Return the seconds since the creation of this clock."""
        return time.perf_counter() - self.began


def spec_of(setting: Setting) -> Spec:
    """Return the experiment as a clbench spec; EWC's strength gives about the same penalty as `EWC_LAMBDA`.

    The squared mean of B independent gradients is on average 1/B of the mean of their squares.
    """
    fisher = "exact" if "exact" in setting.contender else "empirical"
    strength = 2 * EWC_LAMBDA / setting.batch_size
    options = {"ewc": {"fisher": fisher, "strength": strength},
               "er": {"capacity": MEMORY, "update": "task"}}.get(setting.method, {})
    return build({"benchmark": {"name": setting.benchmark, "options": STREAMS[setting.benchmark].options},
                  "scenario": "class",
                  "model": setting.model, "methods": [{"name": setting.method, "options": options}],
                  "seeds": list(setting.seeds), "device": setting.device,
                  "recipe": {"optimizer": setting.optimizer, "lr": setting.lr, "epochs": setting.epochs,
                             "batch_size": setting.batch_size, "optimizer_state": "keep",
                             "precision": "bf16" if "bf16" in setting.contender else "fp32"}})


def model_of(setting: Setting) -> nn.Module:
    """Return the model with the initial weights of clbench's trial of the first seed."""
    registry = discover()
    trial = plan(spec_of(setting), registry)[0].trial
    with seeds.scope(trial.seed, "init"):
        facts = STREAMS[setting.benchmark]
        model, _ = build_model(trial.model, None, facts.shape, facts.classes, registry)
    return model.to(setting.device)


def optimizer_of(setting: Setting, model: nn.Module) -> torch.optim.Optimizer:
    """Return the optimizer that all contenders use."""
    kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[setting.optimizer]
    return kind(model.parameters(), lr=setting.lr)


def images_of(setting: Setting) -> tuple[Images, Images]:
    """Return the training and test images, uint8."""
    if setting.benchmark == "split-mnist-5k":
        return datasets.mnist_5k()
    read = datasets.mnist_like if setting.benchmark == "split-mnist" else datasets.cifar
    return read(STREAMS[setting.benchmark].data, Path(setting.data_dir))


def split(images: Images, benchmark: str) -> list[Images]:
    """Return the images of each task, in the data set's order."""
    facts = STREAMS[benchmark]
    per = facts.classes // facts.tasks
    chosen = [(images.y // per == task).nonzero().flatten() for task in range(facts.tasks)]
    return [Images(images.x[i], images.y[i]) for i in chosen]


def to_input(benchmark: str) -> Any:
    """Return Avalanche's default transform for PIL images: ToTensor and Normalize."""
    from torchvision.transforms import Compose, Normalize, ToTensor

    return Compose([ToTensor(), Normalize(*STATISTICS[STREAMS[benchmark].data])])


def as_input(x: Tensor, benchmark: str) -> Tensor:
    """Apply the transform of `to_input` to all images at once."""
    mean, std = (torch.tensor(values)[:, None, None] for values in STATISTICS[STREAMS[benchmark].data])
    return (x.float() / 255 - mean) / std


class Pictures(torch.utils.data.Dataset[Any]):
    """Data set in the style of torchvision, which returns a transformed PIL image and a label."""

    def __init__(self, images: Images, transform: Callable[[Any], Any] | None = None) -> None:
        """Store images and transform."""
        self.images = images
        self.targets = images.y.tolist()
        self.transform = transform

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        """Return one image and its label."""
        from PIL import Image

        pixels = self.images.x[index]
        image = Image.fromarray((pixels[0] if len(pixels) == 1 else pixels.permute(1, 2, 0)).numpy())
        return (self.transform(image) if self.transform else image), self.targets[index]


def summary(matrix: list[list[float]]) -> tuple[float, float]:
    """Return the final and the learned accuracy of R, whose row 0 is before training."""
    tasks = len(matrix[-1])
    return sum(matrix[-1]) / tasks, sum(matrix[i + 1][i] for i in range(tasks)) / tasks


def peak_bytes() -> int:
    """Return the peak resident size of this process since its start."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def device_bytes(device: str) -> int:
    """Return the peak memory that torch allocated on an accelerator."""
    return torch.cuda.max_memory_allocated(device) if device.startswith("cuda") else 0
