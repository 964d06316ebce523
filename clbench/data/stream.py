"""A `Stream` holds a benchmark's tasks as tensors, labeled for a scenario; `load_stream` reads or builds it."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from clbench.core import tokens
from clbench.core.errors import SpecError, list_names
from clbench.core.objective import CLASSIFICATION, HasObjective
from clbench.core.registry import Registry
from clbench.core.scenario import Scenario, scenario_rules, shared_outputs
from clbench.data import stream_cache
from clbench.data.own_options import OwnOptions
from clbench.data.photo_files import Photos
from clbench.data.photo_samples import PhotoSamples
from clbench.data.prepare import Augmentation, Prepare, find_augmentation
from clbench.data.raw import NO_SCALE, RawStream, Split, common_outputs, hold_out, relabel
from clbench.data.samples import HostSamples, PermutedInputCache, PermutedSamples, Samples, StochasticSamples, permute
from clbench.data.tests import Tests
from clbench.experiment.trial import Resolved

TEST_BYTES = 2**30  # test samples are stored as inputs of the model up to this size; larger ones stay raw


@dataclass(frozen=True)
class StreamTask:
    """One task: its classes (outputs of the model, in stream order), and its training and test samples.

    The labels y of samples are outputs of the model. `class_names` are the names of `classes`, in the same order;
    empty if classes have no names. `train_classes` and `train_class_names` are those of the training samples, which
    differ only if their arrival is changed (`clbench.data.arrival`); the task's own are the default.
    """

    classes: tuple[int, ...]
    train: Samples
    test: Samples
    class_names: tuple[str, ...] = ()
    train_classes: tuple[int, ...] = ()
    train_class_names: tuple[str, ...] = ()
    test_rows: Tensor | None = None  # rows of the test samples (`raw.Split.rows`), on the CPU

    def __post_init__(self) -> None:
        """Let the training samples have the task's own classes, unless others are given."""
        if not self.train_classes:
            object.__setattr__(self, "train_classes", self.classes)
            object.__setattr__(self, "train_class_names", self.class_names)


@dataclass(frozen=True)
class Stream(HasObjective):
    """A stream of tasks.

    Args:
        tasks: the tasks in order.
        classes: C, the number of outputs.
        input_shape: the shape of one prepared sample.
        prepare: turns raw samples [N, ...] into float32 inputs [N, *input_shape], or tokens int32 [N, L].
        fingerprint: hash over all tensors, labels and the constants of `prepare`.
        notes: how the data were read.
        augment: augments training images; None for no augmentation.
        data: hash of the benchmark, before the scenario and the validation split are applied.
        arrivals: the number of training samples of each class that arrive during each task. If tasks share outputs,
            samples are counted by their original task instead. Empty if their arrival is not changed.
        hidden: whether a method gets the stream as one task (`clbench.training.stream_loop`).
        objective: what models are trained for. For `causal-lm`, labels are int32 [N, L]: the token at each position
            whose prediction counts, else -100; there are no classes. For `regression`, labels are standardized
            float32 [N], and the only class of a task is its output.
        task_names: the names of tasks without classes, if the data name them.
        target: mean and standard deviation by which a numeric target was standardized.
        common_test: whether all tasks have the same test samples. These are evaluated once.
    """

    tasks: tuple[StreamTask, ...]
    classes: int
    input_shape: tuple[int, ...]
    prepare: Prepare
    fingerprint: str
    notes: tuple[str, ...]
    augment: Augmentation | None = None
    data: str = ""
    arrivals: tuple[tuple[int, ...], ...] = ()
    hidden: bool = False
    objective: str = CLASSIFICATION.name
    task_names: tuple[str, ...] = ()
    target: tuple[float, float] = NO_SCALE
    common_test: bool = False

    @property
    def is_text(self) -> bool:
        """Return whether the samples are tokens."""
        return tokens.is_text(stored_inputs(self.tasks[0].train))

    @property
    def tasks_for_strategy(self) -> int:
        """Return the number of tasks that a strategy sees: 1 if task boundaries are hidden."""
        return 1 if self.hidden else len(self.tasks)

    def ends_at(self, task: int) -> bool:
        """Return whether a strategy sees the end of this task; with hidden boundaries, it sees the last end only."""
        return not self.hidden or task + 1 == len(self.tasks)

    def arrived(self, learned: int) -> list[int]:
        """Return the sorted outputs of the classes that have training samples in the first `learned` tasks."""
        return sorted(set(chain.from_iterable(task.train_classes for task in self.tasks[:learned])))

    @property
    def tested_tasks(self) -> tuple[StreamTask, ...]:
        """Return the tasks whose test samples are evaluated: only the first one if all share one test set."""
        return self.tasks[:1] if self.common_test else self.tasks

    @cached_property
    def tests(self) -> Tests:
        """The test samples of `tested_tasks`, as inputs of the model if these take at most `TEST_BYTES`."""
        parts = [task.test for task in self.tested_tasks]
        size = 4 * math.prod(self.input_shape) * sum(map(len, parts))
        photos = [part.photos for part in parts if isinstance(part, PhotoSamples)]
        prepared = self.prepare if size <= TEST_BYTES and not photos else None
        xs = [] if photos else [part.x if prepared is None else prepared(part.x) for part in parts]
        x = Photos.concat(photos) if photos else xs[0] if len(xs) == 1 else torch.cat(xs)  # a single one is not copied
        return Tests(x, torch.cat([part.y for part in parts]),
                     torch.cat([torch.full((len(part),), index, device=part.y.device)
                                for index, part in enumerate(parts)]),
                     tuple(map(len, parts)), self.prepare if prepared is None else None, self.predicts_tokens)

    def to(self, device: torch.device | str, room: int | None = None) -> Stream:
        """Return the stream with all its tensors on a device; tensors that tasks share stay shared.

        If all samples together take more than `room` bytes (None: no limit), training inputs stay on the host and are
        copied batch by batch. Inputs that permuted tasks share, and the one draw that is stored of samples with random
        transforms, always move to the device. Photos that stay in their files never do.
        """
        moved: dict[int, Tensor] = {}
        permuted = PermutedInputCache()

        def move(tensor: Tensor) -> Tensor:
            if id(tensor) not in moved:
                moved[id(tensor)] = tensor.to(device)
            return moved[id(tensor)]

        inputs = chain.from_iterable((stored_inputs(task.train), stored_inputs(task.test)) for task in self.tasks)
        size = sum({id(x): x.nbytes for x in inputs if isinstance(x, Tensor)}.values())
        streamed = room is not None and size > room and not all(
            isinstance(task.train, PermutedSamples | PhotoSamples | StochasticSamples) for task in self.tasks)

        def samples(part: Samples, streamed: bool = False) -> Samples:
            if isinstance(part, PermutedSamples):
                return part.moved(move, permuted)
            if isinstance(part, PhotoSamples):
                return PhotoSamples(part.photos, move(part.y), move(part.tasks))
            if isinstance(part, StochasticSamples):
                return StochasticSamples(move(part.x), move(part.y), move(part.tasks), part.draw)
            if streamed:
                return HostSamples(part.x, move(part.y), move(part.tasks))
            return Samples(move(part.x), move(part.y), move(part.tasks))

        note = (f"training inputs stay on the host: all samples take {size / 1e9:.1f} GB, more than the "
                f"{(room or 0) / 1e9:.1f} GB they are given on the device")
        return replace(self, tasks=tuple(replace(t, train=samples(t.train, streamed), test=samples(t.test))
                                         for t in self.tasks), notes=(*self.notes, note) if streamed else self.notes)


