"""Rearrange the training samples of a stream among its tasks: long tails, recurring classes and blurry boundaries.

docs/task-free-streams.md defines the three settings and cites their sources. All random draws use the data-order axis
of the seed. Test samples and the outputs of classes do not change. The training samples of a task are those that arrive
during it. A method sees an ordinary task, but some of the task's classes may belong to other tasks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain, zip_longest

import torch
from torch import Tensor

from clbench.core import seeds
from clbench.core.errors import DataError
from clbench.core.scenario import Scenario, scenario_rules
from clbench.data.photo_files import Photos
from clbench.data.photo_samples import PhotoSamples
from clbench.data.samples import PermutedSamples, Samples, StochasticSamples, permute, pick
from clbench.data.stream import Stream, StreamTask
from clbench.experiment.arrival import Arrival


def arrive(stream: Stream, arrival: Arrival, scenario: Scenario, seed: int, name: str) -> Stream:
    """Return a stream whose training samples are rearranged by `arrival`; the same object if nothing changes.

    Args:
        stream: a stream on the CPU, with the outputs of the scenario.
        arrival: the changes to make.
        scenario: the scenario of the stream.
        seed: the trial's seed.
        name: the benchmark's name, for error messages.

    Raises:
        DataError: samples should move between tasks but there is only one task, or a task would have no samples.
    """
    if arrival.hidden:
        stream = replace(stream, hidden=True)
    if not arrival.changes:
        return stream
    if arrival.moves and len(stream.tasks) < 2:
        raise DataError(f"benchmark {name!r} has a single task: nothing can arrive during another; leave blur and "
                        "repeat out")
    plan = Plan(stream, scenario, seed)
    if arrival.imbalance > 1:
        plan.thin(arrival.imbalance)
    if arrival.repeat:
        plan.bring_back(arrival.repeat)
    if arrival.blur:
        plan.blur(arrival.blur)
    return plan.stream(arrival, name)


class Plan:
    """The task in which each training sample arrives: flat columns over all training samples, in task order.

    For each sample, `home` is its original task and `row` its row in that task. `when` is the task during which it
    arrives (-1: never).
    """

    def __init__(self, stream: Stream, scenario: Scenario, seed: int) -> None:
        """Let every sample arrive in its original task."""
        self.before, self.seed = stream, seed
        self.tasks = len(stream.tasks)
        sizes = [len(task.train) for task in stream.tasks]
        self.home = torch.arange(self.tasks).repeat_interleave(torch.tensor(sizes))
        self.row = torch.cat([torch.arange(size) for size in sizes])
        self.y = torch.cat([task.train.y for task in stream.tasks])
        self.when = self.home.clone()
        self.shared = scenario_rules(scenario).shared_outputs
        # If tasks share outputs, an output stands for another class in each task.
        self.group = self.y + self.home * stream.classes if self.shared else self.y

    def drawn(self, what: str, *axes: int) -> torch.Generator:
        """Return the generator for the random draw `what`."""
        return seeds.generator(self.seed, "data", what, *axes)

    def shuffled(self, rows: Tensor, what: str, *axes: int) -> Tensor:
        """Return rows [N] in random order."""
        return rows[torch.randperm(len(rows), generator=self.drawn(what, *axes))]

    def thin(self, ratio: float) -> None:
        """Keep round(n ratio^(-k / (K - 1))) of the n samples of each class, but at least 1.

        K is the number of classes, and k the random rank of the class. If several tasks have a class, it is thinned in
        each of them.
        """
        groups = torch.unique(self.group).tolist()
        ranks = torch.randperm(len(groups), generator=self.drawn("imbalance")).tolist()
        for group, rank in zip(groups, ranks, strict=True):
            share = ratio ** (-rank / max(len(groups) - 1, 1))
            for task in range(self.tasks):
                rows = ((self.group == group) & (self.home == task)).nonzero()[:, 0]
                removed = self.shuffled(rows, "imbalance", group, task)[max(round(share * len(rows)), 1):]
                self.when[removed] = -1

    def bring_back(self, probability: float) -> None:
        """Let each class return in each later task with a probability; its samples are divided equally, in turn."""
        for task in range(self.tasks - 1):
            for group in torch.unique(self.group[self.home == task]).tolist():
                draws = torch.rand(self.tasks - task - 1, generator=self.drawn("repeat", group, task))
                places = torch.tensor([task, *(task + 1 + (draws < probability).nonzero()[:, 0]).tolist()])
                rows = ((self.group == group) & (self.home == task) & (self.when >= 0)).nonzero()[:, 0]
                rows = self.shuffled(rows, "repeat", group, task, 1)
                self.when[rows] = places[torch.arange(len(rows)) % len(places)]

    def blur(self, share: float) -> None:
        """Move round(share n) of the n samples of each class in each task to the other tasks, in turn.

        The i-th sample that leaves task t goes to task t + 1 + (i mod (T - 1)), modulo T. Tasks of equal size therefore
        keep their size.
        """
        old_tasks = self.when.clone()
        for task in range(self.tasks):
            moved_rows = []
            for group in torch.unique(self.group[old_tasks == task]).tolist():
                rows = ((self.group == group) & (old_tasks == task)).nonzero()[:, 0]
                moved_rows.append(self.shuffled(rows, "blur", group, task)[:round(share * len(rows))])
            rows = torch.cat(moved_rows) if moved_rows else torch.empty(0, dtype=torch.int64)
            self.when[rows] = (task + 1 + torch.arange(len(rows)) % (self.tasks - 1)) % self.tasks

    def stream(self, arrival: Arrival, name: str) -> Stream:
        """Return the stream with its training samples rearranged by this plan."""
        total = hashlib.sha256(f"{self.before.fingerprint} {arrival}".encode())
        total.update(self.when.numpy().tobytes())
        tasks, counts = [], []
        for index, task in enumerate(self.before.tasks):
            rows = (self.when == index).nonzero()[:, 0]
            if not len(rows):
                raise DataError(f"benchmark {name!r} with {arrival}: no sample arrives in task {index + 1}; choose "
                                "less")
            parts = [t.train for t in self.before.tasks]
            train = gather_samples(parts, self.home[rows], self.row[rows], self.y[rows], index)
            classes, names = self._find_classes(task, set(train.y.tolist()), arrival.moves)
            tasks.append(replace(task, train=train, train_classes=classes, train_class_names=names))
            values, kind_count = (self.home, self.tasks) if self.shared else (self.y, self.before.classes)
            counts.append(tuple(torch.bincount(values[rows], minlength=kind_count).tolist()))
        return replace(self.before, tasks=tuple(tasks), fingerprint=total.hexdigest()[:16], arrivals=tuple(counts))

    def _find_classes(self, task: StreamTask, there: set[int], moved: bool
                      ) -> tuple[tuple[int, ...], tuple[str, ...]]:
        """Return the classes of a task's training samples, and their names: its own classes first, then others.

        If tasks share outputs and samples moved, an output may stand for several classes, so there are no names.
        """
        pairs = chain.from_iterable(zip_longest(t.classes, t.class_names) for t in (task, *self.before.tasks))
        present_pairs = [(c, name) for c, name in pairs if c in there]
        names = dict(reversed(present_pairs))
        classes = tuple(dict.fromkeys(c for c, _ in present_pairs))
        has_names = bool(task.class_names) and not (self.shared and moved)
        return classes, tuple(names[c] for c in classes) if has_names else ()


def gather_samples(parts: Sequence[Samples], home: Tensor, rows: Tensor, y: Tensor, task: int) -> Samples:
    """Gather samples of several tasks into one: sample i is row `rows[i]` of `parts[home[i]]`, with label `y[i]`.

    Inputs are copied. Permuted inputs are permuted now, each by the permutation of its original task. Photos stay in
    their files.
    """
    tasks = torch.full_like(y, task)
    photos = [part.photos for part in parts if isinstance(part, PhotoSamples)]
    if photos:
        offsets = torch.tensor([0, *map(len, photos)]).cumsum(0)
        return PhotoSamples(Photos.concat(photos)[offsets[home] + rows], y, tasks)
    x: Tensor | None = None
    for index in torch.unique(home).tolist():
        positions = (home == index).nonzero()[:, 0]
        part, chosen = parts[index], rows[positions]
        inputs = (permute(pick(part.base, chosen), part.permutation) if isinstance(part, PermutedSamples)
                  else pick(part.x, chosen))
        x = inputs.new_empty(len(y), *inputs.shape[1:]) if x is None else x
        x[positions] = inputs
    assert x is not None
    if not any(part.is_stochastic for part in parts):
        return Samples(x, y, tasks)
    draws = [part.draw if isinstance(part, StochasticSamples) else part.x.__getitem__ for part in parts]
    places = list(zip(home.tolist(), rows.tolist(), strict=True))

    def draw(index: int) -> Tensor:
        part_index, row = places[index]
        sample: Tensor = draws[part_index](row)
        return sample

    return StochasticSamples(x, y, tasks, draw)
