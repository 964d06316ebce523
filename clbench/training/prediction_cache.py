"""Cache of test predictions: outputs of final parts and of frozen first blocks are computed once.

As in training (`clbench.training.phase_cache`), methods declare what may be cached. Each evaluation computes some
batches again and compares them with the stored outputs. These are stored in the batches in which they were computed, so
that a batch that is computed again is equal bit for bit. The outputs of a final part, that of a learned task, never
change. Frozen blocks may change between evaluations, and so may the starting model, which predicts for tasks that are
not learned yet. Their stored outputs are then dropped.

Of language models, only the scores of final parts are cached, if the task is given. A task that is not given is
inferred again for all test items, which are then predicted again. Frozen blocks are not cached, because the hidden
states of all positions would take most of the memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice

import torch
from torch import Tensor

from clbench.core import seeds
from clbench.core.errors import PluginError
from clbench.data.tests import Tests
from clbench.strategy.base import Prediction, Strategy, declares, overrides
from clbench.strategy.per_task import PerTaskStrategy
from clbench.training.phase_cache import are_identical, explain_misuse, frozen_blocks, is_enabled, start_at

BYTES = 2**28  # default limit of the stored outputs of one trial
# Smallest number of batches of the samples, so that computing one batch again costs little. A batch of frozen blocks is
# verified in every evaluation, but one of each task's part only in a few. Small batches slow down some parts.
BLOCK_BATCHES, PART_BATCHES = 32, 8
SMALLEST = 32  # samples in a batch, even if this makes fewer batches
Batches = Iterator[tuple[Prediction, Tensor, Tensor]]


@dataclass(frozen=True)
class Source:
    """How to compute predictions from outputs that may be cached.

    Args:
        parts: functions that compute an output from inputs [N, ...], by name.
        predict: a function that computes a prediction from the outputs of all parts.
        final: whether the method declares that the outputs never change.
    """

    parts: Mapping[str, Callable[[Tensor], Tensor]]
    predict: Callable[[list[Tensor]], Prediction]
    final: bool


@dataclass
class PredictionCache:
    """Cached outputs of one trial's strategy for its test samples.

    Args:
        seed: the seed of the trial, which selects the batches to test.
        everything: whether every batch is computed again and compared.
        limit: most bytes of stored outputs.
        evaluations: the number of evaluations so far, which `evaluate` counts.
        verified_in: the last evaluation in which outputs that all tasks share were verified.
    """

    seed: int = 0
    everything: bool = False
    limit: int = BYTES
    evaluations: int = 0
    verified_in: int = -1
    stored: dict[tuple[int | None, str], dict[int, Tensor]] = field(default_factory=dict)  # by given task, part; batch
    scores: dict[tuple[int, bool], list[dict[str, Tensor]]] = field(default_factory=dict)  # by (task, is it learned)

    def final_scores(self, strategy: Strategy, tests: Tests, size: int, task: int | None) -> dict[str, Tensor] | None:
        """Return the scores [N] of a task's samples by metric, computed only once; None if they may not be cached.

        The scores are those of a learned task's final part, or of the starting model, which may change between
        evaluations. One batch, which the seed selects, is computed again.

        Raises:
            PluginError: the final part gives other scores than before.
        """
        if (task is None or not isinstance(strategy, PerTaskStrategy) or not declares(strategy, "parts_final")
                or overrides(strategy, "predict", PerTaskStrategy) or not is_enabled()):
            return None
        key = task, task < strategy.learned
        cached, batches = self.scores.get(key), math.ceil(tests.sizes[task] / size)
        start = 0 if self.everything or cached is None else seeds.derive(self.seed, "cache", self.evaluations) % batches
        computed = [strategy.objective.scores(strategy, prediction.logits, y, task)
                    for prediction, y, _ in islice(predictions(strategy, tests, size, task, start),
                                                   1 if cached is not None and not self.everything else None)]
        if cached is None:
            cached = self.scores[key] = computed
        for old, new in zip(cached[start:], computed, strict=False):
            if any(not are_identical(old[name], new[name]) for name in new):
                if not key[1]:  # the first task may have trained the starting model
                    del self.scores[key]
                    return self.final_scores(strategy, tests, size, task)
                raise PluginError(f"{type(strategy).__name__} declares parts_final, but task {task + 1} has other "
                                  f"scores than before; set parts_final = False in {type(strategy).__name__}")
        return {name: torch.cat([scores[name] for scores in cached]) for name in cached[0]}

    def predictions(self, strategy: Strategy, tests: Tests, size: int, task: int | None) -> Batches:
        """Yield the same samples as the function `predictions`, from cached outputs if possible.

        Batches may be smaller than `size`, so that there are enough of them to verify one.

        Raises:
            PluginError: a final part gives other outputs than before, or the strategy uses its inputs in other ways
                than it declares.
        """
        samples = len(tests.y) if task is None else tests.sizes[task]
        fewest_batches = PART_BATCHES if isinstance(strategy, PerTaskStrategy) else BLOCK_BATCHES
        smaller = min(size, max(SMALLEST, math.ceil(samples / fewest_batches)))
        batches = math.ceil(samples / smaller)
        source = self._source(strategy, task) if batches > 1 and is_enabled() else None
        if source is None:
            yield from predictions(strategy, tests, size, task)
            return
        size = smaller
        for key in [key for key in self.stored if key[0] == task and key[1] not in source.parts]:
            del self.stored[key]  # from the starting model, or from another number of blocks
        if self.everything or self._is_chosen(strategy, source, task):
            stored = {number for name in source.parts for number in self.stored.get((task, name), ())}
            numbers = sorted(stored) or range(batches)
            chosen = numbers[seeds.derive(self.seed, "cache", self.evaluations) % len(numbers)]
            for number in range(batches) if self.everything else (chosen,):
                self._verify(strategy, source, tests, size, task, number)
        if all(len(self.stored.get((task, name), ())) == batches for name in source.parts):  # no input is needed
            for number, (y, tasks) in enumerate(tests.labels(size, task)):
                yield source.predict([self.stored[task, name][number] for name in source.parts]), y, tasks
            return
        for number, (x, y, tasks) in enumerate(tests.batches(size, task)):
            outputs = [self._output((task, name), compute, number, x) for name, compute in source.parts.items()]
            yield source.predict(outputs), y, tasks

    def _is_chosen(self, strategy: Strategy, source: Source, task: int | None) -> bool:
        """Return whether a batch of this task is computed again in this evaluation.

        All tasks share the frozen blocks and the starting model, so these are verified with the first task whose
        outputs are cached. A change is then found before a stale output is used. If the task is not given, a batch is
        verified in every evaluation. Else the seed selects one of the final parts but the newest, whose outputs are not
        stored yet.
        """
        if not source.final:
            is_first, self.verified_in = self.verified_in != self.evaluations, self.evaluations
            return is_first
        assert isinstance(strategy, PerTaskStrategy)
        older = max(strategy.learned - 1, 1)
        return task is None or task == seeds.derive(self.seed, "part", self.evaluations) % older

    def _source(self, strategy: Strategy, task: int | None) -> Source | None:
        """Return the source of predictions for a given task (None: not given), or None if nothing may be cached."""
        if isinstance(strategy, PerTaskStrategy):
            if (not declares(strategy, "parts_final") or overrides(strategy, "predict", PerTaskStrategy)
                    or (task is None and not strategy.learned)):
                return None
            if task is not None:
                final = task < strategy.learned
                name = f"part {task}" if final else "starting model"
                return Source({name: lambda x: strategy.predict(x, task).logits}, lambda out: Prediction(out[0]),
                              final)
            learned = strategy.learned
            parts: dict[str, Callable[[Tensor], Tensor]] = {
                f"part {part}": partial(strategy.forward_task, task=part) for part in range(learned)}
            if strategy.options.from_features:
                parts["features"] = strategy.inference_features
            return Source(parts, lambda out: strategy.chosen(torch.stack(out[:learned]),
                                                             out[learned] if len(out) > learned else None), True)
        if not declares(strategy, "inputs_only_through_model"):
            return None
        count = frozen_blocks(strategy)
        blocks = list(strategy.model.blocks)[:count]
        if next(chain.from_iterable(block.parameters() for block in blocks), None) is None:
            return None
        return Source({f"{count} blocks": lambda x: strategy.model.run(x, 0, count)},
                      lambda out: predict_from(strategy, out[0], count, task), False)

    def _verify(self, strategy: Strategy, source: Source, tests: Tests, size: int, task: int | None,
                number: int) -> None:
        """Compute a batch again and compare; drop changed outputs that are not final.

        Of frozen blocks the predictions are compared, and the outputs only if these differ.
        """
        x, _, _ = next(tests.batches(size, task, number))
        if isinstance(strategy, PerTaskStrategy):
            self._drop_changed(strategy, source, task, number, x)
        elif not self._predicts_same(strategy, source, task, number, x):
            self._drop_changed(strategy, source, task, number, x)
            if not self._predicts_same(strategy, source, task, number, x):
                raise PluginError(explain_misuse(strategy, "predict returns another prediction"))

    def _drop_changed(self, strategy: Strategy, source: Source, task: int | None, number: int, x: Tensor) -> None:
        """Drop all stored outputs of each part whose output for batch `number` has changed.

        Raises:
            PluginError: a final part has changed.
        """
        for name, compute in source.parts.items():
            stored = self.stored.get((task, name), {})
            if number in stored and not are_identical(stored[number], compute(x)):
                if source.final:
                    raise PluginError(f"{type(strategy).__name__} declares parts_final, but {name} gives other outputs "
                                      "than after an earlier task; set parts_final = False in "
                                      f"{type(strategy).__name__}")
                for key in [key for key in self.stored if key[1] == name]:
                    del self.stored[key]  # for all tasks, because they share this part

    def _predicts_same(self, strategy: Strategy, source: Source, task: int | None, number: int, x: Tensor) -> bool:
        """Return whether the prediction from the stored outputs of a batch is the strategy's prediction for it."""
        outputs = [self._output((task, name), compute, number, x) for name, compute in source.parts.items()]
        try:
            prediction = source.predict(outputs)
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            raise PluginError(explain_misuse(strategy, f"predict fails: {error}")) from error
        return are_equal(strategy.predict(x, task), prediction)

    def _output(self, key: tuple[int | None, str], compute: Callable[[Tensor], Tensor], number: int, x: Tensor
                ) -> Tensor:
        """Return the stored output for a batch; if there is none, compute it, and store it if there is room."""
        stored = self.stored.setdefault(key, {})
        if number not in stored:
            output = compute(x)
            if self.stored_bytes() + output.nbytes > self.limit:
                return output
            stored[number] = output
        return stored[number]

    def stored_bytes(self) -> int:
        """Return the size of the stored outputs."""
        return sum(output.nbytes for batches in self.stored.values() for output in batches.values())


def predictions(strategy: Strategy, tests: Tests, size: int, task: int | None, first: int = 0) -> Batches:
    """Yield predictions, labels and task indices in batches, for the samples of a given task or of all tasks (None).

    The strategy must be in eval mode, without gradients. `first` is the number of the batch to begin with.
    """
    for x, y, tasks in tests.batches(size, task, first):
        yield strategy.predict(x, task), y, tasks


def predict_from(strategy: Strategy, outputs: Tensor, blocks: int, task: int | None) -> Prediction:
    """Return the prediction from the outputs of the model's first blocks."""
    with start_at([strategy], blocks):
        return strategy.predict(outputs, task)


def are_equal(one: Prediction, other: Prediction) -> bool:
    """Return whether two predictions are equal bit for bit."""
    return all(a is b or (a is not None and b is not None and are_identical(a, b))
               for a, b in zip(one, other, strict=True))
