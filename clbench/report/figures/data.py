"""The numbers and texts of the figures. `clbench.report.figures.draw` draws them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import fmean
from typing import NamedTuple

from clbench.core.objective import ACCURACY, Metric
from clbench.core.options import OWN_RECIPE
from clbench.report.analysis.facts import front
from clbench.report.columns import cells
from clbench.report.figures.steps import steps_figure
from clbench.report.formatting import NONE, difference_unit, interval, number, task_label, unit_of, unit_suffix
from clbench.report.model import UNIT_SUFFIX, Cell, Column, FigureData, FigurePoint, Result, Row, Table, Unit
from clbench.results import metrics

COSTS: tuple[tuple[str, str, Unit, Callable[[FigurePoint], float | None]], ...] = (
    ("trainable parameters per task", "the trainable parameters of the last task", "count", lambda p: p.trainable),
    ("training compute", "the FLOPs of all training", "flops", lambda p: p.compute))
SEEDS_MEAN = "mean"  # title of the column of means in the table of each seed


class Panel(NamedTuple):
    """Accuracy, or the final mean of another metric, against one cost, for the methods that have a value of both."""

    title: str  # title of the cost
    meaning: str
    unit: Unit
    points: tuple[FigurePoint, ...]
    costs: tuple[float, ...]  # the cost of each point
    best: tuple[int, ...]  # the points on the Pareto front, by rising cost
    metric: Metric

    def describe(self) -> str:
        """Describe in words what the panel shows."""
        others = [i for i in range(len(self.points)) if i not in self.best]
        return (f"{self.metric.heading} against {self.title}. Pareto front: {self._words(self.best)}. "
                f"Others: {self._words(others)}.")

    def _words(self, which: Sequence[int]) -> str:
        points_with_costs = [(self.points[i], number(self.costs[i], self.unit)) for i in which]
        unit = unit_of(self.metric)
        return "; ".join(f"{p.label} ({cost}; {interval(p.accuracy or 0, p.half_width, unit)}{unit_suffix(unit)})"
                         for p, cost in points_with_costs) or "none"


def axis_title(metric: Metric, what: str = "") -> str:
    """Return the title of a metric's axis: `accuracy (%)`. It says if lower values are better."""
    suffix = ", lower is better" if metric.direction == "down" else ""
    return f"{metric.label}{what}{UNIT_SUFFIX.get(unit_of(metric), '')}{suffix}"


def panels(points: Sequence[FigurePoint], metric: Metric = ACCURACY) -> list[Panel]:
    """Return a panel for each cost in which methods differ: trainable parameters and training compute."""
    cost_panels = []
    for title, meaning, unit, cost in COSTS:
        drawn = [(p, value) for p in points if p.accuracy is not None and (value := cost(p))]  # a log axis has no 0
        if len({value for _, value in drawn}) > 1:
            ranked = [i for i, (p, _) in enumerate(drawn) if p.ranked]
            best = front([(drawn[i][1], -metric.rank(drawn[i][0].accuracy or 0.0)) for i in ranked])
            method_points, values = zip(*drawn, strict=True)
            cost_panels.append(Panel(title, meaning, unit, method_points, values, tuple(ranked[k] for k in best),
                                     metric))
    return cost_panels


def figure_point(result: Result, accuracy: Cell, trainable: Cell, compute: Cell | None, sweep: str) -> FigurePoint:
    """Return a method's numbers for figures, from its cells in the comparison and its stored parameters."""
    same_length = len(set(map(len, result.parameters))) == 1
    return FigurePoint(result.label, result.strategy, result.reference, result.complete and not result.reference,
                       accuracy.mean, accuracy.half_width, trainable.mean,
                       tuple(map(fmean, zip(*result.parameters, strict=True))) if same_length else (),
                       low=accuracy.low, high=accuracy.high, compute=compute.mean if compute else None, sweep=sweep)


def sweeps(results: Sequence[Result]) -> list[str]:
    """Return the sweep of each method. Methods with the same sweep are joined by a line.

    A strategy has one sweep for each recipe if the same options occur with several recipes. So ranks at two learning
    rates are two lines, and ranks that each have a tuned learning rate are one line.
    """
    recipes = [str([(name, value) for name, value in r.options if name.startswith(OWN_RECIPE)]) for r in results]
    other_options = [(r.strategy, str([(name, value) for name, value in r.options if not name.startswith(OWN_RECIPE)]))
                     for r in results]
    several_recipes = {strategy for (strategy, _), count in Counter(other_options).items() if count > 1}
    return [recipe if result.strategy in several_recipes else ""
            for recipe, result in zip(recipes, results, strict=True)]


