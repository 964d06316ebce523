"""The order in which training samples are drawn: task by task, or as one stream whose boundaries are hidden."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import torch
from torch import Tensor

from clbench.core import seeds
from clbench.core.device import send
from clbench.core.errors import SpecError
from clbench.data.photo_samples import PhotoSamples, Request, crops_originals
from clbench.data.prepare import Augmentation, RandomResizedCrop
from clbench.data.samples import Samples
from clbench.experiment.recipe import Recipe
from clbench.models.scoring import IGNORED
from clbench.strategy.base import Batch, Strategy, declares, overrides
from clbench.training.steps import Unstackable

Around = Callable[[Batch | None], AbstractContextManager[object]]


class BatchSampler:
    """Draws batches from a task's samples: a permutation per pass; the last batch of a pass may be smaller.

    With `repeats`, each batch is given so many times. Random numbers come from axes of the seed, so that they are the
    same for every method:

    - the order: ("data", task);
    - augmentation of new samples: ("augmentation", task);
    - augmentation of replayed samples: ("augmentation of replay", task).

    If a phase has samples of its own, its number follows the task in each axis.
    """

    def __init__(self, samples: int, batch_size: int, seed: int, task: int,
                 augment: Augmentation | None = None, phase: int | None = None, repeats: int | None = None) -> None:
        """Begin the first pass; `phase` is that of the samples if they are not the task's."""
        axes = (task,) if phase is None else (task, phase)
        self.samples = samples
        self.batch_size = batch_size
        self.task = task
        self.augment = augment
        self.generator = seeds.generator(seed, "data", *axes)
        self.draws = (seeds.generator(seed, "augmentation", *axes),
                      seeds.generator(seed, "augmentation of replay", *axes))
        self.repeats = repeats or 1
        self.passes = 0
        self.fresh = True  # whether the last batch was not a repeated one
        self.left: list[Tensor] = []

    def following(self, device: torch.device) -> Tensor:
        """Return the indices of the next batch, int64 [N]; `device` is where those of a new pass go."""
        if not self.left:
            order = send(torch.randperm(self.samples, generator=self.generator), device)
            batches = reversed(torch.split(order, self.batch_size))
            self.left = list(itertools.chain.from_iterable([batch] * self.repeats for batch in batches))
            self.passes += 1
        self.fresh = len(self.left) % self.repeats == 0
        return self.left.pop()

    def batch(self, samples: Samples) -> Batch:
        """Return the next batch of samples, which may be raw or prepared."""
        return self._batch(samples.take(self.following(samples.index_device)))

    def _batch(self, part: Samples) -> Batch:
        return Batch(part.x, part.y, part.tasks, self.task, first_pass=self.passes == 1 and self.fresh,
                     frozen=part.frozen)

    def augmented(self, x: Tensor, replayed: bool) -> Tensor:
        """Return raw images [N, C, H, W], augmented by the next draws for new samples or for replayed ones."""
        assert self.augment is not None
        return self.augment(x, self.augment.draw(len(x), self.draws[replayed]))

    def ready(self, strategy: Strategy, samples: Samples, around: Around = lambda _: nullcontext()) -> Batch:
        """Return the next batch of raw samples as the loss gets it: with replay, images augmented, prepared.

        `around` returns a context in which the strategy computes; it is given the batch for `prepare_batch`.
        """
        if isinstance(samples, PhotoSamples) and crops_originals(self.augment, samples):
            part, crops = samples.take_crops(self.request(strategy))
            return self._ready(strategy, self._batch(part), around, crops)
        return self._ready(strategy, self.batch(samples), around)

    def request(self, strategy: Strategy) -> Request:
        """Return what the next batch decodes of photos that stay in their files, with draws for its crops.

        Whole photos are decoded as well where the strategy may store them (`prepare_batch`).
        """
        index = self.following(torch.device("cpu"))
        if not isinstance(self.augment, RandomResizedCrop):
            return Request(index)
        return Request(index, self.augment, self.augment.draw(len(index), self.draws[0]),
                       overrides(strategy, "prepare_batch"))

    def requests(self, strategy: Strategy, steps: int) -> Iterator[Request]:
        """Return what the next batches will decode, by copies of the generators as they are now."""
        ahead = copy.copy(self)
        ahead.generator, ahead.left = copied(self.generator), list(self.left)
        ahead.draws = copied(self.draws[0]), self.draws[1]
        return (ahead.request(strategy) for _ in range(steps))

    def _ready(self, strategy: Strategy, batch: Batch, around: Around, crops: Tensor | None = None) -> Batch:
        """Return a batch as the loss gets it; `crops` are new samples that are augmented already."""
        new = len(batch.y)
        with around(batch):
            batch = strategy.prepare_batch(batch)
        x = batch.x
        if crops is not None:
            x = torch.cat([crops, self.augmented(x[new:], replayed=True)]) if len(x) > new else crops
        elif self.augment is not None:
            of_new, of_replay = self.draws
            x = self.augment(x, torch.cat([self.augment.draw(new, of_new),
                                           self.augment.draw(len(x) - new, of_replay)]))
        return replace(batch, x=strategy.stream_info.prepare(x))


