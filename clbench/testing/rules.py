"""Checks that need several runs or functions of their own: declarations, hidden boundaries and stored samples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from clbench.accounting.flops import FlopCount
from clbench.core import seeds
from clbench.core.errors import PluginError
from clbench.core.scenario import Scenario
from clbench.data.samples import Samples
from clbench.data.stream import Stream
from clbench.strategy.base import Strategy, declares
from clbench.strategy.replay import SampleMemory
from clbench.testing.tiny import RECIPE, SAMPLES, TASKS, Bench, Make, NonConforming, tiny_stream
from clbench.training.costs import role
from clbench.training.evaluation import evaluate, given_tasks
from clbench.training.loop import TrainingLoop
from clbench.training.prediction_cache import PredictionCache
from clbench.training.sampling import StreamSampler
from clbench.training.stream_loop import StreamLoop

SIZES = ((SAMPLES,) * TASKS, (44, 28), (3, 58, 11))  # of tasks, for three divisions of the samples; batches have 8


def check_task_free(make: Make) -> None:
    """Check that the result of a method that is declared `task_free` does not depend on the hidden boundaries.

    The streams have the same samples in the same order, but they are evaluated at different boundaries. If the options
    need boundaries (`Options.needs_boundaries`), there is nothing to check.
    """
    for scenario in ("class", "domain"):
        first = make(scenario)
        if not first.task_free or first.strategy.options.in_scenario(scenario, boundaries=False).needs_boundaries:
            return
        outcomes = [learned(make, scenario, divided(tiny_stream(scenario), sizes, first.seed)) for sizes in SIZES]
        for sizes, (state, draws) in zip(SIZES[1:], outcomes[1:], strict=True):
            known, drawn = outcomes[0]
            where = f"scenario {scenario}, hidden boundaries after {list(accumulate(sizes))} samples instead of " \
                    f"{list(accumulate(SIZES[0]))}"
            if state.keys() != known.keys():
                raise NonConforming(f"{where}: it keeps other tensors, {sorted(state.keys() ^ known.keys())}")
            for name, tensor in known.items():
                if not torch.equal(tensor, state[name]):
                    raise NonConforming(f"{where}: {name} is another, so it knows where tasks end")
            if not torch.equal(draws, drawn):
                raise NonConforming(f"{where}: it draws other random numbers, so it knows where tasks end")


def divided(stream: Stream, sizes: Sequence[int], seed: int) -> Stream:
    """Return a stream with hidden boundaries and the same order of samples as `stream`, divided into other tasks."""
    order = StreamSampler([task.train for task in stream.tasks], 1, seed)
    passing = Samples.concat(*(task.train.take(rows) for task, rows in zip(stream.tasks, order.rows, strict=True)))
    tasks = []
    for index, (end, size) in enumerate(zip(accumulate(sizes), sizes, strict=True)):
        rows = torch.arange(end - size, end)
        shuffled = torch.randperm(size, generator=seeds.generator(seed, "data", index))  # as the harness will shuffle
        tasks.append(replace(stream.tasks[index], train=passing.take(rows[shuffled.argsort()])))
    return replace(stream, tasks=tuple(tasks), hidden=True)


def learned(make: Make, scenario: str, stream: Stream) -> tuple[dict[str, Tensor], Tensor]:
    """Return the state of a strategy after training on a stream, and the state of its generator."""
    b = make(scenario, stream=stream)
    loop = StreamLoop([b.replica], RECIPE.model_copy(update={"epochs": 1}))
    for index in range(len(stream.tasks)):
        loop.train_task(index)
        evaluate(b.strategy, stream, b.scenario, index + 1)
    mask = {"class_mask": b.strategy.class_mask}  # not part of state_dict
    return {**b.strategy.state_dict(), **mask}, b.strategy.stream_info.generator.get_state()


SAMPLE_BUFFERS = ("memory_x", "memory_y", "memory_tasks")  # of a `SampleMemory`


def check_stored_samples(make: Make) -> None:
    """Check that stored samples have the role "replay", by which reports count them.

    The buffers of a `SampleMemory` hold samples by definition. Another parameter or buffer holds samples if one of its
    rows equals a training sample of the tiny stream, raw or prepared.
    """
    for scenario in ("task", "class"):
        b = make(scenario)
        known = known_samples(b.stream)
        for index in range(TASKS):
            b.learn(index)
            counted = b.strategy.state_dict()
            tensors = {**dict(b.strategy.named_parameters()), **dict(b.strategy.named_buffers())}
            for name, tensor in tensors.items():
                memory = isinstance(b.strategy, SampleMemory) and name in SAMPLE_BUFFERS and len(tensor)
                if not memory and not holds_samples(tensor, known):
                    continue
                where = f"scenario {scenario}, after task {index + 1}: {name} holds training samples"
                if name not in counted:
                    raise NonConforming(f"{where}, but it is not persistent, so reports do not count it: "
                                        "leave persistent=False out")
                if role(b.strategy, name) != "replay":
                    raise NonConforming(f"{where}, but its role is {role(b.strategy, name)!r}, so reports say that no "
                                        f"samples are kept: add ({name!r}, 'replay') to the front of roles")


def known_samples(stream: Stream) -> Tensor:
    """Return all training samples of a stream, raw and prepared, as rows [N, D] in float64."""
    raw = torch.cat([task.train.materialized().x for task in stream.tasks])
    return torch.cat([raw.flatten(1).double(), stream.prepare(raw).flatten(1).double()])


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
    """Check that all values that are cached because of a declaration are the same when they are computed again."""
    for scenario in SCENARIOS:
        b, cache = make(scenario), PredictionCache(everything=True)
        try:
            for _ in train_tasks(b):
                predict_all(b, cache)
        except PluginError as error:
            raise NonConforming(f"scenario {scenario}: {error}") from None


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
    without, declared = make(scenario), make(scenario)
    if without.strategy.owns_loop or is_decided(without.strategy, fact):
        return 0
    cls = type(declared.strategy)
    declared.strategy.__class__ = type(cls.__name__, (cls,), {fact: True})
    try:
        before, after = (evaluation_flops(b) for b in (without, declared))
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


def train_tasks(b: Bench) -> Iterator[int]:
    """Train on each task and yield its index; caches of the training are verified."""
    for index in range(TASKS):
        TrainingLoop([b.replica], RECIPE, verify_caches=True).train_task(index)
        yield index


def predict_all(b: Bench, cache: PredictionCache) -> None:
    """Predict all test samples, as in an evaluation."""
    b.strategy.eval()
    with torch.no_grad():
        for given in given_tasks(b.strategy.stream_info.scenario, TASKS):
            for _ in cache.predictions(b.strategy, b.stream.tests, BATCH, given):
                pass
    cache.evaluations += 1
