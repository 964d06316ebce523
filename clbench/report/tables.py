"""Records -> Report: every table of a report, in the one model that all formats render."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import fmean

from clbench.core.scenario import scenario_rules
from clbench.report.analysis import notes
from clbench.report.analysis.grouping import Method, Setting, by_setting
from clbench.report.analysis.paired_tests import compare_with_best, family, winners
from clbench.report.analysis.ranking import ranking
from clbench.report.columns import (
    ACC,
    COMPARISON,
    COUNTED,
    DEFINITIONS,
    DEVICE_MEMORY,
    INFERENCE,
    INTRANSIGENCE,
    MORE_COSTS,
    MORE_METRICS,
    TRAINABLE,
    Measure,
    cells,
    fewest,
    kept_in,
    mark,
)
from clbench.report.figures.data import file_names, pictures, point
from clbench.report.formatting import clean, listed, number, runs
from clbench.report.model import Cell, Column, Report, Result, Row, Section, Table
from clbench.results.records import Record


def build(records: Sequence[Record]) -> Report:
    """Return the report on records: a section per setting, in the order in which settings and methods appear.

    Raises:
        StoreError: there are no records, or one trial has two records that disagree.
    """
    settings = by_setting(records)
    files = file_names([setting.title for setting in settings])
    ranked = ranking(settings)
    return Report("Continual-learning comparison", tuple(map(_section, settings, files)), DEFINITIONS,
                  *(ranked or ()))


def _section(setting: Setting, file_name: str) -> Section:
    records, seeds, methods, joint = setting.records, setting.seeds, setting.methods, setting.joint
    whole = [r for m in methods for r in m.done]
    infers = any(r.task_inference for r in whole)
    measures = [*COMPARISON[:3], *([INFERENCE] if infers else []), *COMPARISON[3:]]
    metrics = [*MORE_METRICS, *([INTRANSIGENCE] if joint else [])]
    costs = [*MORE_COSTS, *([DEVICE_MEMORY] if any(r.costs.peak_device_bytes is not None for r in whole) else [])]
    roles = dict.fromkeys(role for r in whole if r.costs.bytes for role in r.costs.bytes[-1])
    trial = records[0].trial
    results = tuple(map(_result, methods))
    verdicts, comparisons = compare_with_best(setting)
    comparison = _table("Comparison", measures, setting)
    return Section(
        title=setting.title,
        summary=clean(f"{trial.benchmark}, {scenario_rules(trial.scenario).title}, {trial.model}, "
                      f"{notes.recipe(trial.recipe)}, "
                      f"seeds {listed(list(seeds))}"
                      + (f", accuracies on {notes.held_out(trial)}" if trial.validation else "")),
        comparison=comparison,
        details=(_table("More metrics", metrics, setting), _table("More costs", costs, setting),
                 *([_table("Bytes kept at the end, by role", [kept_in(r) for r in roles], setting)] if roles else [])),
        matrices=tuple(m for method in methods if (m := _matrix(method)) is not None),
        seeds=seeds,
        problems=tuple(_problems(methods)),
        notes=tuple([*_notes(methods), *notes.differences(records), *notes.remarks(records)]),
        settings=notes.settings(records, seeds),
        provenance=notes.provenance(records),
        commands=tuple(dict.fromkeys(clean(r.provenance.command) for r in records)),
        pictures=pictures(setting.title, file_name, [
            point(m, *(row.cells[1 + measures.index(x)] for x in (ACC, TRAINABLE)))
            for m, row in zip(methods, comparison.rows, strict=True)], results),
        results=results,
        verdicts=verdicts,
        comparisons=comparisons,
    )


def _result(method: Method) -> Result:
    done = method.done
    return Result(
        label=method.label, strategy=method.records[0].trial.method.name, reference=method.reference,
        complete=method.complete, seeds=tuple(r.trial.seed for r in done),
        R=tuple(tuple(map(tuple, r.R)) for r in done), trainable=tuple(tuple(r.costs.trainable) for r in done),
        parameters=tuple(tuple(sum(kept.values()) for kept in r.costs.parameters) for r in done),
        bytes=tuple(tuple(sum(kept.values()) for kept in r.costs.bytes) for r in done),
        seconds=tuple(sum(r.timings.train) + sum(r.timings.consolidate) for r in done))


def _table(title: str, measures: Sequence[Measure], setting: Setting) -> Table:
    columns = [_column(measure, setting) for measure in measures]
    rows = tuple(Row(m.label, (Cell(m.state), *found), "†" if m.infers else "", m.reference)
                 for m, *found in zip(setting.methods, *columns, strict=True))
    return Table(title, (Column("seeds", "text"), *(m.column for m in measures)), rows)


def _column(measure: Measure, setting: Setting) -> list[Cell]:
    """Return a measure's cells, one for each method, with the best in bold."""
    series = [list(by_seed.values()) for by_seed in setting.values(measure).values()]
    found = cells(series, measure.column.unit)
    if measure.column.direction is None:
        return found
    eligible = {i for i, m in enumerate(setting.methods) if m.label in setting.eligible and found[i].mean is not None}
    if measure is TRAINABLE:  # what is fitted in closed form is not trained for less, but in another way
        eligible = {i for i in eligible if found[i].mean}
    if measure.column.unit in COUNTED and all(len(set(series[i])) == 1 for i in eligible):
        return mark(measure.column, found, fewest(found, measure.column.unit, eligible), eligible)
    compared = setting.compared(measure)
    best = winners(family(measure.column, compared), {k: v for k, v in compared.items() if k in setting.eligible})
    return mark(measure.column, found, {i for i in eligible if setting.methods[i].label in best}, eligible)


