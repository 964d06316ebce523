"""Training samples rearranged among the tasks of a stream: a long tail, classes that return, blurred boundaries.

docs/task-free-streams.md defines the three and says whose they are. All draws are of the data-order axis of the seed.
Test samples stay as they are, and the outputs of classes too. A task's training samples are those that arrive while it
lasts, so for a method it is a task like any other, some of whose classes are those of other tasks.
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
    """Return a stream whose training samples arrive as `arrival` says; the same object if that changes nothing.

    Args:
        stream: on the CPU, as the scenario presents it.
        arrival: what to change.
        scenario: of the stream.
        seed: of the trial.
        name: of the benchmark, for errors.

    Raises:
        DataError: there is a single task to blur, or a task would have no samples.
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
    """Which sample arrives when: flat columns over all training samples of a stream, in the order of its tasks.

    `home` is the task that a sample is of, `row` its place there, `when` the task during which it arrives (-1: never).
    """

    def __init__(self, stream: Stream, scenario: Scenario, seed: int) -> None:
        """Begin with every sample in its own task."""
        self.before, self.seed = stream, seed
        self.tasks = len(stream.tasks)
        sizes = [len(task.train) for task in stream.tasks]
        self.home = torch.arange(self.tasks).repeat_interleave(torch.tensor(sizes))
        self.row = torch.cat([torch.arange(size) for size in sizes])
        self.y = torch.cat([task.train.y for task in stream.tasks])
        self.when = self.home.clone()
        self.shared = scenario_rules(scenario).shared_outputs
        # Outputs that all tasks share are of another class in each.
        self.group = self.y + self.home * stream.classes if self.shared else self.y

    def drawn(self, what: str, *axes: int) -> torch.Generator:
        """Return the generator of a draw."""
        return seeds.generator(self.seed, "data", what, *axes)

    def shuffled(self, rows: Tensor, what: str, *axes: int) -> Tensor:
        """Return rows [N] in random order."""
        return rows[torch.randperm(len(rows), generator=self.drawn(what, *axes))]

    def thin(self, ratio: float) -> None:
        """Keep round(n ratio^(-k / (K - 1))) of the n samples of the class of rank k among K, ranks drawn; at least 1.

        A class that several tasks have is thinned in each of them.
        """
        groups = torch.unique(self.group).tolist()
        ranks = torch.randperm(len(groups), generator=self.drawn("imbalance")).tolist()
        for group, rank in zip(groups, ranks, strict=True):
            share = ratio ** (-rank / max(len(groups) - 1, 1))
            for task in range(self.tasks):
                rows = ((self.group == group) & (self.home == task)).nonzero()[:, 0]
                left = self.shuffled(rows, "imbalance", group, task)[max(round(share * len(rows)), 1):]
                self.when[left] = -1

    def bring_back(self, probability: float) -> None:
        """Let each class return in each later task with a probability, its samples shared out equally, in turn."""
        for task in range(self.tasks - 1):
            for group in torch.unique(self.group[self.home == task]).tolist():
                draws = torch.rand(self.tasks - task - 1, generator=self.drawn("repeat", group, task))
                places = torch.tensor([task, *(task + 1 + (draws < probability).nonzero()[:, 0]).tolist()])
                rows = ((self.group == group) & (self.home == task) & (self.when >= 0)).nonzero()[:, 0]
                rows = self.shuffled(rows, "repeat", group, task, 1)
                self.when[rows] = places[torch.arange(len(rows)) % len(places)]

    def blur(self, share: float) -> None:
        """Move round(share n) of the n samples of each class in each task to the other tasks, dealt out in turn.

        Tasks of one size keep it: the i-th sample that task t gives goes to task t + 1 + (i mod (T - 1)), modulo T.
        """
        now = self.when.clone()
        for task in range(self.tasks):
            given = []
            for group in torch.unique(self.group[now == task]).tolist():
                rows = ((self.group == group) & (now == task)).nonzero()[:, 0]
                given.append(self.shuffled(rows, "blur", group, task)[:round(share * len(rows))])
            rows = torch.cat(given) if given else torch.empty(0, dtype=torch.int64)
            self.when[rows] = (task + 1 + torch.arange(len(rows)) % (self.tasks - 1)) % self.tasks

    def stream(self, arrival: Arrival, name: str) -> Stream:
        """Return the stream in which samples arrive as planned."""
        total = hashlib.sha256(f"{self.before.fingerprint} {arrival}".encode())
        total.update(self.when.numpy().tobytes())
        tasks, counts = [], []
        for index, task in enumerate(self.before.tasks):
            rows = (self.when == index).nonzero()[:, 0]
            if not len(rows):
                raise DataError(f"benchmark {name!r} with {arrival}: no sample arrives in task {index + 1}; choose "
                                "less")
            train = gathered([t.train for t in self.before.tasks], self.home[rows], self.row[rows], self.y[rows], index)
            met, names = self._met(task, set(train.y.tolist()), arrival.moves)
            tasks.append(replace(task, train=train, met=met, met_names=names))
            by, kinds = (self.home, self.tasks) if self.shared else (self.y, self.before.classes)
            counts.append(tuple(torch.bincount(by[rows], minlength=kinds).tolist()))
        return replace(self.before, tasks=tuple(tasks), fingerprint=total.hexdigest()[:16], arrivals=tuple(counts))

    def _met(self, task: StreamTask, there: set[int], moved: bool
             ) -> tuple[tuple[int, ...], tuple[str, ...]]:
        """Return the classes that a task's training samples have and their names: its own, then others of the stream.

        Shared outputs have no name where a task has samples of several classes for one.
        """
        pairs = chain.from_iterable(zip_longest(t.classes, t.class_names) for t in (task, *self.before.tasks))
        pairs_there = [(c, name) for c, name in pairs if c in there]
        first = dict(reversed(pairs_there))
        met = tuple(dict.fromkeys(c for c, _ in pairs_there))
        named = bool(task.class_names) and not (self.shared and moved)
        return met, tuple(first[c] for c in met) if named else ()


def gathered(parts: Sequence[Samples], home: Tensor, rows: Tensor, y: Tensor, task: int) -> Samples:
    """Return samples of several tasks as those of one, with labels y [N]: the i-th is rows[i] of parts[home[i]].

    Inputs are copied; permuted ones are permuted now, each as its own task has it. Photos stay in their files.
    """
    tasks = torch.full_like(y, task)
    photos = [part.photos for part in parts if isinstance(part, PhotoSamples)]
    if photos:
        begins = torch.tensor([0, *map(len, photos)]).cumsum(0)
        return PhotoSamples(Photos.concat(photos)[begins[home] + rows], y, tasks)
    x: Tensor | None = None
    for index in torch.unique(home).tolist():
        there = (home == index).nonzero()[:, 0]
        part, chosen = parts[index], rows[there]
        inputs = (permute(pick(part.base, chosen), part.permutation) if isinstance(part, PermutedSamples)
                  else pick(part.x, chosen))
        x = inputs.new_empty(len(y), *inputs.shape[1:]) if x is None else x
        x[there] = inputs
    assert x is not None
    if not any(part.is_stochastic for part in parts):
        return Samples(x, y, tasks)
    draws = [part.draw if isinstance(part, StochasticSamples) else part.x.__getitem__ for part in parts]
    places = list(zip(home.tolist(), rows.tolist(), strict=True))

    def draw(index: int) -> Tensor:
        where, row = places[index]
        sample: Tensor = draws[where](row)
        return sample

    return StochasticSamples(x, y, tasks, draw)
