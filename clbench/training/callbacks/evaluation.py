"""Evaluation after each task: a row of R with its error decomposition, and the storage of the strategy."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping

import torch
from torch import Tensor

from clbench.core.objective import METRICS
from clbench.data.stream import Stream
from clbench.experiment.recipe import Recipe
from clbench.models.scoring import IGNORED
from clbench.results.item_scores import ItemScores
from clbench.results.items import ItemResults
from clbench.results.records import Failure
from clbench.strategy.base import Prediction
from clbench.training import precision
from clbench.training.callbacks.error_decomposition import ErrorDecomposition
from clbench.training.callbacks.interface import Callback, Training
from clbench.training.costs import Clock, measure
from clbench.training.evaluation import evaluate
from clbench.training.prediction_cache import BYTES, PredictionCache
from clbench.training.replica import Replica


class EvaluationCallback(Callback):
    """Evaluates replicas on all tasks, before the first one and after each.

    Args:
        decomposition: how to decompose errors.
        verify_caches: whether to compute all cached predictions again and compare them.
    """

    def __init__(self, decomposition: ErrorDecomposition | None = None, verify_caches: bool = False) -> None:
        """Start with empty caches."""
        self.decomposition = decomposition or ErrorDecomposition()
        self.verify_caches = verify_caches
        self.caches: dict[Replica, PredictionCache] = {}
        self.cache_limit = BYTES  # of each replica

    def on_start(self, training: Training) -> None:
        """Add the row of R before the first task, unless a checkpoint had it already."""
        if training.cache_bytes is not None:
            self.cache_limit = min(BYTES, training.cache_bytes // len(training.replicas))
        for replica in training.replicas:
            if not replica.R:
                self.add_row(replica, training.recipe, 0)

    def on_task(self, training: Training, task: int) -> None:
        """Add the footprint, and a row of R."""
        self.caches = {r: cache for r, cache in self.caches.items() if r in training.replicas}
        for replica in training.replicas:
            replica.add_footprint(measure(replica.strategy))
            self.add_row(replica, training.recipe, task + 1)

    def add_row(self, replica: Replica, recipe: Recipe, learned: int) -> None:
        """Evaluate on all tasks and add the row.

        Evaluation time includes collecting each batch for the error decomposition, but not computing its counts.
        """
        scenario, is_last = replica.strategy.stream_info.scenario, learned == len(replica.stream.tasks)
        cache = self.caches.setdefault(replica, PredictionCache(replica.seed, self.verify_caches, self.cache_limit))
        began = Clock.now()
        with precision.autocast_context(recipe, replica.strategy.class_mask.device, replica.strategy):
            counter = self.decomposition.make_counter(replica.stream, scenario, learned)
            right: list[Tensor] = []
            not_numbers: list[Tensor] = []

            def watch(prediction: Prediction, logits: Tensor, y: Tensor, tasks: Tensor) -> None:
                if counter is not None:
                    counter.add(prediction, logits, y, tasks)
                if replica.stream.has_classes:  # their scores are numbers even if the logits are not
                    not_numbers.append((logits.isnan().any(1) & (tasks < learned)).any())
                if is_last and replica.stream.has_classes:
                    right.append(logits.argmax(1) == y)

            row = evaluate(replica.strategy, replica.stream, scenario, learned, cache, watch,
                           with_items=is_last and not replica.stream.has_classes)
            spent = Clock.now().since(began)
            replica.timings.evaluate.append(spent.wall)
            replica.timings.evaluate_cpu.append(spent.cpu)
            if (not all(math.isfinite(value) for values in row.scores.values() for value in values)
                    or (not_numbers and bool(torch.stack(not_numbers).any()))):
                replica.failure = Failure(type="DivergedError", message="the outputs became NaN or infinite: an output "
                                          f"or a test score after task {learned} is not a number")
                return
            self.decomposition.add(replica, counter, learned)
        if right and replica.planned is not None:
            replica.items = item_results(replica.stream, torch.cat(right), replica.trial.benchmark.name)
        if row.items and replica.planned is not None:
            replica.item_scores = item_scores(replica, row.items)
        objective = replica.strategy.objective.info
        replica.R.append(row.scores[objective.primary])
        for name, values in row.scores.items():
            if name != objective.primary:
                replica.scores.setdefault(name, []).append(values)
        if row.task_inference is not None:
            replica.task_inference.append(row.task_inference)


def item_results(stream: Stream, right: Tensor, source: str) -> ItemResults | None:
    """Return which images are predicted correctly; None if it is not known which images the test samples are.

    `right`, bool [N], is in the order of `stream.tests`. `source` is the benchmark's name.
    """
    rows = [task.test_rows for task in stream.tested_tasks if task.test_rows is not None]
    if len(rows) < len(stream.tested_tasks):
        return None
    return ItemResults.of([of_task.numpy() for of_task in rows], right.cpu().numpy(), source)


def item_scores(replica: Replica, scores: Mapping[str, Tensor]) -> ItemScores:
    """Return the scores of test items for the record; `scores` has values [N] by metric, in the order of the tests."""
    stream = replica.stream
    ids = hashlib.sha256(replica.trial.benchmark.name.encode())
    for task in stream.tested_tasks:
        x, y = task.test.x.cpu(), task.test.y.cpu()
        if stream.predicts_tokens:
            length = int((y != IGNORED).any(0).nonzero().max()) + 1  # without padding, which depends on training items
            x, y = x[:, :length], y[:, :length]
        ids.update(repr((x.shape, y.shape)).encode())
        for part in (x, y):
            ids.update(part.contiguous().numpy().tobytes())
    return ItemScores.of({name: (values.bool() if METRICS[name].is_share else values.float()).cpu().numpy()
                          for name, values in scores.items()}, ids.hexdigest())
