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
from clbench.core.errors import PluginError, SpecError
from clbench.core.tokens import NO_TOKEN
from clbench.core.torch_private import NormWithStatistics
from clbench.data.photo_samples import PhotoSamples, Request, crops_originals
from clbench.data.prepare import Augmentation, RandomResizedCrop
from clbench.data.samples import Samples
from clbench.experiment.recipe import Recipe
from clbench.models.scoring import IGNORED
from clbench.strategy.base import Batch, Strategy, declares, overrides
from clbench.training.members import Unstackable

Around = Callable[[Batch | None], AbstractContextManager[object]]


SPAN, FEWEST_SPANS = 50, 4  # see `group_by_length`


def item_lengths(samples: Samples, recipe: Recipe) -> Tensor | None:
    """Return the number of tokens of each item, int64 [N], if the recipe groups items by length, and None otherwise."""
    return (samples.x != NO_TOKEN).sum(1).cpu() if recipe.group_by_length else None


def group_by_length(order: Tensor, lengths: Tensor, batch_size: int, generator: torch.Generator) -> Tensor:
    """Return a random order of items in which batches have items of similar lengths.

    As in transformers' `group_by_length`, the items of up to 50 batches (at most a quarter of all) are sorted by
    length. In addition, the batches are shuffled. A smaller last batch stays at the end.

    Args:
        order: a random permutation of the items, int64 [N].
        lengths: number of tokens of each item [N].
        batch_size: number of items in a batch.
        generator: of the order of the batches.
    """
    span = batch_size * max(1, min(len(order) // (FEWEST_SPANS * batch_size), SPAN))
    parts = torch.split(order, span)
    grouped = torch.cat([part[lengths[part].argsort(descending=True, stable=True)] for part in parts])
    whole = len(grouped) // batch_size * batch_size
    batches = grouped[:whole].view(-1, batch_size)
    return torch.cat([batches[torch.randperm(len(batches), generator=generator)].flatten(), grouped[whole:]])


class BatchSampler:
    """Draws batches from a task's samples, in a new order for each pass; the last batch of a pass may be smaller.

    With `repeats`, each batch is drawn so many times in a row. Random numbers come from named axes of the trial's seed,
    so that they are the same for every method:

    - the order: ("data", task);
    - augmentation of new samples: ("augmentation", task);
    - augmentation of replayed samples: ("augmentation of replay", task).

    If the samples belong to a single phase, the number of the phase follows the task in each axis.
    """

    def __init__(self, samples: int, batch_size: int, seed: int, task: int,
                 augment: Augmentation | None = None, phase: int | None = None, repeats: int | None = None,
                 lengths: Tensor | None = None) -> None:
        """Start before the first pass.

        Args:
            samples: number of samples.
            batch_size: number of samples in a batch.
            seed: the trial's seed.
            task: the index of the task.
            augment: the augmentation of images.
            phase: the number of the phase, if the samples belong to that phase alone.
            repeats: how many times in a row each batch is drawn.
            lengths: number of tokens of each sample [samples], to group samples of similar lengths (`item_lengths`).
        """
        axes = (task,) if phase is None else (task, phase)
        self.samples = samples
        self.batch_size = batch_size
        self.task = task
        self.augment = augment
        self.generator = seeds.generator(seed, "data", *axes)
        self.draws = (seeds.generator(seed, "augmentation", *axes),
                      seeds.generator(seed, "augmentation of replay", *axes))
        self.repeats = repeats or 1
        self.lengths = lengths
        self.passes = 0
        self.can_be_first = not phase  # whether its first pass is the first over the samples of the task
        self.is_repeated = False  # whether the latest batch repeats the batch before it
        self.left: list[Tensor] = []

    def next_indices(self, device: torch.device) -> Tensor:
        """Return the indices of the next batch, int64 [N]; if a new pass begins, its indices are put on `device`."""
        if not self.left:
            order = torch.randperm(self.samples, generator=self.generator)
            if self.lengths is not None:
                order = group_by_length(order, self.lengths, self.batch_size, self.generator)
            batches = reversed(torch.split(send(order, device), self.batch_size))
            self.left = list(itertools.chain.from_iterable([batch] * self.repeats for batch in batches))
            self.passes += 1
        self.is_repeated = len(self.left) % self.repeats != 0
        return self.left.pop()

    def next_batch(self, samples: Samples) -> Batch:
        """Return the next batch of samples, which may be raw or prepared."""
        return self._batch(samples.take(self.next_indices(samples.index_device)))

    def _batch(self, part: Samples) -> Batch:
        first_pass = self.can_be_first and self.passes == 1 and not self.is_repeated
        return Batch(part.x, part.y, part.tasks, self.task, first_pass=first_pass, frozen=part.frozen)

    def augmented(self, x: Tensor, replayed: bool) -> Tensor:
        """Return augmented raw images [N, C, H, W]; new and replayed samples have separate random draws."""
        assert self.augment is not None
        return self.augment(x, self.augment.draw(len(x), self.draws[replayed]))

    def next_prepared(self, strategy: Strategy, samples: Samples, around: Around = lambda _: nullcontext()) -> Batch:
        """Return the next batch of raw samples as the loss gets it: with replay samples, augmented and prepared.

        `around` takes the batch and returns the context in which the strategy's `prepare_batch` runs.
        """
        if isinstance(samples, PhotoSamples) and crops_originals(self.augment, samples):
            part, crops = samples.take_crops(self.next_request(strategy))
            return self._prepare(strategy, self._batch(part), around, crops)
        return self._prepare(strategy, self.next_batch(samples), around)

    def next_request(self, strategy: Strategy) -> Request:
        """Return the request to decode the next batch of photos from their files, with random draws for its crops.

        Whole photos are also decoded if the strategy may store them, that is, if it overrides `prepare_batch`.
        """
        index = self.next_indices(torch.device("cpu"))
        if not isinstance(self.augment, RandomResizedCrop):
            return Request(index)
        return Request(index, self.augment, self.augment.draw(len(index), self.draws[0]),
                       overrides(strategy, "prepare_batch"))

    def peek_requests(self, strategy: Strategy, steps: int) -> Iterator[Request]:
        """Return the requests of the next batches; the generators of the sampler do not advance."""
        sampler = copy.copy(self)
        sampler.generator, sampler.left = copy_generator(self.generator), list(self.left)
        sampler.draws = copy_generator(self.draws[0]), self.draws[1]
        return (sampler.next_request(strategy) for _ in range(steps))

    def _prepare(self, strategy: Strategy, batch: Batch, around: Around, crops: Tensor | None = None) -> Batch:
        """Return a batch as the loss gets it; `crops` are its new samples, if they are augmented already."""
        new_count = len(batch.y)
        with around(batch):
            batch = strategy.prepare_batch(batch)
        if not isinstance(batch, Batch):
            raise PluginError(f"prepare_batch of {type(strategy).__name__} must return a Batch, not {batch!r:.60}")
        x = batch.x
        if crops is not None:
            x = torch.cat([crops, self.augmented(x[new_count:], replayed=True)]) if len(x) > new_count else crops
        elif self.augment is not None:
            of_new, of_replay = self.draws
            x = self.augment(x, torch.cat([self.augment.draw(new_count, of_new),
                                           self.augment.draw(len(x) - new_count, of_replay)]))
        return replace(batch, x=strategy.stream_info.prepare(x))


class StreamSampler(BatchSampler):
    """Draws batches in the order of a stream: task after task, each shuffled as in the first pass of `BatchSampler`."""

    def __init__(self, parts: Sequence[Samples], batch_size: int, seed: int,
                 augment: Augmentation | None = None) -> None:
        """Start at the first sample; `parts` are the samples of each task."""
        if crops_originals(augment, parts[0]):
            raise SpecError(f"augment = {augment.name if augment else ''} cuts crops out of the photos' files "
                            "(read = files), which does not go with hidden boundaries; choose read=memory or another "
                            "augmentation")
        super().__init__(sum(map(len, parts)), batch_size, seed, 0, augment)
        self.parts, self.seed = list(parts), seed
        self.step = 0  # the next step
        self.ends = list(itertools.accumulate(map(len, parts)))
        self.rows = [torch.randperm(len(part), generator=seeds.generator(seed, "data", index))
                     for index, part in enumerate(parts)]
        self.y = torch.cat([part.y[send(rows, part.y.device)] for part, rows in zip(parts, self.rows, strict=True)])

    def steps_through(self, tasks: int) -> int:
        """Return the number of steps after which all samples of the first `tasks` tasks have been drawn."""
        return math.ceil(self.ends[tasks - 1] / self.batch_size) if tasks else 0

    def activate(self, strategy: Strategy, begin: int, end: int) -> None:
        """Activate the outputs of the samples of steps `begin` to `end` for all losses from now on."""
        strategy.class_mask[:, self.y[begin * self.batch_size:end * self.batch_size]] = True

    def next_prepared(self, strategy: Strategy, samples: Samples, around: Around = lambda _: nullcontext()) -> Batch:
        """Reseed the random draws, activate the outputs of the next batch, and return it as the loss gets it."""
        self.draws = (seeds.generator(self.seed, "augmentation", "step", self.step),
                      seeds.generator(self.seed, "augmentation of replay", "step", self.step))
        return self._prepare(strategy, self.observe_next_batch(strategy, around), around)

    def observe_next_batch(self, strategy: Strategy, around: Around = lambda _: nullcontext()) -> Batch:
        """Reseed, activate the outputs of the next raw batch, pass it to `Strategy.observe`, and return it."""
        seeds.reseed(self.seed, "training", "step", self.step)
        self.activate(strategy, self.step, self.step + 1)
        batch = self.next_batch(self.parts[0])
        if overrides(strategy, "observe"):
            with around(None):
                strategy.observe(batch)
        return batch

    def next_batch(self, samples: Samples) -> Batch:
        """Return the next raw batch; it may have samples of several tasks, but all task indices in it are 0."""
        begin, end = self.step * self.batch_size, (self.step + 1) * self.batch_size
        self.step += 1
        parts, start = [], 0
        for part, rows, stop in zip(self.parts, self.rows, self.ends, strict=True):
            chosen = rows[max(begin - start, 0):max(end - start, 0)]
            if len(chosen):
                parts.append(part.take(send(chosen, part.index_device)))
            start = stop
        drawn = parts[0] if len(parts) == 1 else Samples.concat(*parts)
        return Batch(drawn.x, drawn.y, torch.zeros_like(drawn.tasks), 0)


def copy_generator(generator: torch.Generator) -> torch.Generator:
    """Return a new CPU generator with the state of another one."""
    clone = torch.Generator()
    clone.set_state(generator.get_state())
    return clone


def division_notes(strategy: Strategy, recipe: Recipe) -> list[str]:
    """Check that batches may be divided, if the recipe divides them (`accumulate`); return notes on what this changes.

    Raises:
        SpecError: the strategy does not declare that its loss is a mean over samples.
    """
    if recipe.accumulate == 1:
        return []
    if not declares(strategy, "loss_is_mean"):
        raise SpecError(f"accumulate cannot be used with {type(strategy).__name__}, which does not declare that its "
                        "loss is a mean over samples (loss_is_mean); leave accumulate out, or use a smaller batch_size")
    if any(isinstance(module, NormWithStatistics) for module in strategy.modules()):
        return [f"batch normalization uses the statistics of each of the {recipe.accumulate} parts of a batch "
                "(accumulate), so results differ from those of undivided batches"]
    return []


def divide_batches(batches: Sequence[Batch], parts: int) -> Iterator[tuple[float | Tensor, Sequence[Batch]]]:
    """Divide the batches of all replicas; yield the weight of each part in the loss, and its batches.

    The weight is the part's share of the samples. If samples have several targets, it is its share of them [S].

    Raises:
        Unstackable: the batches that are divided have different numbers of samples.
    """
    samples = len(batches[0].y)
    size = math.ceil(samples / parts)
    if size == samples:
        yield 1.0, batches
        return
    if len({len(batch.y) for batch in batches}) > 1:
        raise Unstackable("its batches differ in their number of replayed samples")
    for begin in range(0, samples, size):
        end = min(begin + size, samples)
        of_batches = [batch.part(begin, end) for batch in batches]
        share: float | Tensor = (end - begin) / samples
        if batches[0].at is not None:
            counts = [[(batch.y != IGNORED).sum() for batch in pair] for pair in zip(of_batches, batches, strict=True)]
            share = torch.stack([part / whole for part, whole in counts])
        yield share, of_batches
