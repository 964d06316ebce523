"""Build a benchmark, usually with Avalanche, and read all of it into tensors; imported on a cache miss only."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clbench.core import seeds
from clbench.core.compat import uncollected
from clbench.core.entry_points import builder, package_of
from clbench.core.errors import ClbenchError, DataError
from clbench.core.hookspecs import BenchmarkInfo
from clbench.core.objective import CLASSIFICATION
from clbench.core.user_code import extend_import_path, format_error
from clbench.data.avalanche.benchmarks import LAYOUT, Layout
from clbench.data.avalanche.tensors import Experience, SeveralShapes, materialise
from clbench.data.avalanche.whole import leaf_rows
from clbench.data.datasets import redirect_to_stderr
from clbench.data.raw import RawStream, Split
from clbench.data.samples import permute


def build_raw(info: BenchmarkInfo, options: Mapping[str, Any], data_dir: Path, seed: int) -> RawStream:
    """Build a benchmark and return it as tensors; Avalanche is imported only for benchmarks with classes.

    The global generators are seeded while the builder runs. A builder that draws without a seed therefore gives every
    method the same stream.

    Raises:
        DataError: the builder raises an error or returns something else, or `materialise` raises an error.
    """
    where, checked_options = f"benchmark {info.name!r}", info.options.stored(options)
    if info.objective_with(checked_options) == CLASSIFICATION:
        import_avalanche()
    build = builder(info, "benchmark")
    with extend_import_path(info.name), redirect_to_stderr(), seeds.scope(seed, "stream"):
        try:
            size = getattr(checked_options, "size", None)
            return as_raw(build(checked_options, data_dir, seed), where, info.seeded, size)
        except ClbenchError:
            raise
        except (Exception, SystemExit) as error:  # any error of the builder becomes one line
            reason = format_error(error, package_of(info.build), package_of(info.name))
            raise DataError(f"{where} failed: {reason}") from error


def as_raw(benchmark: Any, where: str, seeded: bool = False, size: int | None = None) -> RawStream:
    """Return an Avalanche benchmark as tensors; a `RawStream` is returned unchanged.

    Args:
        benchmark: the benchmark.
        where: its name in errors.
        seeded: whether it depends on the seed.
        size: pixels per side to which photos of several sizes are resized.

    Raises:
        SeveralShapes: samples differ in type or shape, and no size is given.
    """
    if isinstance(benchmark, RawStream):
        return benchmark
    if not (hasattr(benchmark, "train_stream") and hasattr(benchmark, "test_stream")):
        raise DataError(f"{where} returned {type(benchmark).__name__}, expected an Avalanche benchmark "
                        "(train_stream, test_stream)")
    layout: Layout = getattr(benchmark, LAYOUT, Layout())
    comparable = not seeded or hasattr(benchmark, LAYOUT)  # else other seeds may have other samples in the same rows
    try:
        return _as_raw(benchmark, layout, where, comparable)
    except SeveralShapes:
        if size is None:
            raise
    return _as_raw(benchmark, layout, where, comparable, size)


def test_rows(experiences: Sequence[Any]) -> tuple[torch.Tensor, ...]:
    """Return the rows of each experience's samples in the data set that all share; empty if they do not share one."""
    leaves, rows = [], []
    for experience in experiences:
        leaf_and_rows = leaf_rows(experience.dataset, np.arange(len(experience.dataset)))
        if leaf_and_rows is None:
            return ()
        leaves.append(leaf_and_rows[0])
        rows.append(torch.tensor(leaf_and_rows[1]))
    return tuple(rows) if all(leaf is leaves[0] for leaf in leaves) else ()


