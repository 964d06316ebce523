"""Build a `Report` from records: all tables of a report, in the model that every format renders."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain, repeat
from statistics import fmean

from clbench.core.objective import ACCURACY
from clbench.core.registry import Registry
from clbench.report.analysis import errors, notes
from clbench.report.analysis.advice import cautions
from clbench.report.analysis.choosing import find_choosable
from clbench.report.analysis.facts import choose_leading, facts
from clbench.report.analysis.families import Family
from clbench.report.analysis.grouping import Setting
from clbench.report.analysis.headline import difference_column, headline
from clbench.report.analysis.learning import build_answers, same_shares, stability_gaps, unlearned
from clbench.report.analysis.method_records import MARKS, RECIPE, MethodRecords, done_records
from clbench.report.analysis.names import named_tasks
from clbench.report.analysis.paired_tests import all_pairs, compare_with_baseline, compare_with_best, winners
from clbench.report.analysis.readable import name_settings
from clbench.report.columns import (
    BYTES_BY_ROLE,
    COMPARISON,
    COMPUTE,
    COUNTED,
    MORE_COSTS,
    MORE_METRICS,
    TRAINABLE,
    WHILE_LEARNED,
    Measure,
    bytes_in_role,
    fewest,
    mark,
)
from clbench.report.decided import Facts
from clbench.report.definitions import definitions, footnote
from clbench.report.figures.arrival import arrival_figure, arrivals
from clbench.report.figures.data import figure_point, section_figures, slugs, sweeps
from clbench.report.figures.errors import errors_figure
from clbench.report.figures.general import general_figures, general_tables
from clbench.report.figures.ranks import ranking
from clbench.report.formatting import (
    as_ranges,
    clean,
    describe_by_task,
    join_names,
    list_seeds,
    number,
    plural,
    task_label,
    unit_of,
)
from clbench.report.model import (
    Cell,
    Column,
    FigureData,
    FigurePoint,
    GeneralTable,
    Report,
    Result,
    Row,
    Section,
    Table,
)
from clbench.results.records import Record, metrics_of

MOST_DRAWN, BEST_DRAWN = 20, 10  # the most methods in a figure; if there are more, how many of the best it shows
Families = Mapping[Measure, Family]  # tests of all pairs, for the measures whose tests are already known


def build(records: Sequence[Record], baseline: str | None = None, *, ids: bool = False,
          registry: Registry | None = None, metric: str | None = None) -> Report:
    """Return the report on records, with a section per setting, in the order in which settings and methods appear.

    Args:
        records: the records of all settings.
        baseline: the method that the others are compared with, by its name in tables, its id or its label, if a setting
            has it; by default fine-tuning (naive).
        ids: whether methods are called by their ids (`lora:rank=8`) instead of their display names (`LoRA r=8`).
        registry: has the display names of the methods; None for the installed methods.
        metric: the metric by which methods are ranked and tested; None for the objective's primary one.

    Raises:
        StoreError: there are no records, or one trial has two records that disagree.
        SpecError: no setting has the baseline, or records lack the metric.
    """
    settings = name_settings(records, baseline, "clbench report without --baseline", ids=ids, registry=registry,
                             metric=metric)
    records = [record for setting in settings for record in setting.records]
    tables, verdicts, figures = ranking(settings) or ((), (), ())
    return Report("Continual-learning comparison",
                  tuple(map(_section, settings, slugs([setting.title for setting in settings]))), definitions(records),
                  tables, verdicts, figures)


def _section(setting: Setting, slug: str) -> Section:
    setting = setting.best_first()
    records, seeds, methods = setting.records, setting.seeds, setting.methods
    results = tuple(m.result for m in methods)
    named, arriving = named_tasks(records), arrivals(records)
    families = all_pairs(setting)
    verdicts, comparisons = compare_with_best(setting, families)
    comparison, metrics, costs = (_table(title, [m for m in setting.measures if m.table == title], setting, families)
                                  for title in (COMPARISON, MORE_METRICS, MORE_COSTS))
    costs = _with_growth(costs, methods)
    final_tests = families.get(setting.final) or setting.tests(setting.final, setting.compared(setting.final))
    section_facts = facts(setting, everything=final_tests)
    if section_facts.baseline:
        comparison = _insert_after(setting.final, comparison, *difference_column(setting, section_facts.baseline))
    curve_tables = [_table(WHILE_LEARNED.replace(ACCURACY.heading, setting.metric.heading),
                           [m for m in setting.measures if m.table == WHILE_LEARNED], setting, families)
                    ] if any(r.curve for r in records) else []
    last_bytes = [r.costs.bytes[-1] for r in done_records(methods) if r.costs.bytes]
    roles = dict.fromkeys(chain.from_iterable(last_bytes))
    by_role = [_table(BYTES_BY_ROLE, list(map(bytes_in_role, roles)), setting, families)] if roles else []
    anatomy = _table(errors.TITLE, errors.measures(setting), setting, families)
    error_sentences = tuple(errors.sentences(methods))
    error_tables = [anatomy] if len(anatomy.columns) > 1 else []
    error_figures = [f for f in [errors_figure(setting.title, f"{slug}-errors", anatomy)] if f]
    compute = comparison.cells(COMPUTE.column.title) if COMPUTE.column in comparison.columns else repeat(None)
    general = general_tables(setting)
    points = list(map(figure_point, results, comparison.cells(setting.final.column.title),
                      comparison.cells(TRAINABLE.column.title), compute, sweeps(results)))
    return Section(
        title=setting.title,
        setting=notes.summary(records, seeds),
        comparison=comparison,
        details=(*error_tables, metrics, *curve_tables, costs, *by_role, *([arriving] if arriving else []),
                 *build_answers(methods)),
        matrices=tuple(m for method in methods if (m := _matrix(method)) is not None),
        seeds=seeds,
        problems=tuple(_problems(methods)),
        notes=tuple(note if note.endswith((".", "?", "!")) else f"{note}." for note in (
            *cautions(setting)[1], *notes.describe_added_seeds(records, setting.left_out),
            *notes.describe_common_test(records), *stability_gaps(methods), *unlearned(methods, setting.joint),
            *(() if setting.answers(setting.final) else notes.same_results({m.label: m.done for m in methods})),
            *same_shares(methods), *_notes(methods), *notes.differences(records),
            *notes.remarks(records), *([named.note] if named else []))),
        settings=(*notes.settings(records, seeds), *([named.settings] if named else [])),
        provenance=notes.provenance(records),
        commands=tuple(dict.fromkeys(clean(r.provenance.command) for r in records)),
        figures=(*error_figures, *_select_figures(setting, slug, points, results, general, section_facts),
                 *([arrival_figure(setting.title, slug, arriving)] if arriving else [])),
        results=results,
        verdicts=verdicts,
        comparisons=(*compare_with_baseline(setting), *comparisons),
        arrivals=arriving,
        anatomy=error_sentences,
        headline=headline(setting, section_facts),
        footnote=footnote(setting, section_facts, final_tests),
        facts=section_facts,
        choosable=find_choosable(setting, final_tests),
        confusions=(*errors.confusions(methods, named), *errors.rows_of(methods)),
        task_classes=named.hints if named else (),
        metric=setting.metric,
        general=general,
    )


def _table(title: str, measures: Sequence[Measure], setting: Setting, families: Families) -> Table:
    """Return the table of some measures. Optional measures are left out if no record has a value."""
    shown_measures = [m for m in measures if not m.optional or setting.has(m)]
    columns = [_cells(m, setting, families) for m in shown_measures]
    rows = tuple(Row(method.label, (Cell(method.state), *method_cells), method.marks, method.reference)
                 for method, *method_cells in zip(setting.methods, *columns, strict=True))
    return Table(title, (Column("seeds", "text"), *(m.column for m in shown_measures)), rows)


def _select_figures(setting: Setting, slug: str, points: Sequence[FigurePoint], results: Sequence[Result],
                    general: Sequence[GeneralTable], section_facts: Facts) -> tuple[FigureData, ...]:
    """Return a section's figures. If there are too many methods to fit, the figures show only the leading ones."""
    def figures(points: Sequence[FigurePoint], results: Sequence[Result]) -> tuple[FigureData, ...]:
        return (*section_figures(setting.title, slug, points, results, setting.metric),
                *general_figures(setting.title, slug, general, results))

    labels = {r.label for r in results} if len(results) <= MOST_DRAWN else choose_leading(
        section_facts, BEST_DRAWN, [TRAINABLE.column.title, COMPUTE.column.title])
    if all(result.label in labels for result in results):
        return figures(points, results)
    words = "most accurate" if setting.metric == ACCURACY else f"best by {setting.metric.label}"
    groups = [f"the {BEST_DRAWN} {words}", "the Pareto fronts of trainable parameters and training compute",
              *(compared.other for compared in section_facts.compared)]
    selection = f"{len(labels)} of {len(results)} methods"
    remark = f" It shows {selection}: {join_names(groups)}. report.html has all methods."
    drawn = figures([p for p in points if p.label in labels], [r for r in results if r.label in labels])
    return tuple(replace(figure, caption=figure.caption + remark, selection=selection) for figure in drawn)