def slugs(titles: Sequence[str]) -> list[str]:
    """Return a distinct name of small letters, digits, dots and hyphens for each title, for files and labels.

    >>> slugs(["MNIST, Task-IL", "mnist: task", "CIFAR"])
    ['mnist-task-1', 'mnist-task-2', 'cifar']
    """
    plain_titles = [re.sub(r"\b(task|class|domain)-il\b", r"\1", title.lower()) for title in titles]
    names = [re.sub(r"[^a-z0-9.]+", "-", title)[:80].strip("-.") or f"setting-{i}"
             for i, title in enumerate(plain_titles, start=1)]
    while len(set(names)) < len(names):  # a number can make a name that another title has
        names = [f"{name}-{i}" if names.count(name) > 1 else name for i, name in enumerate(names, start=1)]
    return names


def section_figures(subject: str, slug: str, points: Sequence[FigurePoint], results: Sequence[Result],
                    metric: Metric) -> tuple[FigureData, ...]:
    """Return the figures of a section, without those that would show nothing.

    The Pareto figure needs methods that differ in cost, and the growth figure needs a method that grows. Figures over
    tasks need more than one task. Forgetting and heat maps also need a test set for each task.

    Args:
        subject: the section's title.
        slug: prefix of the names of the figures.
        points: data of each method for the Pareto and growth figures.
        results: data of each method for the remaining figures.
        metric: the metric of R.
    """
    figures = [_pareto(subject, f"{slug}-pareto", points, metric), _growth(subject, f"{slug}-growth", points)]
    lengths = [{len(R) - 1 for R in result.R} for result in results]
    drawn = [(r, point) for r, point, tasks in zip(results, points, lengths, strict=True)
             if len(tasks) == 1 and max(tasks) > 1]
    drawn_results = tuple(result for result, _ in drawn)
    if drawn_results:
        figures.append(_curves(subject, f"{slug}-curves", drawn_results, tuple(point for _, point in drawn), metric))
    if by_task := tuple(r for r in drawn_results if not r.common_test):
        figures += [_forgetting(subject, f"{slug}-forgetting", by_task, metric),
                    _heatmaps(subject, f"{slug}-heatmaps", by_task, metric)]
    figures.append(steps_figure(subject, f"{slug}-steps", results, metric))
    return tuple(figure for figure in figures if figure)


def _pareto(subject: str, name: str, points: Sequence[FigurePoint], metric: Metric) -> FigureData | None:
    sides = panels(points, metric)
    if not sides:
        return None
    cost_of = {title: cost for title, _, _, cost in COSTS}
    lacking = [(side.title.removesuffix(" per task"), reason, labels) for side in sides
               for reason, value in (("they have none", 0), ("it was not recorded", None))
               if (labels := [p.label for p in points if p.accuracy is not None and cost_of[side.title](p) == value])]
    return FigureData(
        "pareto", name, f"{metric.heading} against {' and '.join(side.title for side in sides)}", subject,
        " ".join(side.describe() for side in sides),
        f"{metric.heading} against {' and '.join(side.meaning for side in sides)}: mean and 95% confidence interval. "
        f"The stepped line and the large markers show the Pareto front: the best {metric.label} at each cost. "
        "References have hollow markers and are not part of it. A thin line joins methods that differ in an option."
        + "".join(f" Not on the axis of {cost}, because {reason}: {', '.join(labels)}."
                  for cost, reason, labels in lacking),
        tuple(p for p in points if any(p in side.points for side in sides)), metric=metric)


def _growth(subject: str, name: str, points: Sequence[FigurePoint]) -> FigureData | None:
    drawn = [p for p in points if len(p.sizes) > 1]
    if not any(p.sizes[-1] > p.sizes[0] for p in drawn):
        return None
    growths = "; ".join(f"{p.label} {number(p.sizes[0], 'count')} to {number(p.sizes[-1], 'count')}" for p in drawn)
    return FigureData(
        "growth", name, "Total parameters after each task", subject,
        f"Total parameters after the first and the last of {max(len(p.sizes) for p in drawn)} tasks: {growths}.",
        "All parameters that a method holds after each task. Methods with the same number share a line.",
        tuple(drawn), axis="total parameters")


def _curves(subject: str, name: str, results: tuple[Result, ...], points: tuple[FigurePoint, ...],
            metric: Metric) -> FigureData:
    unit = unit_of(metric)
    means = "; ".join(
        f"{r.label} {_mean([metrics.mean_seen(R)[0] for R in r.R], unit)} to {_mean(list(map(metrics.acc, r.R)), unit)}"
        f"{unit_suffix(unit)}" for r in results)
    return FigureData(
        "curves", name, f"{metric.heading} after each task", subject,
        f"Mean {metric.label} over the tasks seen so far, after the first and after the last task: {means}.",
        f"Mean {metric.label} over the tasks seen so far, after each task. Lines are means over seeds, bands are 95% "
        "confidence intervals, and dashed lines are references.", points, results, metric=metric)


