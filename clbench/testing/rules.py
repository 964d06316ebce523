"""Further checks: learning rates, declarations, hidden boundaries and stored samples; and facts about the training."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from clbench.accounting.flops import FlopCount
from clbench.core import seeds
from clbench.core.errors import PluginError, typed_message
from clbench.core.scenario import Scenario
from clbench.data.samples import Samples
from clbench.data.stream import Stream
from clbench.report.formatting import in_words
from clbench.strategy.base import Strategy, declares
from clbench.strategy.replay import SampleMemory
from clbench.testing.tiny import RECIPE, SAMPLES, TASKS, Bench, DividedLosses, Make, NonConforming, tiny_stream
from clbench.training.cache import PhaseInputs
from clbench.training.callbacks.interface import Callback, Training
from clbench.training.costs import role
from clbench.training.evaluation import evaluate, given_tasks
from clbench.training.loop import TrainingLoop
from clbench.training.prediction_cache import PredictionCache
from clbench.training.sampling import StreamSampler
from clbench.training.stacked_step import Unstackable
from clbench.training.stream_loop import StreamLoop

SIZES = ((SAMPLES,) * TASKS, (44, 28), (3, 58, 11))  # of tasks, for three divisions of the samples; batches have 8


def check_learning_rates(make: Make) -> None:
    """Check that every pattern of `learning_rates` matches a parameter; a misspelled pattern would have no effect."""
    b = make("task")
    unmatched: dict[str, bool] = {}
    for index in range(TASKS):
        b.learn(index)
        names = [name for name, _ in b.strategy.named_parameters()]
        for pattern in b.strategy.learning_rates():
            unmatched[pattern] = unmatched.get(pattern, True) and not any(fnmatchcase(name, pattern) for name in names)
    for pattern, is_unmatched in unmatched.items():
        if is_unmatched:
            raise NonConforming(f"learning_rates has {pattern!r}, which fits the name of no parameter")


def check_task_free(make: Make) -> None:
    """Check that the result of a method that is declared `task_free` does not depend on the hidden boundaries.

    The streams have the same samples in the same order, but they are evaluated at different boundaries. If the options
    need boundaries (`Options.needs_boundaries`), there is nothing to check.
    """
    for scenario in ("class", "domain"):
        b = make(scenario)
        if not b.task_free or b.strategy.options.in_scenario(scenario, boundaries=False).needs_boundaries:
            return
        outcomes = [learned(make, scenario, divided(tiny_stream(scenario), sizes, b.seed)) for sizes in SIZES]
        for sizes, (state, generator_state) in zip(SIZES[1:], outcomes[1:], strict=True):
            first_state, first_generator_state = outcomes[0]
            location = f"scenario {scenario}, hidden boundaries after {list(accumulate(sizes))} samples instead of " \
                       f"{list(accumulate(SIZES[0]))}"
            if state.keys() != first_state.keys():
                raise NonConforming(f"{location}: it keeps other tensors, {sorted(state.keys() ^ first_state.keys())}")
            for name, tensor in first_state.items():
                if not torch.equal(tensor, state[name]):
                    raise NonConforming(f"{location}: {name} is another, so it knows where tasks end")
            if not torch.equal(generator_state, first_generator_state):
                raise NonConforming(f"{location}: it draws other random numbers, so it knows where tasks end")


def divided(stream: Stream, sizes: Sequence[int], seed: int) -> Stream:
    """Return a stream with hidden boundaries and the same order of samples as `stream`, divided into other tasks."""
    order = StreamSampler([task.train for task in stream.tasks], 1, seed)
    samples = Samples.concat(*(task.train.take(rows) for task, rows in zip(stream.tasks, order.rows, strict=True)))
    tasks = []
    for index, (end, size) in enumerate(zip(accumulate(sizes), sizes, strict=True)):
        rows = torch.arange(end - size, end)
        shuffled = torch.randperm(size, generator=seeds.generator(seed, "data", index))  # as the harness will shuffle
        tasks.append(replace(stream.tasks[index], train=samples.take(rows[shuffled.argsort()])))
    return replace(stream, tasks=tuple(tasks), hidden=True)


def learned(make: Make, scenario: str, stream: Stream) -> tuple[dict[str, Tensor], Tensor]:
    """Return the state of a strategy after training on a stream, and the state of its generator."""
    b = make(scenario, stream=stream)
    loop = StreamLoop([b.replica], RECIPE.model_copy(update={"epochs": 1}))
    for index in range(len(stream.tasks)):
        loop.train_task(index)
        evaluate(b.strategy, b.stream, b.scenario, index + 1)
    mask = {"class_mask": b.strategy.class_mask}  # not part of state_dict
    return {**b.strategy.state_dict(), **mask}, b.strategy.stream_info.generator.get_state()


SAMPLE_BUFFERS = ("memory_x", "memory_y", "memory_tasks")  # of a `SampleMemory`


def check_stored_samples(make: Make) -> None:
    """Check that stored samples have the role "replay", by which reports count them.

    The buffers of a `SampleMemory` hold samples by definition. Another parameter or buffer holds samples if one of its
    rows equals a training sample of the tiny stream, raw or prepared, also as 16-bit floats. Its length must be its
    number of samples, because reports count it.
    """
    for scenario in ("task", "class"):
        b = make(scenario)
        training_samples = known_samples(b.stream)
        for index in range(TASKS):
            b.learn(index)
            state = b.strategy.state_dict()
            tensors = {**dict(b.strategy.named_parameters()), **dict(b.strategy.named_buffers())}
            for name, tensor in tensors.items():
                is_memory = isinstance(b.strategy, SampleMemory) and name in SAMPLE_BUFFERS and len(tensor)
                has_samples = holds_samples(tensor, training_samples)
                if not is_memory and not has_samples:
                    continue
                location = f"scenario {scenario}, after task {index + 1}: {name} holds training samples"
                if name not in state:
                    raise NonConforming(f"{location}, but it is not persistent, so reports do not count it: "
                                        "leave persistent=False out")
                if role(b.strategy, name) != "replay":
                    raise NonConforming(f"{location}, but its role is {role(b.strategy, name)!r}, so reports say that "
                                        f"no samples are kept: add ({name!r}, 'replay') to the front of roles")
                if has_samples and tensor.numel() != len(tensor) * training_samples.shape[1]:
                    raise NonConforming(f"{location} in the shape {list(tensor.shape)}, which reports count as "
                                        f"{len(tensor)} samples: store a row per sample")


def known_samples(stream: Stream) -> Tensor:
    """Return all training samples of a stream as rows [N, D] in float64: raw, prepared, and rounded to 16 bits."""
    raw = torch.cat([task.train.materialized().x for task in stream.tasks])
    prepared = stream.prepare(raw)
    return torch.cat([x.flatten(1).cpu().double() for x in (raw, prepared, prepared.bfloat16(), prepared.half())])


def holds_samples(tensor: Tensor, known: Tensor) -> bool:
    """Return whether a tensor, reshaped to rows of length D, has a row that equals one of the known samples [N, D]."""
    length = known.shape[1]
    if not tensor.numel() or tensor.numel() % length or tensor.is_complex():
        return False
    rows = tensor.detach().cpu().reshape(-1, length).double()
    return bool((torch.cdist(rows, known, compute_mode="donot_use_mm_for_euclid_dist") == 0).any())


SCENARIOS: tuple[Scenario, ...] = ("task", "class")
BATCH = 8  # test samples per call of `predict`
MUCH = 1.5  # minimum speedup for which a declaration is suggested
FACTS = ("parts_final", "inputs_only_through_model")


class CountedCache(PredictionCache):
    """A cache that counts the FLOPs of verification separately, because with few samples they are most of the total."""

    verification = 0

    def _verify(self, *args: Any) -> None:
        """Compute a batch again and count the FLOPs."""
        with FlopCount() as count:
            super()._verify(*args)
        self.verification += count.total


def check_declarations(make: Make) -> None:
    """Check that values that are cached because of a declaration do not change, and that `loss_is_mean` is true."""
    for scenario in SCENARIOS:
        b, cache = make(scenario), PredictionCache(everything=True)
        try:
            for _ in train_tasks(b, [DividedLosses()]):
                predict_all(b, cache)
        except PluginError as error:
            raise NonConforming(str(error)) from None


def suggested_declarations(make: Make) -> list[str]:
    """Return a line for each fact that is not declared, holds on the tiny stream, and would save much computation."""
    lines = []
    for fact in FACTS:
        gains = [gain(make, scenario, fact) for scenario in SCENARIOS]
        if min(gains) >= 1 and max(gains) >= MUCH:
            name = type(make("task").strategy).__name__
            lines.append(f"{name} could declare {fact} = True, which held here: its evaluation would be up to "
                         f"{max(gains):.1f} times as fast (False ends this note)")
    return lines


def gain(make: Make, scenario: Scenario, fact: str) -> float:
    """Return the speedup of evaluations by a declaration, in FLOPs; 0 if it is wrong or the class already sets it."""
    undeclared, declared = make(scenario), make(scenario)
    if undeclared.strategy.owns_loop or is_decided(undeclared.strategy, fact):
        return 0
    cls = type(declared.strategy)
    declared.strategy.__class__ = type(cls.__name__, (cls,), {fact: True})
    try:
        before, after = (evaluation_flops(b) for b in (undeclared, declared))
    except (PluginError, RuntimeError, ValueError, IndexError, TypeError):
        return 0
    return before / max(after, 1)


def is_decided(strategy: Strategy, fact: str) -> bool:
    """Return whether a strategy declares a fact as true, or a subclass of `Strategy` sets it to any value."""
    subclasses = type(strategy).__mro__[:type(strategy).__mro__.index(Strategy)]
    return declares(strategy, fact) or any(fact in vars(cls) for cls in subclasses)


def evaluation_flops(b: Bench) -> int:
    """Return the FLOPs of all evaluations of a trial, without the verification of the cache."""
    cache, total = CountedCache(everything=True), 0
    for _ in train_tasks(b):
        with FlopCount() as count:
            predict_all(b, cache)
        total += count.total
    return total - cache.verification


class TrainedGroups(Callback):
    """Counts the parameters that are trained, in the phase with the most, by the first part of their names."""

    def __init__(self) -> None:
        """Start without parameters."""
        self.sizes = Counter[str]()

    def on_phase(self, training: Training, inputs: PhaseInputs) -> None:
        """Count the parameters of a phase."""
        assert training.train_step is not None
        self.sizes |= group_sizes(training.train_step.trained)


def group_sizes(parameters: Mapping[str, Tensor]) -> Counter[str]:
    """Return the numbers of values of parameters, by the first part of their names: `model.*`."""
    sizes = Counter[str]()
    for name, parameter in parameters.items():
        group, dot, _ = name.partition(".")
        sizes[f"{group}.*" if dot else group] += parameter.numel()
    return sizes


def training_facts(make: Make) -> list[str]:
    """Return lines on the parameters that a method trains, and on why its trials cannot train as a stack."""
    b, trained = make("task"), TrainedGroups()
    for index in range(TASKS):
        TrainingLoop([b.replica], RECIPE, [trained]).train_task(index)
    if b.strategy.owns_loop:  # it has no phases
        trained.sizes = group_sizes({n: p for n, p in b.strategy.named_parameters() if p.requires_grad})
    groups = [f"{group} ({size:,}{'' if number else ' parameters'})"
              for number, (group, size) in enumerate(trained.sizes.items())]
    lines = [f"trains {in_words(groups, len(groups)) or 'no parameters'}"]
    if problem := stack_problem(make):
        lines.append(f"seeds of this method train one by one, also with --stack: {problem}")
    return lines


def stack_problem(make: Make) -> str:
    """Return why two seeds cannot train as a stack; empty if they can. Alone, they must train without an error."""
    replicas = [make("task", seed).replica for seed in range(2)]
    try:
        loop = TrainingLoop(replicas, RECIPE)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "There is a performance drop")  # vmap's, if an operation has no fast form
            for index in range(TASKS):
                loop.train_task(index)
    except Unstackable as reason:
        return str(reason)
    except Exception as error:  # a run catches the same errors, and then trains each trial alone
        return typed_message(error, 200)
    return ""


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
