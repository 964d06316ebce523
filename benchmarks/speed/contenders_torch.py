"""Sequential fine-tuning in plain torch: PIL images in a loader, tensors in a loader, or tensors by permutation."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import torch
import torch.nn.functional as F
from measure import Outcome, Setting
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from work import (
    EVAL_BATCH,
    TENSOR_EVAL_BATCH,
    Clock,
    Pictures,
    as_input,
    device_bytes,
    images_of,
    model_of,
    optimizer_of,
    peak_bytes,
    split,
    summary,
    to_input,
)

from clbench.data.datasets import Images


class Loaders:
    """Batches from a `DataLoader`, over PIL images or over tensors."""

    def __init__(self, parts: list[Images], setting: Setting) -> None:
        """Make the data sets."""
        self.setting = setting
        pictures = "PIL" in setting.contender
        self.sets: list[Any] = [Pictures(p, to_input(setting.benchmark)) if pictures else
                                TensorDataset(as_input(p.x, setting.benchmark), p.y) for p in parts]

    def training(self, task: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Return the batches of one pass."""
        return self._moved(DataLoader(self.sets[task], self.setting.batch_size, shuffle=True))

    def test(self, task: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Return all samples in batches."""
        return self._moved(DataLoader(self.sets[task], EVAL_BATCH))

    def _moved(self, loader: Any) -> Iterator[tuple[Tensor, Tensor]]:
        return ((x.to(self.setting.device), y.to(self.setting.device)) for x, y in loader)


class Tensors:
    """Batches of tensors on the device, indexed by a random permutation."""

    def __init__(self, parts: list[Images], setting: Setting) -> None:
        """Move the tensors to the device."""
        self.batch_size = setting.batch_size
        self.device = setting.device
        self.x = [as_input(p.x, setting.benchmark).to(setting.device) for p in parts]
        self.y = [p.y.to(setting.device) for p in parts]
        if "channels-last" in setting.contender:
            self.x = [x.to(memory_format=torch.channels_last) for x in self.x]

    def training(self, task: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Return the batches of one pass."""
        x, y = self.x[task], self.y[task]
        for index in torch.randperm(len(y), device=self.device).split(self.batch_size):
            yield x[index], y[index]

    def test(self, task: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Return all samples in batches."""
        return zip(self.x[task].split(TENSOR_EVAL_BATCH), self.y[task].split(TENSOR_EVAL_BATCH), strict=True)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, data: Loaders | Tensors, task: int, epochs: int) -> None:
    """Train on one task."""
    model.train()
    for _ in range(epochs):
        for x, y in data.training(task):
            loss = F.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


@torch.no_grad()
def evaluate(model: nn.Module, data: Loaders | Tensors, sizes: list[int], device: str) -> list[float]:
    """Return the accuracy on every task."""
    model.eval()
    right = torch.zeros(len(sizes), device=device)
    for task in range(len(sizes)):
        for x, y in data.test(task):
            right[task] += (model(x).argmax(1) == y).sum()
    return (right.cpu() / torch.tensor(sizes)).tolist()


def live(setting: Setting, training: list[Images], test: list[Images]) -> tuple[list[list[float]], Clock, float]:
    """Train and evaluate a new model on the stream; return R, the clock, and the time when it was ready to start."""
    kind = Tensors if setting.contender.startswith("torch tensors") else Loaders
    data, tests = kind(training, setting), kind(test, setting)
    model = model_of(setting)
    if "channels-last" in setting.contender:
        model = model.to(memory_format=torch.channels_last)
    optimizer = optimizer_of(setting, model)
    torch.manual_seed(setting.seeds[0])
    ready = time.time()
    clock = Clock(torch.device(setting.device))
    sizes = [len(part.y) for part in test]
    matrix = []
    for task in range(-1, len(training)):
        if task >= 0:
            with clock.phase("train"):
                train(model, optimizer, data, task, setting.epochs)
        with clock.phase("evaluate"):
            matrix.append(evaluate(model, tests, sizes, setting.device))
    clock.seconds["whole"] = clock.whole()
    return matrix, clock, ready


def answer(request: dict[str, Any], started: float) -> dict[str, Any]:
    """Measure one trial."""
    setting = Setting(**{**request, "seeds": tuple(request["seeds"])})
    training, test = (split(part, setting.benchmark) for part in images_of(setting))
    few = 2 * setting.batch_size
    live(setting, [Images(p.x[:few], p.y[:few]) for p in training],
         [Images(p.x[:TENSOR_EVAL_BATCH], p.y[:TENSOR_EVAL_BATCH]) for p in test])  # warm-up
    matrix, clock, ready = live(setting, training, test)
    final, learned = summary(matrix)
    samples = sum(len(p.y) for p in training) * setting.epochs
    return asdict(Outcome(
        train=clock.seconds["train"], consolidate=0.0, evaluate=clock.seconds["evaluate"],
        whole=clock.seconds["whole"], ready_after=ready - started, train_samples=samples, processed=samples,
        test_samples=sum(len(p.y) for p in test) * len(matrix), final=[final], learned=[learned],
        peak_bytes=peak_bytes(), device_bytes=device_bytes(setting.device)))