def _matrix(method: Method) -> Table | None:
    """Return the mean of R over the seeds that are done; None without any, or if their lengths differ."""
    matrices = [r.R for r in method.done]
    if len({len(R) for R in matrices}) != 1:
        return None
    tasks = len(matrices[0]) - 1
    rows = []
    for i in range(tasks + 1):
        means = [fmean(R[i][j] for R in matrices) for j in range(tasks)]
        rows.append(Row(f"after task {i}" if i else "before training",
                        tuple(Cell(number(mean, "percent"), mean, n=len(matrices)) for mean in means)))
    seeds = "1 seed" if len(matrices) == 1 else f"mean over {len(matrices)} seeds"
    columns = tuple(Column(f"task {j + 1}", "percent") for j in range(tasks))
    return Table(f"{method.label}: R, {seeds}", columns, tuple(rows), corner="row")


def _problems(methods: Sequence[Method]) -> Iterable[str]:
    """Name every trial that has no result."""
    for method in methods:
        for record in method.records:
            if record.status != "done":
                kind = f"{record.failure.type}: " if record.failure and record.status == "failed" else ""
                reason = f": {kind}{record.failure.message}" if record.failure else ""
                after = f" after {len(record.R) - 1} finished task(s)" if record.R else ""
                yield clean(f"{method.label}, seed {record.trial.seed}: {record.status}{after}{reason} "
                            f"(record {record.key})")
        if method.missing:
            yield f"{method.label}: no record for seed(s) {listed(method.missing)}"


def _notes(methods: Sequence[Method]) -> Iterable[str]:
    """Say what the comparison table alone would hide."""
    if any(m.infers for m in methods):
        yield "† was not told the task of a test sample and inferred it; task inference: how often it was right"
    for m in methods:
        if m.done and not m.complete:
            yield (f"{m.label}: only seed(s) {listed([r.trial.seed for r in m.done])} of {listed(list(m.seeds))} gave "
                   "a result; its means leave the others out, so it is not in the running for bold")
    if any(len(m.done) == 1 for m in methods):
        yield "n/a: one seed gives no interval"
    for m in methods:
        growth = next((r.costs.trainable for r in m.done if len(set(r.costs.trainable)) > 1), None)
        if growth:
            yield f"{m.label}: trainable parameters were {runs(growth)}"
    if fitted := [m.label for m in methods if m.done and all(r.costs.trainable[-1:] == [0] for r in m.done)]:
        yield (f"{', '.join(fitted)}: nothing was trained by gradients in the last task, so not in the running for the "
               "fewest trainable parameters; bytes kept has what was fitted instead")
    yield from (f"{m.label}: R is not shown, its seeds have streams of different lengths"
                for m in methods if len({len(r.R) for r in m.done}) > 1)
