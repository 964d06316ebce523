"""Evaluation: one row of R, with the metrics on every task of the stream, and the accuracy of task-ID inference.

The scenario determines which outputs compete at test time, and whether the strategy gets the task ID of a sample
(`clbench.core.scenario`).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from clbench.core import tokens
from clbench.core.errors import PluginError
from clbench.core.objective import ACCURACY
from clbench.core.scenario import Scenario, scenario_rules
from clbench.core.torch_private import write_count
from clbench.data.stream import Stream
from clbench.data.tests import Tests
from clbench.strategy.base import Prediction, Strategy
from clbench.strategy.objectives import prompts_of
from clbench.strategy.per_sample_gradients import evaluating
from clbench.strategy.per_task import PerTaskStrategy
from clbench.training.prediction_cache import Batches, PredictionCache, predictions

# Bytes of inputs in a batch. On a CPU the activations of a convolutional network should stay in its caches: ResNet-20
# is evaluated 1.5 times as fast in batches of 64 as of 1,024 CIFAR images; for mlp there is hardly a difference.
BATCH_BYTES = {"cpu": 2**20}
ACCELERATOR_BYTES = 2**25
SMALLEST = 32  # samples in a batch, even if a sample is large

# Called for each batch: prediction, its logits [N, C] with -inf for outputs that do not compete, labels, tasks [N].
OnBatch = Callable[[Prediction, torch.Tensor, torch.Tensor, torch.Tensor], None]


@dataclass(frozen=True)
class Row:
    """Test results on all tasks at one time.

    `scores` are the metrics of each task, from means over its samples. `task_inference` is the share of each task's
    samples whose task was inferred correctly; None if the strategy infers no tasks. `items` has values [N] by metric,
    in the order of `Stream.tests`, whose means over each task give `scores`; it is empty unless requested.
    """

    scores: dict[str, list[float]]
    task_inference: list[float] | None
    items: dict[str, Tensor] = field(default_factory=dict)

    @property
    def accuracy(self) -> list[float]:
        """Return the accuracy on each task; only classification has one."""
        return self.scores[ACCURACY.name]


def batch_size(stream: Stream, device: torch.device, length: int = 0) -> int:
    """Return the number of samples that are predicted at once on a device, for texts of up to `length` tokens.

    The length matters only if texts are longer than those of the stream.
    """
    numbers = max(math.prod(stream.input_shape), length) * (tokens.WIDTH if stream.is_text else 1)
    return max(SMALLEST, BATCH_BYTES.get(device.type, ACCELERATOR_BYTES) // (4 * numbers))


def candidate_outputs(stream: Stream, scenario: Scenario, learned: int) -> Tensor:
    """Return which outputs compete in predictions for each task, bool [T, C], on the stream's device."""
    rules, classes = scenario_rules(scenario), [task.classes for task in stream.tasks]
    offered = torch.zeros(len(classes), stream.classes, dtype=torch.bool)
    for index in range(len(classes)):
        offered[index, rules.at_test(classes, index, learned)] = True
    if rules.seen_compete:
        offered[:, stream.arrived(learned)] = True
    return offered.to(stream.tests.y.device)


def given_tasks(scenario: Scenario, tasks: int) -> Sequence[int | None]:
    """Return the task IDs that strategies get, one after the other; only None if the scenario does not give them."""
    return range(tasks) if scenario_rules(scenario).task_given else (None,)


