"""`RawStream`: a benchmark as tensors with its own labels, before a scenario assigns outputs. The cache stores it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain

import torch
from torch import Tensor

from clbench.core import seeds
from clbench.core.errors import DataError, SpecError
from clbench.core.objective import CLASSIFICATION, HasObjective
from clbench.core.scenario import Scenario, scenario_rules
from clbench.data.own.dividing import choose_groups, held_out_count
from clbench.data.own.pixels import PhotoFormat
from clbench.data.own.samples import note_untested
from clbench.data.photo_files import Photos, PhotoTable

NO_SCALE = (0.0, 1.0)  # mean and standard deviation that change nothing
TABLE = ("names", "ends", "sizes", "hashes")  # the tensors of a `PhotoTable`


@dataclass(frozen=True)
class Split:
    """The samples of one experience: inputs x [N, ...] and the benchmark's own labels y.

    Labels are int64 [N], tokens int32 [N, L], or standardized numbers float32 [N]. Inputs may be photos that stay in
    their files. If there is a permutation, x are the inputs of the first task, before their pixels are permuted
    (`samples.PermutedSamples`).

    `rows` int64 [N] are the rows of a test split in the test part of the data set, before samples were selected and
    divided into tasks. It is None if they are not known, and for training samples.

    `groups` int64 [N] are the groups of training samples, which a validation split keeps whole. None: no groups.
    """

    x: Tensor | Photos
    y: Tensor
    permutation: Tensor | None = None
    draw: Callable[[int], Tensor] | None = None  # returns a new draw of a sample, if transforms are random
    rows: Tensor | None = None
    groups: Tensor | None = None


@dataclass(frozen=True)
class RawStream(HasObjective):
    """The tasks of a benchmark with its own labels.

    Args:
        train: one split per task.
        test: one split per task, or a single one that all tasks share.
        orders: the classes of each task in the order of the stream.
        mean: mean of each channel, in units of inputs scaled to [0, 1]; empty if inputs are not normalized.
        std: standard deviation of each channel, likewise.
        notes: how the data were read.
        augment: the augmentation of training images (`prepare.find_augmentation`), empty for none.
        class_names: names of the labels 0, 1, ...; empty if classes have no names. They affect no result, so `digest`
            leaves them out.
        objective: what models are trained for.
        task_names: names of the tasks, if the data name them and tasks have no classes.
        target: mean and standard deviation by which a numeric target was standardized.
    """

    train: tuple[Split, ...]
    test: tuple[Split, ...]
    orders: tuple[tuple[int, ...], ...]
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    notes: tuple[str, ...] = ()
    augment: str = ""
    class_names: tuple[str, ...] = ()
    objective: str = CLASSIFICATION.name
    task_names: tuple[str, ...] = ()
    target: tuple[float, float] = NO_SCALE

    @property
    def common_test(self) -> bool:
        """Return whether several tasks share one test set."""
        return len(self.test) == 1 < len(self.train)

    @property
    def is_stochastic(self) -> bool:
        """Return whether some samples are drawn again for every batch."""
        return any(split.draw is not None for split in self.train)

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors except `side_tensors`, by name; inputs that permuted tasks share occur once.

        Photos that stay in their files are replaced by the hashes of the files.
        """
        out: dict[str, Tensor] = {}
        for part, splits in (("train", self.train), ("test", self.test)):
            for task, split in enumerate(splits):
                out[f"{part}/{task}/y"] = split.y
                if split.permutation is None:
                    out[f"{part}/{task}/x"] = split.x.hashes if isinstance(split.x, Photos) else split.x
                else:
                    out[f"permutation/{task}"] = split.permutation
        return out

    def side_tensors(self) -> dict[str, Tensor]:
        """Return the tensors that are not inputs or labels: rows of test splits, groups, and the table of photos.

        Groups only affect validation splits. The table describes photos that stay in their files. For each split, its
        rows in the table are included.
        """
        out = {f"rows/{task}": split.rows for task, split in enumerate(self.test) if split.rows is not None}
        out |= self._groups()
        if self.photos is not None:
            table = self.photos.table
            out |= {f"photos/{name}": getattr(table, name) for name in TABLE}
            for part in ("train", "test"):
                out |= {f"photos/{part}/{task}": split.x.rows for task, split in enumerate(getattr(self, part))
                        if isinstance(split.x, Photos)}
        return out

    def _groups(self) -> dict[str, Tensor]:
        return {f"groups/{task}": split.groups for task, split in enumerate(self.train) if split.groups is not None}

    @property
    def photos(self) -> Photos | None:
        """Return the first task's photos if they stay in their files, else None."""
        x = self.train[0].x if self.train else None
        return x if isinstance(x, Photos) else None

    @cached_property
    def digest(self) -> str:
        """Return a hash over all tensors, class orders, groups, normalization, augmentation and format of photos."""
        form = None if self.photos is None else repr(self.photos.format)
        scale = [] if self.target == NO_SCALE else [self.target]
        constants = (self.orders, self.mean, self.std, *filter(None, [self.augment, form]), *scale)
        return _hashed(repr(constants), self.tensors() | self._groups())

    @property
    def side_digest(self) -> str:
        """Return a hash over `side_tensors`."""
        return _hashed("", self.side_tensors())

    @staticmethod
    def from_tensors(tensors: dict[str, Tensor], orders: tuple[tuple[int, ...], ...], mean: tuple[float, ...],
                     std: tuple[float, ...], notes: tuple[str, ...], augment: str = "",
                     class_names: tuple[str, ...] = (), objective: str = CLASSIFICATION.name,
                     task_names: tuple[str, ...] = (), target: tuple[float, float] = NO_SCALE,
                     photos: tuple[str, PhotoFormat] | None = None) -> RawStream:
        """Rebuild a stream from its `tensors()` and `side_tensors()`; raise a KeyError if one is missing.

        `photos` has the folder and the format of photos that stay in their files.
        """
        table = None if photos is None else PhotoTable(photos[0], *(tensors[f"photos/{name}"] for name in TABLE))

        def splits(part: str) -> tuple[Split, ...]:
            out = []
            for task in range(len(orders) if f"{part}/1/y" in tensors else 1):
                permutation = tensors.get(f"permutation/{task}")
                x: Tensor | Photos = tensors[f"{part}/{task if permutation is None else 0}/x"]
                if table is not None and photos is not None:
                    x = Photos(table, tensors[f"photos/{part}/{task}"], photos[1])
                rows = tensors.get(f"rows/{task}") if part == "test" else None
                groups = tensors.get(f"groups/{task}") if part == "train" else None
                out.append(Split(x, tensors[f"{part}/{task}/y"], permutation, rows=rows, groups=groups))
            return tuple(out)

        return RawStream(splits("train"), splits("test"), orders, mean, std, notes, augment, class_names,
                         objective, task_names, target)