def _forgetting(subject: str, name: str, results: tuple[Result, ...], metric: Metric) -> FigureData:
    unit = difference_unit(unit_of(metric))
    means = "; ".join(f"{r.label} {_mean([fmean(metrics.forgetting_per_task(R, metric)) for R in r.R], unit)}"
                      for r in results)
    measured = ", in percentage points" if unit == "points" else f", in {metric.unit}" if metric.unit else ""
    best = (f"Best {metric.label} on a task between its training and the last task, minus the final {metric.label}"
            if metric.direction == "up" else
            f"Final {metric.label} on a task, minus the best one between its training and the last task")
    return FigureData(
        "forgetting", name, "Forgetting of each task", subject,
        f"Forgetting of each task but the last{measured}; its mean over tasks: {means}.",
        f"{best}: mean and 95% confidence interval over seeds. Below 0, a task improved. References have hollow "
        "markers.", results=results, metric=metric)


def _heatmaps(subject: str, name: str, results: tuple[Result, ...], metric: Metric) -> FigureData:
    labels = ", ".join(r.label for r in results)
    darker = "" if metric.direction == "up" else " Darker is better (lower)."
    return FigureData(
        "heatmaps", name, f"{metric.heading} on each task after each task", subject,
        f"A heat map of R for each of {labels}; the tables of R hold its numbers.",
        f"{metric.heading} matrix R, mean over seeds, on one scale for all methods. Rows: after training on a task. "
        f"Columns: the task tested. Left of the line are the tasks seen so far.{darker}", results=results,
        metric=metric)


def _mean(values: Sequence[float], unit: Unit) -> str:
    return number(fmean(values), unit)


def values_over_tasks(results: Sequence[Result], metric: Metric = ACCURACY) -> Table:
    """Return the mean of a metric over the tasks seen so far, after each task."""
    return _table(f"{metric.heading} after each task", lambda j, _: f"after {task_label(j)}", unit_of(metric), results,
                  lambda r: list(map(metrics.mean_seen, r.R)))


def with_finals(table: Table, finals: Sequence[Cell]) -> Table:
    """Return a table whose last column has the final means as a comparison has them. Their intervals may differ.

    Args:
        table: one of `values_over_tasks` or `values_by_seed`.
        finals: the cell of each method in the comparison.
    """
    rows = [replace(row, cells=(*row.cells[:-1], replace(final, bold=False, second=False)))
            if row.cells and row.cells[-1].mean is not None else row
            for row, final in zip(table.rows, finals, strict=True)]
    return replace(table, rows=tuple(rows))


def forgetting_per_task(results: Sequence[Result], metric: Metric = ACCURACY) -> Table:
    """Return the forgetting of each task but the last; see `metrics.forgetting_per_task`.

    There is no column if all tasks share one test set.
    """
    return _table("Forgetting of each task", task_label, difference_unit(unit_of(metric)), results,
                  lambda r: [[] if r.common_test else metrics.forgetting_per_task(R, metric) for R in r.R])


def parameters_over_tasks(results: Sequence[Result]) -> Table:
    """Return the number of parameters stored after each task."""
    return _table("Total parameters after each task", lambda j, _: f"after {task_label(j)}", "count", results,
                  lambda r: r.parameters)


def values_by_seed(results: Sequence[Result], seeds: Sequence[int], metric: Metric = ACCURACY) -> Table:
    """Return the final mean of each seed and, in the last column, its mean. A seed without a result has a dash."""
    unit = unit_of(metric)
    finals = [dict(zip(r.seeds, map(metrics.acc, r.R), strict=True)) for r in results]
    means = cells([list(by_seed.values()) for by_seed in finals], unit)
    rows = [Row(r.label, (*(_single_cell(by_seed.get(seed), unit) for seed in seeds), mean), reference=r.reference)
            for r, by_seed, mean in zip(results, finals, means, strict=True)]
    titles = (*(f"seed {seed}" for seed in seeds), SEEDS_MEAN)
    return Table(f"{metric.heading} of each seed", tuple(Column(title, unit) for title in titles), tuple(rows))


def _single_cell(value: float | None, unit: Unit) -> Cell:
    return Cell(NONE) if value is None else Cell(number(value, unit), value, n=1)


def _table(title: str, name: Callable[[int, Sequence[str]], str], unit: Unit, results: Sequence[Result],
           values: Callable[[Result], Sequence[Sequence[float]]]) -> Table:
    """Return a table with a column per task. Methods whose seeds differ in their number of tasks have dashes."""
    method_values = [values(r) for r in results]
    lengths = [{len(task_values) for task_values in seed_values} for seed_values in method_values]
    tasks = max((max(length) for length in lengths if length), default=0)
    columns = [cells([[task_values[j] for task_values in seed_values] if len(length) == 1 and j < max(length) else []
                      for seed_values, length in zip(method_values, lengths, strict=True)], unit) for j in range(tasks)]
    rows = tuple(Row(r.label, tuple(column[i] for column in columns), reference=r.reference)
                 for i, r in enumerate(results))
    task_names = results[0].task_names if results and len({r.task_names for r in results}) == 1 else ()
    return Table(title, tuple(Column(name(j, task_names), unit) for j in range(tasks)), rows)
