"""Linear probe: ridge regression on a method's features, without the method's head.

The regression is fitted in closed form and in float64 to all training samples of its tasks, without augmentation. It
needs only sums, the largest of which are the features' second moments. The training samples alone select the penalty.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clbench.core import tokens
from clbench.data.samples import Samples
from clbench.data.stream import Stream
from clbench.results.records import Probe
from clbench.strategy.base import Strategy
from clbench.strategy.per_sample_gradients import evaluating
from clbench.strategy.per_task import PerTaskStrategy
from clbench.training.evaluation import batch_size

STRENGTHS = tuple(10.0**k for k in range(-8, 3))  # penalties, in units of the mean variance of the features
FEW = 16  # samples that show whether features depend on the task


@dataclass
class Moments:
    """The sums over features [N, D] and one-hot labels [N, C] that ridge regression needs, float64."""

    features: Tensor  # [D]
    labels: Tensor  # [C]
    squares: Tensor  # [D, D]
    products: Tensor  # [D, C]

    @classmethod
    def of(cls, features: Tensor, labels: Tensor) -> Moments:
        """Return the sums of one chunk of samples."""
        return cls(features.sum(0), labels.sum(0), features.T @ features, features.T @ labels)

    def __add__(self, other: Moments) -> Moments:
        """Return the sums over the samples of both."""
        return Moments(self.features + other.features, self.labels + other.labels, self.squares + other.squares,
                       self.products + other.products)

    def ridge(self) -> tuple[Tensor, Tensor]:
        """Return weight [D, C] and bias [C] of ridge regression on the labels; the bias of absent classes is -inf.

        The intercept is not penalized. The penalty is the one of `STRENGTHS` with the smallest error in generalized
        cross-validation (Golub, Heath & Wahba 1979); of equal ones, it is the smallest.
        """
        n = self.labels.sum()
        mean, share = self.features / n, self.labels / n
        covariance = self.squares - torch.outer(mean, self.features)
        values, vectors = torch.linalg.eigh(covariance)
        values = values.clamp_min(0)
        turned = vectors.T @ (self.products - torch.outer(mean, self.labels))  # [D, C]
        power, total = turned.square().sum(1), (self.labels - self.labels * share).sum()
        scale = values.mean()
        scale = scale if scale > 0 else torch.ones_like(scale)
        errors = []
        for strength in STRENGTHS:
            shrunk = values + strength * scale
            residual = (total - (power * (2 / shrunk - values / shrunk.square())).sum()).clamp_min(0)
            free = n - 1 - (values / shrunk).sum()
            errors.append(residual / free.square() if free > 1e-9 * n else torch.full_like(residual, float("inf")))
        chosen = STRENGTHS[int(torch.stack(errors).argmin())] * scale
        weight = vectors @ (turned / (values + chosen)[:, None])
        return weight, (share - mean @ weight).masked_fill(self.labels == 0, float("-inf"))


def describe_probe_cost(stream: Stream) -> str:
    """Describe what probing all tasks of a stream costs a trial."""
    train, test = (sum(len(getattr(task, part)) for task in stream.tasks) for part in ("train", "test"))
    return (f"--probe: each trial sends {train:,} training and {test:,} test samples through its network about twice "
            "more, without gradients, and solves a ridge regression after each task; none of it counts as training or "
            "evaluation time")


def add_probe(strategy: Strategy, stream: Stream, learned: int, before: Probe) -> Probe:
    """Return the probe results `before` with the results after `learned` tasks added.

    After each task, a probe for this task alone is fitted. After the last task, there is a probe for each task alone
    and one for all tasks together. The strategy and all generators stay unchanged.
    """
    if before.missing:
        return before
    is_last = learned == len(stream.tasks)
    with evaluating(strategy), torch.no_grad():
        try:
            depends_on_task = _depends_on_task(strategy, stream, learned)
            tasks = range(learned) if is_last else range(learned - 1, learned)
            sums = {task: sum_up(strategy, stream, task) for task in tasks}
            classifiers = {task: moments.ridge() for task, moments in sums.items()}
            end = _count_correct_by_task(strategy, stream, classifiers)
            if not is_last:
                return before.model_copy(update={"learned": [*before.learned, *end]})
            together: list[int] = []
            if not depends_on_task:
                total = sums[0]
                for task in tasks[1:]:
                    total = total + sums[task]
                together = _count_correct_by_task(strategy, stream, dict.fromkeys(tasks, total.ridge()))
        except NoFeatures as reason:
            return Probe(missing=str(reason))
    return before.model_copy(update={"own": depends_on_task, "learned": [*before.learned, end[-1]], "end": end,
                                     "together": together})


class NoFeatures(Exception):
    """Raised if a strategy does not show the features that its predictions are computed from."""


def sum_up(strategy: Strategy, stream: Stream, task: int) -> Moments:
    """Return the moments of the features of a task's training samples."""
    moments: Moments | None = None
    for x, y in _inputs(strategy, stream, stream.tasks[task].train):
        features = features_of(strategy, x, task)
        part = Moments.of(features, F.one_hot(y.to(features.device), stream.classes).double())
        moments = part if moments is None else moments + part
    assert moments is not None
    return moments