def _with_growth(costs: Table, methods: Sequence[MethodRecords]) -> Table:
    """Add a column with the parameters trained in each task to the table of costs, if they change for any method."""
    growth = [next((r.costs.trainable for r in m.done if len(set(r.costs.trainable)) > 1), None) for m in methods]
    if not any(growth):
        return costs
    return replace(costs, columns=(*costs.columns, Column("trainable by task", "text")),
                   rows=tuple(replace(row, cells=(*row.cells, Cell(describe_by_task(counts) if counts else "")))
                              for row, counts in zip(costs.rows, growth, strict=True)))


def _insert_after(measure: Measure, table: Table, column: Column, cells: Sequence[Cell]) -> Table:
    """Return the comparison table with a new column after the column of a measure."""
    index = table.index(measure.column.title) + 1
    return replace(table, columns=(*table.columns[:index], column, *table.columns[index:]),
                   rows=tuple(replace(row, cells=(*row.cells[:index], cell, *row.cells[index:]))
                              for row, cell in zip(table.rows, cells, strict=True)))


def _cells(measure: Measure, setting: Setting, families: Families) -> list[Cell]:
    """Return a measure's cells, one for each method, with the best in bold."""
    column, method_cells = measure.column, setting.cells(measure)
    if column.direction is None or (column.unit == "seconds" and not setting.has_comparable_times):
        return method_cells
    eligible = {i for i, (m, cell) in enumerate(zip(setting.methods, method_cells, strict=True))
                if m.label in setting.eligible and cell.mean is not None and (cell.mean or measure.zero_competes)}
    if column.unit in COUNTED and all(len(set(method_cells[i].values)) == 1 for i in eligible):
        return mark(column, method_cells, fewest(method_cells, column.unit, eligible), eligible)
    best = winners(setting, measure, families.get(measure))
    return mark(column, method_cells, {i for i in eligible if setting.methods[i].label in best}, eligible)