def _hashed(head: str, tensors: Mapping[str, Tensor]) -> str:
    """Return a hash over text and tensors by name."""
    total = hashlib.sha256(head.encode())
    for name, tensor in sorted(tensors.items()):
        total.update(repr((name, str(tensor.dtype), tuple(tensor.shape))).encode())
        flat = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
        for piece in torch.split(flat, 1 << 24):  # 16 MiB at a time
            total.update(piece.numpy().data)
    return total.hexdigest()


def common_outputs(raw: RawStream, scenario: Scenario, name: str) -> dict[int, int]:
    """Return the output of each class in the test set that all tasks of a stream share.

    Raises:
        SpecError: the scenario needs a test set for each task, or the stream has no classes.
    """
    rules, where = scenario_rules(scenario), f"benchmark {name!r} has one test set for all tasks"
    if not raw.has_classes:
        raise SpecError(f"{where}, which only a benchmark with classes can have; give each task a test set")
    tables = rules.outputs(raw.orders, name)
    common = {label: output for table in tables for label, output in table.items()}
    if rules.task_given or any(common[label] != output for table in tables for label, output in table.items()):
        has_same_classes = all(set(order) == set(raw.orders[0]) for order in raw.orders)
        raise SpecError(f"{where}, and scenario {scenario} needs to know the task of each test sample; choose scenario "
                        f"{'domain' if has_same_classes else 'class'}")
    return common


def relabel(y: Tensor, table: dict[int, int], where: str, lacking: str = "its training experience has not") -> Tensor:
    """Return the outputs of labels y [N]; `lacking` ends the error message about classes without an output.

    Raises:
        DataError: the table has no output for a label.
    """
    values, inverse = torch.unique(y, return_inverse=True)
    unknown_labels = [v for v in values.tolist() if v not in table]
    if unknown_labels:
        raise DataError(f"{where} has classes that {lacking}: {', '.join(map(str, unknown_labels))}")
    return torch.tensor([table[v] for v in values.tolist()], dtype=torch.int64)[inverse]


REDRAWN = "validation samples are one draw of each from the random training transforms"