def evaluate(strategy: Strategy, stream: Stream, scenario: Scenario, learned: int,
             cache: PredictionCache | None = None, on_batch: OnBatch | None = None, with_items: bool = False,
             tests: Tests | None = None) -> Row:
    """Evaluate a strategy that has learned the first `learned` tasks on the test samples of all tasks.

    If the scenario does not give the task ID, a batch may have samples of several tasks. If all tasks share one test
    set, it is evaluated once, all tasks get its values, and there is no task to infer. `cache` has outputs from earlier
    evaluations of the same strategy on the same stream. `on_batch` is called for every batch that is predicted.
    `with_items` requests `Row.items`. `tests` replaces the stream's tests, and may have only the first tasks.
    """
    tests = tests or stream.tests
    device = tests.y.device
    size = batch_size(stream, device)
    offered = candidate_outputs(stream, scenario, learned)
    exact = torch.float32 if device.type == "mps" else torch.float64
    inferred = torch.zeros(len(tests.sizes), dtype=exact, device=device)
    sums = defaultdict[str, Tensor](lambda: torch.zeros_like(inferred))
    items = defaultdict[str, list[Tensor]](list)
    infers = False
    predict = routed if stream.predicts_tokens else predictions if cache is None else cache.predictions
    with evaluating(strategy), torch.no_grad(), unwritten_tests(strategy, stream):
        for given_task in given_tasks(scenario, len(tests.sizes)):
            if cache is not None and stream.predicts_tokens and given_task is not None:
                final = cache.final_scores(strategy, tests, size, given_task)
                if final is not None:
                    for name, values in final.items():
                        sums[name][given_task] = values.to(exact).sum()
                        if with_items:
                            items[name].append(values)
                    continue
            for prediction, y, tasks in predict(strategy, tests, size, given_task):
                out = require_prediction(strategy, prediction).logits
                if not stream.predicts_tokens:
                    out = out.masked_fill(~offered[tasks], float("-inf"))
                for name, values in strategy.objective.scores(strategy, out, y, given_task).items():
                    sums[name].index_add_(0, tasks, values.to(exact))
                    if with_items:
                        items[name].append(values)
                if on_batch is not None:
                    on_batch(prediction, out, y, tasks)
                if prediction.task is not None and not stream.common_test:
                    infers = True
                    inferred.index_add_(0, tasks, (prediction.task == tasks).to(exact))
    if cache is not None:
        cache.evaluations += 1
    sizes = torch.tensor(tests.sizes)
    means = {name: total.cpu().double() / sizes for name, total in sums.items()}
    repeats = len(stream.tasks) if stream.common_test else 1
    scores = {name: values.tolist() * repeats for name, values in strategy.objective.metrics(strategy, means).items()}
    item_values = {name: torch.cat(parts).cpu().double() for name, parts in items.items()}
    if item_values:
        means_by_item = {name: values[tests.tasks.cpu()] for name, values in means.items()}
        item_values = strategy.objective.contributions(strategy, item_values, means_by_item)
    return Row(scores, (inferred.cpu().double() / sizes).tolist() if infers else None, item_values)


@contextmanager
def unwritten_tests(strategy: Strategy, stream: Stream) -> Iterator[None]:
    """Check that a strategy does not change test samples in place inside the block, because all trials share them.

    If it does, the stream prepares its test samples again for the next evaluation.

    Raises:
        PluginError: the strategy or its model changed test samples.
    """
    x = stream.tests.x
    count = write_count(x) if isinstance(x, Tensor) else 0
    try:
        yield
    finally:
        changed = isinstance(x, Tensor) and write_count(x) != count
        if changed:
            del vars(stream)["tests"]
    if changed:
        raise PluginError(f"{type(strategy).__name__} or its model changed the inputs of `predict` in place, but all "
                          "trials share the test samples; compute new tensors, as in x = x - mean instead of "
                          "x.sub_(mean)")


def require_prediction(strategy: Strategy, prediction: object) -> Prediction:
    """Return what `predict` of a strategy returned, if it is a `Prediction`.

    Raises:
        PluginError: it is not.
    """
    if isinstance(prediction, Prediction):
        return prediction
    raise PluginError(f"`predict` of {type(strategy).__name__} returned a {type(prediction).__name__}; it must return "
                      "clbench.Prediction(logits)")


def routed(strategy: Strategy, tests: Tests, size: int, task: int | None) -> Batches:
    """Yield the same as `predictions` for a language model; a task that is not given is inferred from the prompts."""
    for x, y, tasks in tests.batches(size, task):
        yield predict_routed(strategy, x, task, route(strategy, prompts_of(x, y[:, :x.shape[1]]), task)), y, tasks


def route(strategy: Strategy, prompts: Tensor, task: int | None) -> Tensor | None:
    """Return the task [N] inferred from prompts [N, L], None if it is given or the strategy has no parts for tasks."""
    return strategy.infer_tasks(prompts) if task is None and isinstance(strategy, PerTaskStrategy) else None


def predict_routed(strategy: Strategy, x: Tensor, task: int | None, inferred: Tensor | None) -> Prediction:
    """Return the prediction for tokens x [N, L], with the given task or the tasks [N] that `route` returned."""
    if inferred is None:
        return strategy.predict(x, task)
    assert isinstance(strategy, PerTaskStrategy)
    return strategy.predict_by(x, inferred)
