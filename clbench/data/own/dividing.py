"""Divide samples into tasks, and into training and test; groups stay whole, and all seeds get the same test samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import numpy.typing as npt
import torch

from clbench.core import seeds
from clbench.core.errors import DataError, FewClassesError, list_names
from clbench.data.common_options import order_classes, positions
from clbench.data.own.samples import Labeled, groups_on_both_sides, hint_at_commas, note_tests, places, sort_names
from clbench.data.own.spellings import check_names
from clbench.data.own_options import OwnOptions, TaskOptions

Rows = npt.NDArray[np.int64]
FEW = 10  # a note names classes with fewer training samples
DEFAULT_TASKS = 5  # at most, each of at least two classes, if the user gives no number


@dataclass(frozen=True)
class Division:
    """Samples, divided into tasks. Test rows refer to the test part if the data have one, else to the training part.

    Args:
        classes: names of the labels 0, 1, ...
        tasks: names of the tasks; empty if the data do not name them.
        orders: the labels of each task in the order of the stream.
        train: rows of the training samples of each task.
        test: rows of the test samples of each task; a single entry if all tasks share one test.
        y_train: the label of each row int64 [N].
        y_test: the label of each row of the test part; the same object as `y_train` if there is no test part.
        notes: what a user who runs the benchmark should know.
        groups: the group of each row [N]; None if samples have no groups.
    """

    classes: tuple[str, ...]
    tasks: tuple[str, ...]
    orders: tuple[tuple[int, ...], ...]
    train: tuple[Rows, ...]
    test: tuple[Rows, ...]
    y_train: Rows
    y_test: Rows
    notes: tuple[str, ...]
    groups: Sequence[str] | None = None


def divide(train: Labeled, test: Labeled | None, options: TaskOptions, seed: int, where: str) -> Division:
    """Divide samples into tasks, by class or as the data name them, and into training and test.

    Args:
        train: the samples, or the training part.
        test: the test part; None: a share `options.held_out` of the samples becomes the test.
        options: the options. `train.tasks`, if given, are the tasks unless a number or sizes of tasks are given.
        seed: the seed of the class order, if the options ask for one; the held-out samples do not depend on it.
        where: the name of the data in errors.

    Raises:
        DataError: there are fewer than two classes, too many tasks, or too few samples in a task; the test part has
            classes or tasks that the training part lacks; or a list of classes or tasks is incomplete.
    """
    if not len(train.labels):
        raise DataError(f"{where} has no samples")
    train, test, name_notes = check_names(train, test, options)
    present = set(train.labels)
    natural = [c for c in train.classes if c in present] if train.classes else sort_names(present)
    classes = sorted(natural) if isinstance(options, OwnOptions) and options.class_names_by == "text" else natural
    if unexpected := [c for c in sort_names(present) if c not in set(classes)]:
        raise DataError(f"{where} has labels that are not among its class names: {list_names(unexpected)}")
    if len(classes) < 2:
        raise DataError(f"{where} has one class only, {classes[0]!r}: there is nothing to tell apart")
    if test is not None and (unexpected := sort_names(set(test.labels) - present)):
        raise DataError(f"{where}: the test part has classes that the training part has not: {list_names(unexpected)}")
    y = [np.array(places(part.labels, classes), np.int64) for part in (train, test) if part is not None]
    by_name = train.tasks is not None and options.tasks is None and not options.task_sizes
    if by_name:
        names, ids, orders = _named_tasks(train, test, y, options, where)
        notes = _thin_classes(ids[0], y[0], names, classes)
    else:
        orders, notes = _assign_classes(classes, options, seed, where)
        task_of = np.empty(len(classes), np.int64)
        for task, order in enumerate(orders):
            task_of[list(order)] = task
        names, ids = [], [task_of[part] for part in y]
    if test is None:
        assert isinstance(options, OwnOptions)  # other options belong to benchmarks with a test part
        # Tasks by class depend on the class order. Held-out samples must not, so they are chosen by class alone.
        natural_tasks = train.natural_tasks if by_name else [0] * len(y[0])
        test_mask, note = hold_out(natural_tasks, places(train.labels, natural), train.groups, options.held_out)
        rows, test_rows = _select_rows(ids[0], len(orders), ~test_mask), _select_rows(ids[0], len(orders), test_mask)
        notes = [note, *notes]
    elif options.common_test:
        rows, test_rows = _select_rows(ids[0], len(orders)), (np.arange(len(y[1])),)
    else:
        rows, test_rows = (_select_rows(part, len(orders)) for part in ids)
        notes = [*groups_on_both_sides(train, test), *notes]
    titles = names or [list_names(classes[c] for c in order) for order in orders]
    _tested(["all"] if options.common_test else titles, test_rows, where)
    counts = np.bincount(y[0][np.concatenate(rows)], minlength=len(classes))
    if small_classes := [f"{classes[c]} ({counts[c]})" for c in np.flatnonzero(counts < FEW)]:
        notes = [*notes, f"classes with fewer than {FEW} training samples: {list_names(small_classes)}"]
    if isinstance(options, OwnOptions):
        notes += note_tests(orders, [y[-1][of_task].tolist() for of_task in test_rows], names, classes)
    return Division(tuple(classes), tuple(names), tuple(orders), rows, test_rows, y[0], y[-1], (*notes, *name_notes),
                    train.groups)


def divide_targets(train: Labeled, test: Labeled | None, options: OwnOptions, where: str) -> Division:
    """Divide samples with numeric targets into the tasks that the data name, and into training and test.

    Args:
        train: tasks and groups of the samples, or of the training part; labels are ignored.
        test: tasks and groups of the test part; None: a share `options.held_out` of each task becomes the test.
        options: the options for the division.
        where: the name of the data in errors.

    Raises:
        DataError: the data do not name the tasks, or a task has too few samples.
    """
    if train.tasks is None:
        raise DataError(f"{where}: numbers have no classes by which samples could be divided into tasks; name the "
                        "column of the tasks (task_column=NAME), or add an array named task")
    train, test, name_notes = check_names(train, test, options)
    y = [np.zeros(len(part.tasks or ()), np.int64) for part in (train, test) if part is not None]
    names, ids, orders = _named_tasks(train, test, y, options, where)
    if test is None:
        mask, note = hold_out(train.natural_tasks, [0] * len(y[0]), train.groups, options.held_out)
        rows, test_rows = _select_rows(ids[0], len(names), ~mask), _select_rows(ids[0], len(names), mask)
        notes = [note.replace("of each class", "of each task")]
    else:
        rows, test_rows = (_select_rows(part, len(names)) for part in ids)
        notes = groups_on_both_sides(train, test)
    _tested(names, test_rows, where)
    return Division((), tuple(names), tuple(orders), rows, test_rows, y[0], y[-1], (*notes, *name_notes), train.groups)


def _select_rows(ids: Rows, count: int, chosen: npt.NDArray[np.bool_] | bool = True) -> tuple[Rows, ...]:
    """Return the rows of each of the IDs 0..count-1, among the chosen rows."""
    return tuple(np.flatnonzero((ids == i) & chosen) for i in range(count))


def _assign_classes(classes: Sequence[str], options: TaskOptions, seed: int, where: str
                    ) -> tuple[list[tuple[int, ...]], list[str]]:
    """Return the classes of each task in their order, and notes."""
    count, tasks, notes = len(classes), options.tasks, []
    if getattr(options, "tasks_in_order", []):
        raise DataError(f"{where}: tasks_in_order is for tasks that the data name, and these are divided by class; "
                        "give classes_in_order, or say what names the tasks")
    if options.task_sizes:
        if sum(options.task_sizes) != count:
            raise DataError(f"{where} has {count} classes, and task_sizes sum to {sum(options.task_sizes)}; they must "
                            "be equal")
        tasks = len(options.task_sizes)
    if tasks is None:
        tasks = min(DEFAULT_TASKS, count // 2)
        if tasks < 2:
            raise FewClassesError(f"{where} has {count} classes, too few for tasks of two classes; give tasks={count} "
                                  "and --scenario class for one class per task, tasks=1 for one task, or names of the "
                                  "tasks: task_column=NAME, an array called task, or tasks_from=folders (nested)")
        notes.append(f"{tasks} tasks by class, as nothing else is asked for (tasks = ...)")
    if tasks > count:
        raise DataError(f"{where} has {count} classes, which do not make {tasks} tasks; give tasks = {count} or fewer")
    order = (listed_positions(options.classes_in_order, classes, "classes_in_order", where)
             if options.classes_in_order else order_classes(options, seed, count))
    sizes = options.task_sizes or [count // tasks + (task < count % tasks) for task in range(tasks)]
    parts = [tuple(order[end - size:end]) for size, end in zip(sizes, accumulate(sizes), strict=True)]
    if not options.task_sizes and count % tasks:
        notes.append(f"{count} classes do not divide evenly into {tasks} tasks, which have "
                     f"{', '.join(str(len(part)) for part in parts)} (scenario domain needs equally many)")
    return parts, notes


def listed_positions(given: Sequence[str], known: Sequence[str], option: str, where: str) -> list[int]:
    """Return the positions in `known` of the names that an option lists; it must list each known name once."""
    if (places := positions(given, known)) is None:
        missing, unexpected = [n for n in known if n not in given], [n for n in given if n not in known]
        wrong = (f"{list_names(unexpected)} is not there{hint_at_commas(unexpected)}" if unexpected else
                 f"{list_names(missing)} is left out" if missing else "some are named twice")
        raise DataError(f"{where}: {option} must list each of {list_names(known)} once, and {wrong}")
    return places


def _named_tasks(train: Labeled, test: Labeled | None, y: list[Rows], options: TaskOptions, where: str
                 ) -> tuple[list[str], list[Rows], list[tuple[int, ...]]]:
    """Return the names of the tasks that the data name, each sample's task by part, and the labels of each task."""
    assert train.tasks is not None
    names = [*train.task_names] or sort_names(train.tasks)
    if empty := [name for name in names if name not in train.tasks]:
        raise DataError(f"{where}: task {empty[0]!r} has no training samples")
    if options.classes_in_order or options.class_order != "natural":
        raise DataError(f"{where} names its own tasks ({list_names(names)}), to which an order of classes does not "
                        "apply; give tasks = ... as well to divide by class, or leave the order out")
    if task_order := getattr(options, "tasks_in_order", []):
        names = [names[i] for i in listed_positions(task_order, names, "tasks_in_order", where)]
    ids = [np.array(places(train.tasks, names), np.int64)]
    orders = [tuple(range(int(y[0].max()) + 1) if options.shared_classes else np.unique(y[0][ids[0] == t]).tolist())
              for t in range(len(names))]
    if test is not None and not options.common_test:
        if test.tasks is None or set(test.tasks) != set(names):
            test_tasks = "names none" if test.tasks is None else f"has {list_names(sort_names(test.tasks))}"
            raise DataError(f"{where}: the training part has the tasks {list_names(names)}, the test part {test_tasks}")
        ids.append(np.array(places(test.tasks, names), np.int64))
        for t, name in enumerate(names):
            if extra := np.setdiff1d(y[1][ids[1] == t], orders[t]).tolist():
                classes = sort_names({test.labels[i] for i in np.flatnonzero(ids[1] == t).tolist() if y[1][i] in extra})
                raise DataError(f"{where}: task {name!r} is tested on classes that it does not train: "
                                f"{list_names(classes)}")
    return names, ids, orders