def stored_inputs(samples: Samples) -> Tensor | Photos:
    """Return the stored inputs [N, ...] of samples, without a copy; permuted inputs are returned unpermuted."""
    if isinstance(samples, PermutedSamples):
        return samples.base
    if isinstance(samples, PhotoSamples):
        return samples.photos
    return samples.host if isinstance(samples, HostSamples) else samples.x


def load_stream(benchmark: Resolved, scenario: Scenario, seed: int, data_dir: Path, registry: Registry,
                validation: float = 0.0, verify: bool = False) -> Stream:
    """Return a benchmark's stream, from the cache under `data_dir` or built by Avalanche and then cached.

    Args:
        benchmark: the benchmark's name and all its options.
        scenario: `task`, `class` or `domain`.
        seed: the trial's seed; used only if the stream depends on it (`stream_cache.depends_on_seed`), or for
            validation.
        data_dir: folder of data sets and of the cache (`streams/`).
        registry: the installed benchmarks.
        validation: share of the training samples that replaces the test samples; 0 changes nothing.
        verify: whether to read all data files again, even if their size and times are the same
            (`stream_cache.read_or_build`).

    Raises:
        DataError: the data are missing, or the benchmark fails, is empty or does not fit the scenario.
        SpecError: the benchmark's options leave a trial of this seed without samples.
    """
    options = registry.benchmark(benchmark.name).options.stored(benchmark.options)
    if problem := options.seed_problem([seed], validation):
        raise SpecError(f"benchmark {benchmark.name!r}: {problem}")
    raw = read_benchmark(benchmark, seed, data_dir, registry, verify)
    if raw.common_test:
        common_outputs(raw, scenario, benchmark.name)  # raise now: a run with validation must not hide this error
    stream = to_stream(hold_out(raw, validation, seed, benchmark.name) if validation else raw, scenario, benchmark.name)
    notes = []
    if isinstance(options, OwnOptions) and (shared := shared_outputs((t.classes, t.class_names) for t in stream.tasks)):
        notes.append("classes share an output: "
                     + list_names(f"output {k} = {' / '.join(v)}" for k, v in shared.items()))
    single = [str(number) for number, task in enumerate(stream.tasks, 1) if len(task.classes) == 1]
    if raw.has_classes and scenario_rules(scenario).task_given and single:
        notes.append(f"tasks with a single class: {list_names(single)}; the task ID alone gives the right answer in "
                     "them")
    return replace(stream, data=raw.digest, notes=(*stream.notes, *notes))


