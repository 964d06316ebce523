"""The tiny synthetic stream for checks of strategies, three tasks of two classes, and what the checks compare on it."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from clbench.core import options as opt
from clbench.core import seeds
from clbench.core.entry_points import resolve
from clbench.core.errors import typed_message
from clbench.core.hookspecs import StrategyInfo
from clbench.core.options import NoOptions
from clbench.core.scenario import Scenario, scenario_rules
from clbench.core.torch_private import NormWithStatistics, attributes_of
from clbench.data.prepare import Prepare
from clbench.data.samples import Samples
from clbench.data.stream import Stream, StreamTask
from clbench.experiment.recipe import Recipe
from clbench.models.builtin import CNNOptions, MLPOptions, ResNet18Options, ResNetCIFAR10Options, ViTOptions
from clbench.models.hf_parts import Tokens
from clbench.models.language_model import LanguageModel
from clbench.models.network import Block, Network
from clbench.models.small import cnn, linear, mlp, resnet18, resnet20
from clbench.models.vit import vit
from clbench.persistence.strategy_state import UNCHANGING, is_plain
from clbench.strategy.base import Batch, Strategy, Task, declares
from clbench.training.budget import phases_of, shares_of, steps_of
from clbench.training.building import channels_last, require_outputs, stream_info_of
from clbench.training.callbacks.interface import Callback, Training
from clbench.training.evaluation import given_tasks, require_prediction
from clbench.training.loop import TrainingLoop
from clbench.training.members import Unstackable
from clbench.training.phase_cache import are_identical
from clbench.training.prediction_cache import PredictionCache
from clbench.training.replica import Replica, begin_phase
from clbench.training.sampling import divide_batches

TASKS, CLASSES_PER_TASK, SAMPLES = 3, 2, 24
BATCH = 8  # test samples per call of `predict` in `predict_all`
VOCABULARY = 12  # tokens of the language model
RECIPE = Recipe(lr=0.01, batch_size=8, epochs=2)


# Tiny versions of the built-in models.
MODELS: dict[str, Callable[[tuple[int, ...], int], Network]] = {
    "mlp": partial(mlp, MLPOptions(width=12)),
    "linear": partial(linear, NoOptions()),
    "cnn": partial(cnn, CNNOptions(channels=4)),
    "resnet18": partial(resnet18, ResNet18Options(width=2)),
    "resnet20": partial(resnet20, ResNetCIFAR10Options(width=2)),
    "vit": partial(vit, ViTOptions(patch=4, width=8, depth=2, heads=2)),
}


class NonConforming(AssertionError):
    """A strategy breaks a rule of the interface; the message says which and how."""


@dataclass
class Bench:
    """A strategy together with its tiny stream."""

    strategy: Strategy
    stream: Stream
    scenario: Scenario
    seed: int = 0
    task_free: bool = False  # whether the method is declared as `task_free`
    objectives: Sequence[str] = ()  # that the method declares

    @property
    def replica(self) -> Replica:
        """Return a replica of the strategy on the stream."""
        return Replica(self.strategy, self.stream, self.seed)

    def learn(self, index: int) -> Task:
        """Train on one task as the harness does and return it."""
        trained, = TrainingLoop([self.replica], RECIPE).train_task(index)
        if trained.diverged is not None:
            raise NonConforming(f"{trained.diverged}, on three tiny tasks at Adam's learning rate {RECIPE.lr}")
        return self.replica.task(index)

    def logits(self, x: Tensor, given_task: int | None) -> Tensor:
        """Return the logits for raw samples, from `predict` in eval mode."""
        with torch.no_grad():
            prediction = self.strategy.eval().predict(self.stream.prepare(x), given_task)
        return require_prediction(self.strategy, prediction).logits

    def batch(self, index: int) -> Batch:
        """Return the first eight samples of a task as a raw batch."""
        samples = self.stream.tasks[index].train
        part = samples.take(torch.arange(8, device=samples.index_device))
        return Batch(part.x, part.y, part.tasks, index)


def tiny_stream(scenario: Scenario) -> Stream:
    """Return three tasks of 24 training and 24 test images [1, 8, 8]: noise with a bright bar for each class."""
    generator = torch.Generator().manual_seed(0)
    shared = scenario_rules(scenario).shared_outputs

    def samples(task: int) -> Samples:
        y = torch.arange(SAMPLES) % CLASSES_PER_TASK
        bar = y + CLASSES_PER_TASK * task
        x = torch.randint(0, 100, (SAMPLES, 1, 8, 8), generator=generator, dtype=torch.uint8)
        x[torch.arange(SAMPLES), 0, bar] += 150
        return Samples(x, y if shared else bar, torch.full((SAMPLES,), task))

    tasks = tuple(
        StreamTask(tuple(range(CLASSES_PER_TASK)) if shared
                   else tuple(range(CLASSES_PER_TASK * t, CLASSES_PER_TASK * (t + 1))), samples(t), samples(t))
        for t in range(TASKS))
    return Stream(tasks, CLASSES_PER_TASK * (1 if shared else TASKS), (1, 8, 8), Prepare(), "tiny", ())


def bench(info: StrategyInfo, options: Mapping[str, Any], scenario: Scenario, seed: int = 0,
          model: str | None = None, stream: Stream | None = None) -> Bench:
    """Return an untrained strategy with a stream, by default the tiny one, on the stream's device.

    The model is `MODELS[model]`, by default the model for checks in the method's declaration, or a language model if
    the stream needs one. Its weights have the same memory format as in a run.
    """
    stream = stream or tiny_stream(scenario)
    device = stream.tests.y.device
    cls = resolve(info.strategy, f"method {info.name!r}")
    if not (inspect.isclass(cls) and issubclass(cls, Strategy)):
        raise NonConforming(f"{info.strategy} is not a subclass of clbench.Strategy")
    with seeds.scope(seed, "init"):
        network = (language_model() if stream.predicts_tokens else
                   MODELS[model or info.check_model](stream.input_shape, stream.classes))
        network = channels_last(network.to(device))
    stream_info = stream_info_of(stream, scenario, seed, pretrained=False)
    chosen = opt.validate(info.options, options, info.name, "clbench methods")
    with seeds.scope(seed, "strategy"):
        strategy = cls(network, stream_info, chosen)
    require_outputs(strategy, chosen)
    return Bench(strategy.to(device), stream, scenario, seed, info.task_free, info.objectives)


def language_model() -> Network:
    """Return a causal language model that predicts the next token from the latest one."""
    width = 12
    blocks = [Block(Tokens(nn.Embedding(VOCABULARY, width)), nn.Identity()), Block(nn.Linear(width, width), nn.ReLU())]
    return LanguageModel(blocks, nn.Linear(width, VOCABULARY, bias=False))


Make = Callable[..., Bench]


def training(make: Make, index: int) -> tuple[Bench, Batch] | None:
    """Return a strategy in the first phase of a task and a raw batch of the task; None if clbench takes no steps."""
    b = make("task")
    for earlier in range(index):
        b.learn(earlier)
    task = b.replica.begin(index)
    if b.strategy.owns_loop or not shares_of(b.strategy, task):
        return None
    with b.replica.seed_training(index):
        begin_phase(b.strategy, task, phases_of(b.strategy, task, RECIPE, steps_of(RECIPE, len(task.train)))[0])
    return b, b.batch(index)


def check_batches(b: Bench, x: Tensor, expected: Tensor, given_task: int | None, location: str) -> None:
    """Check that raw samples get the expected logits in batches of 7 samples, and the first six also alone."""
    atol = 1e-4 * float(expected[torch.isfinite(expected)].abs().max())
    for size, count in ((7, len(x)), (1, 6)):
        logits = torch.cat([b.logits(x[:count][i:i + size], given_task) for i in range(0, count, size)])
        if not torch.allclose(logits, expected[:count], rtol=1e-3, atol=atol):
            raise NonConforming(f"{location}: the logits of a sample depend on the other samples of its batch. Test "
                                "samples come in the order of tasks, so predict must treat each sample alone")


def snapshot(strategy: Strategy) -> dict[str, Tensor]:
    """Return a copy of all parameters and persistent buffers."""
    return {name: tensor.clone() for name, tensor in strategy.state_dict().items()}


def attributes_snapshot(strategy: Strategy) -> dict[str, Any]:
    """Return a copy of the plain attributes of all modules: numbers, strings and containers of them."""
    return {f"{module_name}.{name}".lstrip("."): copy.deepcopy(value) for module_name, module
            in strategy.named_modules() for name, value in attributes_of(module) if is_plain(value)}


def find_stored(value: Any, visited: set[int]) -> Iterator[Tensor | np.ndarray | nn.Module]:
    """Yield the tensors, arrays and modules in a value and its parts; `visited` has the IDs of objects to leave out."""
    if id(value) in visited or isinstance(value, (str, bytes, range, *UNCHANGING)):
        return
    visited.add(id(value))
    if isinstance(value, Tensor | np.ndarray | nn.Module):
        yield value
        return
    parts: list[Any] = []
    if is_dataclass(value) and not isinstance(value, type):
        parts = [getattr(value, field.name) for field in fields(value)]
    elif isinstance(value, Collection):
        parts = [*value.values()] if isinstance(value, Mapping) else [*value]
    for part in parts:
        yield from find_stored(part, visited)


def unchanged(before: Mapping[str, Any], after: Mapping[str, Any], by: str) -> None:
    """Raise `NonConforming` if a tensor or an attribute of a snapshot was added, removed or changed."""
    for name in sorted(before.keys() ^ after.keys()):
        raise NonConforming(f"{by} adds or removes {name}")
    for name, value in before.items():
        if not (are_identical(value, after[name]) if isinstance(value, Tensor) else value == after[name]):
            raise NonConforming(f"{by} changes {name}")


@contextmanager
def fixed_statistics(strategy: Strategy) -> Iterator[None]:
    """Let normalization use its running statistics. In training mode it changes them and mixes the batch's samples."""
    layers = [m for m in strategy.modules() if isinstance(m, NormWithStatistics) and m.training]
    for layer in layers:
        layer.eval()
    try:
        yield
    finally:
        for layer in layers:
            layer.train()