def _tested(titles: Sequence[str], test_rows: Sequence[Rows], where: str) -> None:
    """Check that every task has test samples."""
    if empty := [title for title, rows in zip(titles, test_rows, strict=True) if not len(rows)]:
        raise DataError(f"{where}: no test sample is left for task {list_names(map(repr, empty), 1)}; every task needs "
                        "two samples (of a class, if there are classes; of two groups, if groups are kept whole)")


def _thin_classes(of: Rows, y: Rows, tasks: Sequence[str], classes: Sequence[str]) -> list[str]:
    """Return a note on classes that only one task has, if tasks share other classes."""
    pairs = np.unique(np.stack([y, of]), axis=1)
    labels, counts = np.unique(pairs[0], return_counts=True)
    alone = [f"{classes[c]} ({tasks[pairs[1][pairs[0] == c][0]]})" for c in labels[counts == 1] if counts.max() > 1]
    return [f"classes that occur in one task only: {list_names(alone)}"] if alone else []


def hold_out(tasks: Sequence[int], y: Sequence[int], groups: Sequence[str] | None, share: float
             ) -> tuple[npt.NDArray[np.bool_], str]:
    """Choose a share of each class in each task as the test, and return its mask [N] and a note; groups stay whole.

    The choice depends only on the samples and their order, as tasks and classes have the numbers of their natural
    order. At least one sample of each class in each task stays in training.

    Args:
        tasks: each sample's task [N].
        y: each sample's label [N].
        groups: each sample's group; None if samples have no groups.
        share: the share to hold out, in (0, 1).
    """
    cells = np.unique(np.stack([tasks, y]), axis=1, return_inverse=True)[1].reshape(-1)
    mask = np.zeros(len(y), bool)
    if groups is None:
        for cell, rows in enumerate(_select_rows(cells, cells.max() + 1)):
            mask[rows[_shuffle_rows(len(rows), "held-out", cell)[:held_out_count(len(rows), share)]]] = True
        return mask, f"test: {mask.sum()} of {len(y)} samples, held out of each class alike and for every seed"
    chosen, group_ids = choose_groups(np.array(groups), cells, share, 0, "held-out", "groups")
    mask = chosen[group_ids]
    return mask, (f"test: {mask.sum()} of {len(y)} samples ({mask.mean():.0%}), held out as {chosen.sum()} of "
                  f"{len(chosen)} whole groups, for every seed")