def hold_out(raw: RawStream, share: float, seed: int, name: str) -> RawStream:
    """Return a stream whose test samples are a part of the training samples; the original test samples are dropped.

    Each task has its own held-out samples, even if the tasks share one test set.
    The choice depends only on the seed, so it is the same for all methods. Within a class it does not depend on the
    task. If tasks show the same images (permuted, rotated), the same images are therefore held out of all tasks.
    If samples have groups, whole groups are held out of all tasks.

    Args:
        raw: the benchmark.
        share: the part to hold out of each class in each task, in (0, 1); at least one sample is held out and at least
            one remains for training.
        seed: the seed of the trial.
        name: the name of the benchmark, for error messages.

    Raises:
        DataError: a class has a single sample in a task, or no group can be held out of a task.
    """
    train: list[Split] = []
    test: list[Split] = []
    masks, notes = _group_masks(raw, share, seed, name)
    for task, split in enumerate(raw.train):
        if split.permutation is None:
            labels = split.y if raw.has_classes else torch.zeros(len(split.y), dtype=torch.int64)
            if not raw.has_classes and len(labels) == 1:
                raise DataError(f"benchmark {name!r}: task {task + 1} has one training item; a validation split needs "
                                "two")
            mask = masks[task] if masks else choose(
                labels, share, seed, f"benchmark {name!r}: task {task + 1}'s training experience", raw.class_names)
            train_rows, test_rows = ((~mask).nonzero().squeeze(1), mask.nonzero().squeeze(1))
            xs = split.x[train_rows], split.x[test_rows]  # shared with the permuted tasks that follow
        train.append(Split(xs[0], split.y[train_rows], split.permutation, _draw(split, train_rows)))
        test.append(Split(xs[1], split.y[test_rows], split.permutation))
    return replace(raw, train=tuple(train), test=tuple(test),
                   notes=(*raw.notes, *notes, *([REDRAWN] if raw.is_stochastic else [])))


def choose(y: Tensor, share: float, seed: int, where: str, names: Sequence[str] = ()) -> Tensor:
    """Return the mask of the held-out samples among those with labels y [N]; `names` are of the classes, for errors."""
    mask = torch.zeros(len(y), dtype=torch.bool)
    for label in torch.unique(y).tolist():
        rows = (y == label).nonzero().squeeze(1)
        if len(rows) < 2:
            raise DataError(f"{where} has one sample of class {names[label] if names else label}; a validation "
                            "split needs two of each class")
        order = torch.randperm(len(rows), generator=seeds.generator(seed, "validation", label))
        mask[rows[order[:held_out_count(len(rows), share)]]] = True
    return mask


def _group_masks(raw: RawStream, share: float, seed: int, name: str) -> tuple[tuple[Tensor, ...], list[str]]:
    """Return the mask of each task's held-out samples if samples have groups, and notes; both empty without groups."""
    groups = [split.groups for split in raw.train if split.groups is not None]
    if not groups:
        return (), []
    counts = [len(split.y) for split in raw.train]
    task_of = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    labels = torch.cat([split.y for split in raw.train]) if raw.has_classes else torch.zeros_like(task_of)
    cells = torch.unique(torch.stack([task_of, labels]), dim=1, return_inverse=True)[1]
    chosen, ids = choose_groups(torch.cat(groups).numpy(), cells.numpy(), share, seed, "validation", "groups")
    mask = torch.from_numpy(chosen[ids])
    masks = torch.split(mask, counts)
    if empty := [task for task, task_mask in enumerate(masks, 1) if not task_mask.any()]:
        raise DataError(f"benchmark {name!r}: no validation sample is left for task {empty[0]}, because groups are "
                        "kept whole; every task needs two groups of training samples, of which one can be held out")
    notes = [f"validation: {int(mask.sum())} of {len(mask)} training samples, held out as {chosen.sum()} of "
             f"{len(chosen)} whole groups"]
    if raw.has_classes:
        tested = [set(split.y[task_mask].tolist()) for split, task_mask in zip(raw.train, masks, strict=True)]
        classes = [*chain.from_iterable(raw.orders)]
        tasks = [f"task {t}" for t in range(1, len(masks) + 1)] if len(classes) > len(set(classes)) else []
        notes += note_untested(raw.orders, tested, tasks, raw.class_names or range(1 + max(classes)), "validation")
    return masks, notes


def _draw(split: Split, rows: Tensor) -> Callable[[int], Tensor] | None:
    """Return a function that draws the remaining sample `index` again; None if the transforms are not random."""
    draw = split.draw
    return None if draw is None else lambda index: draw(int(rows[index]))