def _as_raw(benchmark: Any, layout: Layout, where: str, comparable: bool,
            size: int | None = None) -> RawStream:
    """Return a benchmark as tensors; photos are resized to `size` pixels if a size is given."""
    train, test = list(benchmark.train_stream), list(benchmark.test_stream)
    if not train:
        raise DataError(f"{where} has no experiences")
    if len(test) not in (1, len(train)):
        raise DataError(f"{where} has {len(train)} training experiences and {len(test)} test experiences; "
                        "give each task one of each, or all tasks one test experience")
    splits: dict[str, list[Split]] = {"training": [], "test": []}
    first_inputs_by_kind: dict[str, torch.Tensor] = {}
    notes = []
    for kind, group, experiences in (("training", "train", train), ("test", "eval", test)):
        for task, experience in enumerate(experiences):
            determiner = "the" if len(experiences) < len(train) else f"task {task + 1}'s"
            title = f"{where}: {determiner} {kind} experience"
            data = materialise(experience.dataset, group, title, size, layout.text)
            first_inputs = first_inputs_by_kind.setdefault(kind, data.x)
            _check_shape(data.x, first_inputs_by_kind["training"], title)
            if data.note:
                notes.append(data.note)
            splits[kind].append(_to_split(data, first_inputs,
                                          layout.permutations[task] if layout.permutations else None))
    orders = tuple(_order(e, torch.unique(s.y).tolist()) for e, s in zip(train, splits["training"], strict=True))
    _check_names(orders, layout.class_names, where)
    size_notes = [] if size is None else [f"photos of several sizes were brought to {size} x {size} pixels"]
    rows = layout.test_rows or (test_rows(test) if comparable else ())
    tests = tuple(replace(split, rows=split_rows) for split, split_rows in
                  zip(splits["test"], rows or (None,) * len(test), strict=True))
    return RawStream(tuple(splits["training"]), tests, orders, layout.mean, layout.std,
                     (*size_notes, *_merge_notes(notes)), layout.augment, layout.class_names)


def _check_shape(x: torch.Tensor, first: torch.Tensor, where: str) -> None:
    """Check that inputs have the shape and type of the first task's."""
    if (x.shape[1:], x.dtype) != (first.shape[1:], first.dtype):
        raise SeveralShapes(f"{where} has inputs {x.dtype} {list(x.shape[1:])}, the first task has {first.dtype} "
                            f"{list(first.shape[1:])}; {SeveralShapes.way_out}")


def _check_names(orders: Sequence[Sequence[int]], names: Sequence[str], where: str) -> None:
    """Check that every class has a name, if classes have names."""
    unexpected_labels = [label for label in chain.from_iterable(orders) if not 0 <= label < len(names)]
    if names and unexpected_labels:
        raise DataError(f"{where} names {len(names)} classes, and there is a class {unexpected_labels[0]}; name the "
                        "labels 0, 1, ... in their order")


def _to_split(read: Experience, first: torch.Tensor, permutation: torch.Tensor | None) -> Split:
    """Return an experience as a split; for a permuted copy of the first experience, store only the permutation."""
    if permutation is None or read.x is first:
        return Split(read.x, read.y, draw=read.draw)
    if not torch.equal(read.x, permute(first, permutation)):
        raise DataError("a permuted task is not the first task permuted: this is an error in clbench")
    return Split(first, read.y, permutation)


def _order(experience: Any, present: list[int]) -> tuple[int, ...]:
    """Return the classes of an experience in its own order if it has one, else sorted."""
    order = getattr(experience, "classes_in_this_experience", None)
    if isinstance(order, (list, tuple)) and sorted(order) == present:
        return tuple(int(c) for c in order)
    return tuple(present)


def _merge_notes(notes: list[str]) -> list[str]:
    """Merge several notes into one: the first note, with the number of the others."""
    return notes if len(notes) < 2 else [f"{notes[0]} (and {len(notes) - 1} more experiences)"]


def import_avalanche() -> None:
    """Import Avalanche's benchmarks without the warnings of its import (missing QP solvers, deprecations)."""
    with warnings.catch_warnings(), redirect_to_stderr(), uncollected():
        warnings.simplefilter("ignore")
        importlib.import_module("avalanche.benchmarks.classic")