class StreamSampler(BatchSampler):
    """Draws batches as the samples of a stream pass: task after task, each shuffled as in its own first pass."""

    def __init__(self, parts: Sequence[Samples], batch_size: int, seed: int,
                 augment: Augmentation | None = None) -> None:
        """Begin with the first sample of the first part."""
        if crops_originals(augment, parts[0]):
            raise SpecError(f"augment = {augment.name if augment else ''} cuts crops out of the photos' files "
                            "(read = files), which does not go with hidden boundaries; choose read=memory or another "
                            "augmentation")
        super().__init__(sum(map(len, parts)), batch_size, seed, 0, augment)
        self.parts, self.seed, self.passes = list(parts), seed, 1
        self.step = 0  # that comes next
        self.ends = list(itertools.accumulate(map(len, parts)))
        self.rows = [torch.randperm(len(part), generator=seeds.generator(seed, "data", index))
                     for index, part in enumerate(parts)]
        self.y = torch.cat([part.y[send(rows, part.y.device)] for part, rows in zip(parts, self.rows, strict=True)])

    def until(self, tasks: int) -> int:
        """Return after how many steps all samples of the first tasks have passed."""
        return math.ceil(self.ends[tasks - 1] / self.batch_size) if tasks else 0

    def activate(self, strategy: Strategy, begin: int, end: int) -> None:
        """Let the outputs of the samples of steps `begin` to `end` take part in losses from now on."""
        strategy.class_mask[:, self.y[begin * self.batch_size:end * self.batch_size]] = True

    def ready(self, strategy: Strategy, samples: Samples, around: Around = lambda _: nullcontext()) -> Batch:
        """Return the next batch as the loss gets it; its outputs are activated, and draws restart."""
        seeds.reseed(self.seed, "training", "step", self.step)
        self.draws = (seeds.generator(self.seed, "augmentation", "step", self.step),
                      seeds.generator(self.seed, "augmentation of replay", "step", self.step))
        return self._ready(strategy, self.observed(strategy, around), around)

    def observed(self, strategy: Strategy, around: Around = lambda _: nullcontext()) -> Batch:
        """Return the next batch, raw, after the strategy has observed it."""
        self.activate(strategy, self.step, self.step + 1)
        batch = self.batch(self.parts[0])
        if overrides(strategy, "observe"):
            with around(None):
                strategy.observe(batch)
        return batch

    def batch(self, samples: Samples) -> Batch:
        """Return the next batch, raw; it may have samples of several tasks, and says of all that they are of task 0."""
        begin, end = self.step * self.batch_size, (self.step + 1) * self.batch_size
        self.step += 1
        parts, start = [], 0
        for part, rows, stop in zip(self.parts, self.rows, self.ends, strict=True):
            chosen = rows[max(begin - start, 0):max(end - start, 0)]
            if len(chosen):
                parts.append(part.take(send(chosen, part.index_device)))
            start = stop
        passing = parts[0] if len(parts) == 1 else Samples.concat(*parts)
        return Batch(passing.x, passing.y, torch.zeros_like(passing.tasks), 0)


def copied(generator: torch.Generator) -> torch.Generator:
    """Return a generator of the CPU that draws what another one will draw."""
    other = torch.Generator()
    other.set_state(generator.get_state())
    return other


def stackable(samples: list[Samples]) -> list[Samples]:
    """Return the samples of each replica of a stack.

    Raises:
        Unstackable: replicas have different numbers of them, or draw new ones for every batch.
    """
    if len(sizes := {len(part) for part in samples}) > 1:  # other batches, and with epochs other budgets
        raise Unstackable(f"tasks of {min(sizes):,} to {max(sizes):,} training samples do not go in one stack")
    if len(samples) > 1 and samples[0].is_stochastic:
        raise Unstackable("its samples change randomly with every batch, and vectorized trials would share one random "
                          "generator")
    return samples


def require_divisible(strategy: Strategy, recipe: Recipe) -> None:
    """Check that batches may be divided, if the recipe asks for it.

    Raises:
        SpecError: the loss is not declared to be a mean over samples.
    """
    if recipe.accumulate > 1 and not declares(strategy, "loss_is_mean"):
        raise SpecError(f"accumulate cannot be used with {type(strategy).__name__}, which does not declare that its "
                        "loss is a mean over samples (loss_is_mean); leave accumulate out, or use a smaller batch_size")


def divided(batches: Sequence[Batch], parts: int) -> Iterator[tuple[float | Tensor, Sequence[Batch]]]:
    """Yield parts of batches, one of each replica, and their shares of the loss.

    A share is that of the samples, or [S] that of each replica's targets where samples have several.
    """
    samples = len(batches[0].y)
    size = math.ceil(samples / parts)
    if size == samples:
        yield 1.0, batches
        return
    for begin in range(0, samples, size):
        end = min(begin + size, samples)
        of_batches = [rows_of(batch, begin, end) for batch in batches]
        share: float | Tensor = (end - begin) / samples
        if batches[0].at is not None:
            counts = [[(batch.y != IGNORED).sum() for batch in pair] for pair in zip(of_batches, batches, strict=True)]
            share = torch.stack([part / whole for part, whole in counts])
        yield share, of_batches


def rows_of(batch: Batch, begin: int, end: int) -> Batch:
    """Return the rows `begin` to `end` of a batch."""
    new = len(batch.y) - batch.replayed
    frozen = None if batch.frozen is None else {name: rows[begin:end] for name, rows in batch.frozen.items()}
    return replace(batch, x=batch.x[begin:end], y=batch.y[begin:end], tasks=batch.tasks[begin:end],
                   replayed=max(0, end - max(begin, new)), frozen=frozen,
                   at=None if batch.at is None else batch.at[begin:end])