def _matrix(method: MethodRecords) -> Table | None:
    """Return the mean of R over seeds, or None if no seed has a result or the streams differ in length."""
    matrices = [r.R for r in method.done]
    if len({len(R) for R in matrices}) != 1:
        return None
    tasks, unit = len(matrices[0]) - 1, unit_of(metrics_of(method.done)[0])
    rows = []
    for i in range(tasks + 1):
        means = [fmean(R[i][j] for R in matrices) for j in range(tasks)]
        rows.append(Row(f"after task {i}" if i else "before training",
                        tuple(Cell(number(mean, unit), mean, n=len(matrices)) for mean in means)))
    seeds = "1 seed" if len(matrices) == 1 else f"mean over {len(matrices)} seeds"
    columns = tuple(Column(task_label(j, method.result.task_names), unit) for j in range(tasks))
    return Table(f"{method.label}: R, {seeds}", columns, tuple(rows), corner="row")


def _problems(methods: Sequence[MethodRecords]) -> Iterable[str]:
    """Return a line for each trial without a result."""
    for method in methods:
        for record in method.records:
            if record.status != "done":
                kind = f"{record.failure.type}: " if record.failure and record.status == "failed" else ""
                reason = f": {kind}{record.failure.message}" if record.failure else ""
                reason += f" ({record.failure.place})" if record.failure and record.failure.place else ""
                progress = f" after {plural(len(record.R) - 1, 'finished task')}" if record.R else ""
                yield clean(f"{method.label}, seed {record.trial.seed}: {record.status}{progress}{reason} "
                            f"(record {record.key})")
        if method.missing:
            yield f"{method.label}: no record for {list_seeds(method.missing)}"


