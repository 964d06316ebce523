"""A linear probe: what ridge regression reads from a method's features, without the method's head.

The regression is fitted to all training samples it is given, without augmentation, in float64 and in closed form, from
sums that take no more room than the features' second moments. Its strength comes from the training samples alone.
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

STRENGTHS = tuple(10.0**k for k in range(-8, 3))  # as shares of the mean variance of the features
FEW = 16  # samples on which is seen whether features depend on the task


@dataclass
class Moments:
    """Sums over features [N, D] with one-hot labels [N, C], float64: what ridge regression needs of them."""

    features: Tensor  # [D]
    labels: Tensor  # [C]
    squares: Tensor  # [D, D]
    products: Tensor  # [D, C]

    @classmethod
    def of(cls, features: Tensor, labels: Tensor) -> Moments:
        """Return the sums of one chunk."""
        return cls(features.sum(0), labels.sum(0), features.T @ features, features.T @ labels)

    def __add__(self, other: Moments) -> Moments:
        """Return the sums of both."""
        return Moments(self.features + other.features, self.labels + other.labels, self.squares + other.squares,
                       self.products + other.products)

    def ridge(self) -> tuple[Tensor, Tensor]:
        """Return weight [D, C] and bias [C] of ridge regression on the labels; classes that do not occur get -inf.

        The intercept is not shrunk. The strength is the one of `STRENGTHS` with the least error in generalized
        cross-validation (Golub, Heath & Wahba 1979), the weakest of equal ones.
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
            rest = (total - (power * (2 / shrunk - values / shrunk.square())).sum()).clamp_min(0)
            free = n - 1 - (values / shrunk).sum()
            errors.append(rest / free.square() if free > 1e-9 * n else torch.full_like(rest, float("inf")))
        chosen = STRENGTHS[int(torch.stack(errors).argmin())] * scale
        weight = vectors @ (turned / (values + chosen)[:, None])
        return weight, (share - mean @ weight).masked_fill(self.labels == 0, float("-inf"))


def cost(stream: Stream) -> str:
    """Return in words what looking at all tasks of a stream costs a trial."""
    train, test = (sum(len(getattr(task, part)) for task in stream.tasks) for part in ("train", "test"))
    return (f"--probe: each trial sends {train:,} training and {test:,} test samples through its network about twice "
            "more, without gradients, and solves a ridge regression after each task; none of it counts as training or "
            "evaluation time")


def add_probe(strategy: Strategy, stream: Stream, learned: int, before: Probe) -> Probe:
    """Return a probe with what there is to know after `learned` tasks added to what was known before.

    After each task that is the probe within it; after the last one also the probes within all tasks, and the one of all
    tasks together. The strategy and all generators are left as they are.
    """
    if before.missing:
        return before
    last = learned == len(stream.tasks)
    with evaluating(strategy), torch.no_grad():
        try:
            of_task = _depends_on_task(strategy, stream, learned)
            tasks = range(learned) if last else range(learned - 1, learned)
            sums = {task: sum_up(strategy, stream, task) for task in tasks}
            classifiers = {task: moments.ridge() for task, moments in sums.items()}
            if not last:
                return before.model_copy(update={"learned": [*before.learned, *_rights(strategy, stream, classifiers)]})
            end = _rights(strategy, stream, classifiers)
            together: list[int] = []
            if not of_task:
                whole = sums[0]
                for task in tasks[1:]:
                    whole = whole + sums[task]
                together = _rights(strategy, stream, dict.fromkeys(tasks, whole.ridge()))
        except NoFeatures as reason:
            return Probe(missing=str(reason))
    return before.model_copy(update={"own": of_task, "learned": [*before.learned, end[-1]], "end": end,
                                     "together": together})


class NoFeatures(Exception):
    """A strategy does not show what its answers are read from."""


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
    """Yield inputs of the model and labels, in the batches of the evaluation."""
    for part in samples.chunks(batch_size(stream, stream.tests.y.device)):
        x = strategy.stream_info.prepare(part.x)
        yield (tokens.shortened([x])[0] if tokens.is_text(x) else x), part.y


def _rights(strategy: Strategy, stream: Stream, classifiers: dict[int, tuple[Tensor, Tensor]]) -> list[int]:
    """Return how many test samples of each task the regression found for it gets right."""
    tests = stream.tests
    size = batch_size(stream, tests.y.device)
    return [sum(int(((features_of(strategy, x, task) @ weight + bias).argmax(1).to(y.device) == y).sum())
                for x, y, _ in tests.batches(size, task)) for task, (weight, bias) in classifiers.items()]


def features_of(strategy: Strategy, x: Tensor, task: int) -> Tensor:
    """Return the features [N, D] that a strategy in eval mode reads its answers on inputs x [N, ...] from, float64.

    That is what goes into its head: a task's own one, or the model's; of a strategy that uses none, what the model's
    last block gave, side by side if it ran several times.

    Args:
        strategy: in eval mode, without gradients.
        x: prepared inputs.
        task: of x, for a strategy with a part for each task, or that infers the task; other strategies do not get it.

    Raises:
        NoFeatures: there is nothing of that kind.
    """
    into: list[Tensor] = []
    out_of: list[Tensor] = []
    model: nn.Module = strategy.model
    head: nn.Module | None
    if isinstance(strategy, PerTaskStrategy):
        head, blocks = strategy.heads[task], []
    else:  # a library's model, which an adapter puts in its place, may have neither, or another name for the head
        head, blocks = getattr(model, "head", getattr(model, "classifier", None)), list(getattr(model, "blocks", ()))
    hooks = []
    if isinstance(head, nn.Module):
        hooks.append(head.register_forward_pre_hook(lambda _, inputs: into.append(inputs[0])))
    if blocks:
        hooks.append(blocks[-1].register_forward_hook(lambda _, inputs, output: out_of.append(output)))
    try:
        if isinstance(strategy, PerTaskStrategy):
            strategy.forward_task(x, task)
        elif strategy.predict(x[:1]).task is None:
            into.clear()
            out_of.clear()
            strategy.predict(x)
        else:
            into.clear()
            out_of.clear()
            strategy.predict(x, task)
    finally:
        for hook in hooks:
            hook.remove()
    features = into or out_of
    if not features or any(f.dim() != 2 or len(f) != len(x) for f in features):
        raise NoFeatures(f"{type(strategy).__name__} shows no features that its answers are read from")
    joined = torch.cat(features, 1)
    return (joined.cpu() if joined.device.type == "mps" else joined).double()


def _depends_on_task(strategy: Strategy, stream: Stream, learned: int) -> bool:
    """Tell whether the features of a sample depend on which task it is predicted for."""
    few = next(stream.tests.batches(FEW, 0))[0]
    first = features_of(strategy, few, 0)
    return any(not torch.equal(first, features_of(strategy, few, task)) for task in range(1, learned))
