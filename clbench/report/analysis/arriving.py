"""How a section's training samples arrived, if they did not arrive as the benchmark defines."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from clbench.core.scenario import scenario_rules
from clbench.report.formatting import clean, number
from clbench.report.model import Cell, Column, Row, Table
from clbench.results.records import Record, StreamFacts

TITLE = "Arrival of training samples"
MOST_CLASSES = 20  # that are shown one by one; where there are more, or seeds have others in a task, tasks are shown


def arrivals(records: Sequence[Record]) -> Table | None:
    """Return how many training samples of each class or task arrive during each task, mean over seeds.

    Return None if they arrive as the benchmark defines or if streams differ in length.
    """
    shared = scenario_rules(records[0].trial.scenario).shared_outputs
    streams = [s for s in {r.trial.seed: r.stream for r in records}.values() if s is not None and s.arrivals]
    shapes = {(len(s.arrivals), len(s.arrivals[0])) for s in streams}
    if len(shapes) != 1:
        return None
    same = len({str(s.classes) for s in streams}) == 1
    by_class = not shared and same and len(streams[0].arrivals[0]) <= MOST_CLASSES
    labels, outputs = (_classes(streams[0]) if by_class else
                       ([f"task {i}" for i in range(1, len(streams[0].classes) + 1)], []))
    counts = [[[row[c] for c in outputs] if by_class else row if shared else _of_tasks(s, row) for row in s.arrivals]
              for s in streams]
    rows = []
    for j, label in enumerate(labels):
        means = [fmean(seed_counts[i][j] for seed_counts in counts) for i in range(len(counts[0]))]
        rows.append(Row(clean(label), tuple(Cell(number(round(mean), "count"), mean, n=len(streams))
                                            for mean in means)))
    columns = tuple(Column(f"during task {i}", "count") for i in range(1, len(counts[0]) + 1))
    return Table(TITLE, columns, tuple(rows), "samples of")


def _classes(stream: StreamFacts) -> tuple[list[str], list[int]]:
    """Return the names and the output indices of a stream's classes, task by task. Unnamed classes get their index."""
    names = stream.class_names or [[f"class {c}" for c in classes] for classes in stream.classes]
    name_of = {c: name for classes, class_outputs in zip(stream.classes, names, strict=True)
               for c, name in reversed([*zip(classes, class_outputs, strict=True)])}
    outputs = list(dict.fromkeys(c for classes in stream.classes for c in classes))
    return [name_of[c] for c in outputs], outputs


def _of_tasks(stream: StreamFacts, row: Sequence[int]) -> list[int]:
    """Return counts by class as counts by the first task that a class is of."""
    first: dict[int, int] = {}
    for task, classes in enumerate(stream.classes):
        for c in classes:
            first.setdefault(c, task)
    return [sum(n for c, n in enumerate(row) if first.get(c) == task) for task in range(len(stream.classes))]