def _note_stale(methods: Sequence[MethodRecords]) -> Iterable[str]:
    """Yield a note on results whose code or data have changed since, or differ between seeds."""
    for m in methods:
        yield from (clean(f"{m.label}: the results of {list_seeds(seeds)} are stale, because {reason} changed after "
                          "they were made; --keep-stale kept them") for reason, seeds in m.stale.items())
        if len(m.codes) > 1:
            states = ", ".join(f"{code[:8]} ({list_seeds(seeds)})" for code, seeds in m.codes.items())
            yield (f"{m.label}: its seeds come from different states of its code ({states}), so its mean mixes several "
                   "methods")
    for part in ("benchmark", "model"):
        by_hash: dict[str, list[str]] = {}
        for m in methods:
            for record in m.done:
                if (code := record.provenance.code.get(part)) and code.hash:
                    by_hash.setdefault(code.hash, []).append(m.label)
        if len(by_hash) > 1:
            states = "; ".join(f"{code[:8]}: {', '.join(dict.fromkeys(labels))}" for code, labels in by_hash.items())
            yield (f"The results come from different states of the {part}'s code ({states}), so they may not be "
                   "comparable")


def _notes(methods: Sequence[MethodRecords]) -> Iterable[str]:
    """Yield the notes that a reader needs to understand the comparison table."""
    yield from (f"{mark} {meaning}" for mark, meaning in MARKS.items()
                if mark != RECIPE and any(mark in m.marks for m in methods))
    recipes: dict[str, list[str]] = {}
    for m in methods:
        if description := notes.own_recipe(m.records[0].trial):
            recipes.setdefault(description, []).append(m.label)
    yield from (f"{', '.join(labels)}: {description}" for description, labels in recipes.items())
    yield from _note_stale(methods)
    for m in methods:
        if m.done and not m.complete:
            yield (f"{m.label}: only {list_seeds([r.trial.seed for r in m.done])} of {as_ranges(list(m.seeds))} gave a "
                   "result. Its means leave out the others, so it cannot be the significantly best")
    if any(len(m.done) == 1 for m in methods):
        yield "n/a means that one seed gives no interval"
    if fitted := [m.label for m in methods if m.done and all(r.costs.trainable[-1:] == [0] for r in m.done)]:
        yield (f"{join_names(fitted)} trained nothing by gradients in the last task, so "
               f"{'they' if len(fitted) > 1 else 'it'} cannot have the fewest trainable parameters. Storage includes "
               "what was fitted instead")
    yield from (f"{m.label}: the {metrics_of(m.done)[0].label} matrix R is not shown, because its seeds have streams "
                "of different lengths"
                for m in methods if len({len(r.R) for r in m.done}) > 1)