def held_out_count(count: int, share: float) -> int:
    """Return how many of `count` samples are held out: about a share, at least one, and never all."""
    return min(max(round(share * count), 1), count - 1)


def choose_groups(groups: npt.ArrayLike, cells: Rows, share: float, seed: int, *axes: str
                  ) -> tuple[npt.NDArray[np.bool_], Rows]:
    """Choose groups whose samples are close to a share of each cell; return their mask and each sample's group [N].

    Groups are tried one by one. A group is chosen if it brings the shares closer and leaves training samples in each
    cell. Then a cell without chosen samples gets the smallest group that leaves training samples, if there is one.

    Args:
        groups: each sample's group, as name or number [N].
        cells: each sample's cell [N], from 0; a cell is a class in a task.
        share: the share to approach.
        seed: the seed of the order in which groups are tried, with `axes`.
    """
    names, group_ids = np.unique(groups, return_inverse=True)
    counts = np.zeros((len(names), cells.max() + 1))
    np.add.at(counts, (group_ids, cells), 1)
    totals = counts.sum(0)
    target, test_counts, chosen = share * totals, np.zeros_like(totals), np.zeros(len(counts), bool)

    def leaves_some(group: int) -> bool:
        return bool(np.all(test_counts + counts[group] < totals))

    def distance(cell_counts: npt.NDArray[np.float64]) -> float:
        return float(((cell_counts - target) ** 2 / totals).sum())

    for group in _shuffle_rows(len(counts), *axes, seed=seed):
        if leaves_some(group) and distance(test_counts + counts[group]) < distance(test_counts):
            test_counts += counts[group]
            chosen[group] = True
    for cell in range(len(totals)):
        fitting = [g for g in np.flatnonzero(counts[:, cell] * ~chosen).tolist() if leaves_some(g)]
        if fitting and not test_counts[cell]:
            smallest = min(fitting, key=lambda g: counts[g].sum())
            test_counts += counts[smallest]
            chosen[smallest] = True
    return chosen, group_ids


def _shuffle_rows(count: int, *axes: str | int, seed: int = 0) -> Rows:
    """Return 0..count-1 in a random order that is fixed for each seed and `axes`."""
    return torch.randperm(count, generator=seeds.generator(seed, *axes)).numpy()