class DividedLosses(Callback):
    """Check that the loss of a batch is the mean of its parts' losses, if the strategy declares `loss_is_mean`.

    A loss that draws random numbers is not checked, because it has another value each time.
    """

    @contextmanager
    def around_step(self, training: Training, batches: Sequence[Batch]) -> Iterator[None]:
        """Compare both before the step."""
        strategy, train_step = training.replicas[0].strategy, training.train_step
        if train_step is not None and declares(strategy, "loss_is_mean"):
            with fixed_statistics(strategy):
                whole, repeated = train_step.losses(batches).detach(), train_step.losses(batches).detach()
                in_parts = torch.zeros_like(whole)
                for share, part in divide_batches(batches, 3):
                    in_parts += share * train_step.losses(part).detach()
            if torch.equal(whole, repeated) and not torch.allclose(whole, in_parts, rtol=1e-3, atol=1e-5):
                cls = type(strategy)
                source = next(base for base in cls.__mro__ if "loss_is_mean" in vars(base))
                declared = "declares loss_is_mean = True" if source is cls else (
                    f"inherits loss_is_mean = True from {source.__name__}")
                raise NonConforming(f"{cls.__name__} {declared}, but the loss of a batch is {whole.item():.4g} and the "
                                    f"mean of its parts' losses is {in_parts.item():.4g}; set loss_is_mean = False in "
                                    f"{cls.__name__}")
        yield


def train_tasks(b: Bench, callbacks: Sequence[Callback] = ()) -> Iterator[int]:
    """Train on each task and yield its index; caches of the training are verified."""
    for index in range(TASKS):
        TrainingLoop([b.replica], RECIPE, callbacks, verify_caches=True).train_task(index)
        yield index


def predict_all(b: Bench, cache: PredictionCache) -> None:
    """Predict all test samples, as in an evaluation."""
    b.strategy.eval()
    with torch.no_grad():
        for given_task in given_tasks(b.strategy.stream_info.scenario, TASKS):
            for _ in cache.predictions(b.strategy, b.stream.tests, BATCH, given_task):
                pass
    cache.evaluations += 1


def stack_problem(benches: Sequence[Bench], recipe: Recipe = RECIPE) -> str:
    """Train benches as a stack and return why they cannot train so; empty if they can."""
    try:
        loop = TrainingLoop([b.replica for b in benches], recipe)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "There is a performance drop")  # vmap's, if an operation has no fast form
            for index in range(TASKS):
                loop.train_task(index)
    except Unstackable as reason:
        return str(reason)
    except Exception as error:  # a run catches the same errors, and then trains each trial alone
        return typed_message(error, 200)
    return ""