def read_benchmark(benchmark: Resolved, seed: int, data_dir: Path, registry: Registry,
                   verify: bool = False) -> RawStream:
    """Return a benchmark with its own labels, from the cache or built; arguments and errors as in `load_stream`."""
    def build() -> RawStream:
        from clbench.data.avalanche.build import build_raw

        return build_raw(registry.benchmark(benchmark.name), benchmark.options, data_dir,
                         seed if stream_cache.depends_on_seed(benchmark, registry) else 0)

    return stream_cache.read_or_build(benchmark, seed, data_dir, registry, build, verify)


def to_stream(raw: RawStream, scenario: Scenario, name: str) -> Stream:
    """Return a raw stream with the outputs of the scenario; `name` is the benchmark's name, for error messages."""
    common = common_outputs(raw, scenario, name) if raw.common_test else None
    if not raw.has_classes:
        return _unlabeled(raw, scenario, name)
    maps = scenario_rules(scenario).outputs(raw.orders, name)
    classes = len(set(chain.from_iterable(table.values() for table in maps)))
    permuted = PermutedInputCache()
    total = hashlib.sha256(raw.digest.encode())
    tasks = []
    tests = raw.test if common is None else raw.test * len(maps)
    for index, (table, train, split) in enumerate(zip(maps, raw.train, tests, strict=True)):
        where = f"benchmark {name!r}: task {index + 1}'s"
        y = relabel(train.y, table, f"{where} training experience")
        total.update(y.numpy().tobytes())
        if common is None or not index:
            y_test = (relabel(split.y, table, f"{where} test experience") if common is None else
                      relabel(split.y, common, f"benchmark {name!r}: the test set", "no training experience has"))
            total.update(y_test.numpy().tobytes())
            test = wrap_eagerly(split, y_test, index)
        tasks.append(StreamTask(tuple(table.values()), wrap_lazily(train, y, index, permuted), test,
                                tuple(raw.class_names[label] for label in table) if raw.class_names else (),
                                test_rows=split.rows))
    shape = tuple(raw.train[0].x.shape[1:])
    return Stream(tuple(tasks), classes, shape, Prepare(raw.mean, raw.std), total.hexdigest()[:16], raw.notes,
                  find_augmentation(raw.augment) if raw.augment else None, common_test=common is not None)


def _unlabeled(raw: RawStream, scenario: Scenario, name: str) -> Stream:
    """Return the stream of a benchmark without classes; its labels do not change.

    Numeric targets have one output per task if the scenario gives the task ID. Otherwise all tasks share one output.
    """
    rules, outputs = scenario_rules(scenario), [tuple[int, ...]()] * len(raw.train)
    if rules.seen_compete:
        raise SpecError(f"benchmark {name!r} has no classes, which scenario {scenario} would tell apart; choose "
                        "scenario task or domain")
    if raw.predicts_numbers:
        outputs = [tuple(table.values()) for table in rules.outputs(raw.orders, name)]
    tasks = []
    for index, (train, test) in enumerate(zip(raw.train, raw.test, strict=True)):
        samples = [labeled(split.x, split.y, torch.full((len(split.y),), index)) for split in (train, test)]
        tasks.append(StreamTask(outputs[index], samples[0], samples[1], test_rows=test.rows))
    return Stream(tuple(tasks), len(set(chain.from_iterable(outputs))), tuple(raw.train[0].x.shape[1:]),
                  Prepare(raw.mean, raw.std), raw.digest[:16], raw.notes, objective=raw.objective,
                  task_names=raw.task_names, target=raw.target)


def wrap_lazily(split: Split, y: Tensor, task: int, permuted: PermutedInputCache) -> Samples:
    """Return the samples of a split; permutations and random transforms are applied when inputs are requested."""
    if split.draw is not None and isinstance(split.x, Tensor):
        return StochasticSamples(split.x, y, torch.full_like(y, task), split.draw)
    if split.permutation is None or isinstance(split.x, Photos):
        return wrap_eagerly(split, y, task)
    return PermutedSamples(split.x, split.permutation, y, torch.full_like(y, task), permuted)


def wrap_eagerly(split: Split, y: Tensor, task: int) -> Samples:
    """Return the samples of a split, with permutations applied now, because tests are read after every task.

    Photos that stay in their files are not read.
    """
    x = split.x
    if split.permutation is not None and isinstance(x, Tensor):
        x = permute(x, split.permutation)
    return labeled(x, y, torch.full_like(y, task))


def labeled(x: Tensor | Photos, y: Tensor, tasks: Tensor) -> Samples:
    """Return samples of inputs in memory, or of photos that stay in their files."""
    return PhotoSamples(x, y, tasks) if isinstance(x, Photos) else Samples(x, y, tasks)
