"""The arrival of a section's training samples, as a table and a figure. Drawing imports matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from statistics import fmean
from typing import TYPE_CHECKING

from clbench.core.scenario import scenario_rules
from clbench.report.figures import style
from clbench.report.figures.style import INK, LABEL, StrategyStyle
from clbench.report.formatting import clean, number
from clbench.report.model import Cell, Column, FigureData, Row, Table
from clbench.results.records import Record, StreamFacts

if TYPE_CHECKING:
    from matplotlib.figure import Figure


TITLE = "Arrival of training samples"
MOST_CLASSES = 20  # rows for classes; with more classes, or if seeds differ in a task's classes, rows are tasks


def arrivals(records: Sequence[Record]) -> Table | None:
    """Return how many training samples of each class or task arrive during each task, mean over seeds.

    Return None if they arrive as the benchmark defines or if streams differ in length.
    """
    one_head = scenario_rules(records[0].trial.scenario).shared_outputs
    streams = [s for s in {r.trial.seed: r.stream for r in records if r.stream}.values() if s.arrivals]
    shapes = {(len(s.arrivals), len(s.arrivals[0])) for s in streams}
    if len(shapes) != 1:
        return None
    has_same_classes = len({str(s.classes) for s in streams}) == 1
    by_class = not one_head and has_same_classes and len(streams[0].arrivals[0]) <= MOST_CLASSES
    labels, outputs = (_classes(streams[0]) if by_class else
                       ([f"task {i}" for i in range(1, len(streams[0].classes) + 1)], []))
    counts = [[[row[c] for c in outputs] if by_class else row if one_head else _per_task(s, row) for row in s.arrivals]
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
    name_of: dict[int, str] = {}
    for task_classes, task_names in zip(stream.classes, names, strict=True):
        name_of |= dict(reversed([*zip(task_classes, task_names, strict=True)]))
    outputs = list(dict.fromkeys(chain.from_iterable(stream.classes)))
    return [name_of[c] for c in outputs], outputs


def _per_task(stream: StreamFacts, row: Sequence[int]) -> list[int]:
    """Return counts by task instead of by class. A class counts for the first task that has it."""
    first_task: dict[int, int] = {}
    for task, classes in enumerate(stream.classes):
        for c in classes:
            first_task.setdefault(c, task)
    return [sum(n for c, n in enumerate(row) if first_task.get(c) == task) for task in range(len(stream.classes))]


CAPTION = ("Rows are the classes or tasks that training samples belong to, columns the tasks during which they arrive. "
           "The darker a cell, the larger its share of the row; numbers are samples, mean over seeds. Every method saw "
           "the same stream.")
_CELL, _TALL = 0.62, 0.23  # inches: the largest width of a cell, and the height of a row
_DARK = 0.6  # share of a row from which white text is easier to read


def arrival_figure(subject: str, slug: str, table: Table) -> FigureData:
    """Return the figure of a table of arrivals."""
    share = _moved_share(table)
    return FigureData("arrival", f"{slug}-arrival", table.title, subject,
                      f"On average over {len(table.rows)} rows, {100 * share:.0f}% of the samples arrive outside the "
                      "task that has most of them. The table has all counts.", CAPTION, table=table)


def shares(table: Table) -> list[list[float]]:
    """Return the share of each row's samples in each column; 0 in a row without samples."""
    counts = [[cell.mean or 0.0 for cell in row.cells] for row in table.rows]
    return [[n / max(sum(row), 1e-12) for n in row] for row in counts]


def _moved_share(table: Table) -> float:
    rows = [row for row in shares(table) if any(row)]
    return sum(1 - max(row) for row in rows) / max(len(rows), 1)


def draw_arrival(data: FigureData, styles: Mapping[str, StrategyStyle]) -> Figure:
    """Draw a row for each class or task and a column for each task during which its samples arrive."""
    assert data.table is not None
    cell_shares = shares(data.table)
    columns = len(cell_shares[0])
    cell = min(_CELL, 5.4 / columns)
    left = 0.3 + max(len(style.shorten(row.label, 24)) for row in data.table.rows) * 0.075
    width, height = max(left + columns * cell + 0.2, 4.0), 0.75 + len(cell_shares) * _TALL
    figure = style.blank(width, height)
    figure.text(0.1 / width, 1 - 0.1 / height, style.shorten(data.subject, int(13 * width)), color=style.PALE,
                fontsize=LABEL, va="top")
    axes = figure.add_axes((left / width, 0.42 / height, columns * cell / width, len(cell_shares) * _TALL / height))
    axes.imshow(cell_shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest", aspect="auto")
    ticks = range(0, columns, -(-columns // 20))
    axes.set_xticks(ticks, [str(t + 1) for t in ticks])
    axes.set_yticks(range(len(cell_shares)), [style.shorten(row.label, 24) for row in data.table.rows])
    axes.tick_params(length=0, labelsize=LABEL, pad=3)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("arrives during task", fontsize=LABEL, labelpad=2)
    for i, row in enumerate(data.table.rows if cell > 0.4 else ()):
        for j, table_cell in enumerate(row.cells):
            if table_cell.mean:
                axes.text(j, i, table_cell.text, ha="center", va="center", fontsize=7,
                          color="white" if cell_shares[i][j] > _DARK else INK)
    return figure