def _inputs(strategy: Strategy, stream: Stream, samples: Samples) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield inputs of the model and labels, in batches of the same size as in evaluation."""
    for part in samples.chunks(batch_size(stream, stream.tests.y.device)):
        x = strategy.stream_info.prepare(part.x)
        yield (tokens.shortened([x])[0] if tokens.is_text(x) else x), part.y


def _count_correct_by_task(strategy: Strategy, stream: Stream, classifiers: dict[int, tuple[Tensor, Tensor]]
                           ) -> list[int]:
    """Return the number of test samples of each task that the task's regression predicts correctly."""
    tests = stream.tests
    size = batch_size(stream, tests.y.device)
    return [sum(int(((features_of(strategy, x, task) @ weight + bias).argmax(1).to(y.device) == y).sum())
                for x, y, _ in tests.batches(size, task)) for task, (weight, bias) in classifiers.items()]


def features_of(strategy: Strategy, x: Tensor, task: int) -> Tensor:
    """Return the features [N, D] from which a strategy computes its predictions for inputs x [N, ...], float64.

    These are the inputs of the head, which is the task's own head or the model's. If no head is called, they are the
    outputs of the model's last block. If the head or the block runs several times, its features are concatenated.

    Args:
        strategy: the strategy, in eval mode and without gradients.
        x: prepared inputs.
        task: the task of x; only strategies with a part for each task, or that infer the task, get it.

    Raises:
        NoFeatures: the strategy has no such features.
    """
    head_inputs: list[Tensor] = []
    block_outputs: list[Tensor] = []
    model: nn.Module = strategy.model
    head: nn.Module | None
    if isinstance(strategy, PerTaskStrategy):
        head, blocks = strategy.heads[task], []
    else:  # the model of another library may have no blocks, and no head or a head with another name
        head, blocks = getattr(model, "head", getattr(model, "classifier", None)), list(getattr(model, "blocks", ()))
    hooks = []
    if isinstance(head, nn.Module):
        hooks.append(head.register_forward_pre_hook(lambda _, inputs: head_inputs.append(inputs[0])))
    if blocks:
        hooks.append(blocks[-1].register_forward_hook(lambda _, inputs, output: block_outputs.append(output)))
    try:
        if isinstance(strategy, PerTaskStrategy):
            strategy.forward_task(x, task)
        else:
            infers_task = strategy.predict(x[:1]).task is not None
            head_inputs.clear()
            block_outputs.clear()
            strategy.predict(x, task if infers_task else None)
    finally:
        for hook in hooks:
            hook.remove()
    features = head_inputs or block_outputs
    if not features or any(f.dim() != 2 or len(f) != len(x) for f in features):
        raise NoFeatures(f"{type(strategy).__name__} shows no features that its answers are read from")
    joined = torch.cat(features, 1)
    return (joined.cpu() if joined.device.type == "mps" else joined).double()


def _depends_on_task(strategy: Strategy, stream: Stream, learned: int) -> bool:
    """Return whether the features of a sample depend on the task that it is predicted for."""
    samples = next(stream.tests.batches(FEW, 0))[0]
    features = features_of(strategy, samples, 0)
    return any(not torch.equal(features, features_of(strategy, samples, task)) for task in range(1, learned))
