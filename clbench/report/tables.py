"""Records -> Report: every table of a report, in the one model that all formats render."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from clbench.errors import StoreError
from clbench.records import Record
from clbench.report import facts
from clbench.report.columns import (
    COMPARISON,
    DEFINITIONS,
    DEVICE_MEMORY,
    INFERENCE,
    INTRANSIGENCE,
    MORE_COSTS,
    MORE_METRICS,
    Measure,
    cell,
    embolden,
    kept_in,
)
from clbench.report.model import Cell, Column, Report, Result, Row, Section, Table
from clbench.report.pictures import file_names, pictures, point
from clbench.report.text import clean, listed, number, runs


@dataclass(frozen=True)
class _Method:
    """The records of one method in one setting."""

    label: str
    records: tuple[Record, ...]
    seeds: tuple[int, ...]  # those of the whole section

    @property
    def done(self) -> list[Record]:
        return [r for r in self.records if r.status == "done"]

    @property
    def complete(self) -> bool:
        return len(self.done) == len(self.seeds)

    @property
    def reference(self) -> bool:
        return self.records[0].reference

    @property
    def missing(self) -> list[int]:
        return sorted(set(self.seeds) - {r.trial.seed for r in self.records})

    @property
    def state(self) -> str:
        """Return `3`, or `1/3; 1 diverged, 1 missing`."""
        if self.complete:
            return str(len(self.seeds))
        counts = [(sum(r.status == s for r in self.records), s) for s in ("diverged", "failed")]
        counts.append((len(self.missing), "missing"))
        return f"{len(self.done)}/{len(self.seeds)}; " + ", ".join(f"{n} {what}" for n, what in counts if n)


def build(records: Sequence[Record]) -> Report:
    """Return the report on records: a section per setting, in the order in which settings and methods appear.

    Raises:
        StoreError: there are no records, or one trial has two records that disagree.
    """
    settings: dict[tuple[str, ...], list[Record]] = {}
    for record in _distinct(records):
        settings.setdefault(record.trial.setting, []).append(record)
    if not settings:
        raise StoreError("no records to report; run an experiment first (clbench run --methods lora,ewc)")
    names = [facts.title(group[0]) for group in settings.values()]
    titles = [f"{name} ({i} of {len(names)})" if names.count(name) > 1 else name  # differ in recipe, weights or options
              for i, name in enumerate(names, start=1)]
    sections = tuple(map(_section, titles, file_names(titles), settings.values()))
    return Report("Continual-learning comparison", sections, DEFINITIONS)


def _distinct(records: Iterable[Record]) -> list[Record]:
    """Return each trial's record once."""
    found: dict[str, Record] = {}
    for record in records:
        first = found.setdefault(record.key, record)
        if first is not record and first.outcome() != record.outcome():
            raise StoreError(f"trial {record.key} ({clean(record.label)}, seed {record.trial.seed}) has two records "
                             "that disagree; keep one of them")
    return list(found.values())


def _methods(records: Sequence[Record], seeds: tuple[int, ...]) -> list[_Method]:
    """Group records by method; labels that two methods share become the methods' full names."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(str(record.trial.method), []).append(record)
    labels = [clean(group[0].label) for group in groups.values()]
    methods = [_Method(label if labels.count(label) == 1 else clean(full),
                       tuple(sorted(group, key=lambda r: r.trial.seed)), seeds)
               for label, (full, group) in zip(labels, groups.items(), strict=True)]
    return sorted(methods, key=lambda m: m.reference)  # stable: references last, the others as they appeared


def _section(name: str, file_name: str, records: Sequence[Record]) -> Section:
    seeds = tuple(sorted({r.trial.seed for r in records}))
    methods = _methods(records, seeds)
    joint = {r.trial.seed: r for m in reversed(methods) if m.records[0].trial.method.name == "joint" for r in m.done}
    whole = [r for m in methods for r in m.done]
    infers = any(r.task_inference for r in whole)
    measures = [*COMPARISON[:3], *([INFERENCE] if infers else []), *COMPARISON[3:]]
    metrics = [*MORE_METRICS, *([INTRANSIGENCE] if joint else [])]
    costs = [*MORE_COSTS, *([DEVICE_MEMORY] if any(r.costs.peak_device_bytes is not None for r in whole) else [])]
    roles = dict.fromkeys(role for r in whole if r.costs.bytes for role in r.costs.bytes[-1])
    trial = records[0].trial
    results = tuple(map(_result, methods))
    return Section(
        title=name,
        summary=clean(f"{trial.benchmark}, scenario {trial.scenario}, {trial.model}, {facts.recipe(trial.recipe)}, "
                      f"seeds {listed(list(seeds))}"
                      + (f", accuracies on {facts.held_out(trial)}" if trial.validation else "")),
        comparison=_table("Comparison", measures, methods, joint),
        details=(_table("More metrics", metrics, methods, joint), _table("More costs", costs, methods, joint),
                 *([_table("Bytes kept at the end, by role", [kept_in(r) for r in roles], methods, joint)]
                   if roles else [])),
        matrices=tuple(m for method in methods if (m := _matrix(method)) is not None),
        seeds=seeds,
        problems=tuple(_problems(methods)),
        notes=tuple([*_notes(methods), *facts.differences(records), *facts.remarks(records)]),
        settings=facts.settings(records, seeds),
        provenance=facts.provenance(records),
        commands=tuple(dict.fromkeys(clean(r.provenance.command) for r in records)),
        pictures=pictures(name, file_name, [
            point(m.label, m.records[0].trial.method.name, m.done, reference=m.reference, complete=m.complete)
            for m in methods], results),
        results=results,
    )


def _result(method: _Method) -> Result:
    done = method.done
    return Result(
        label=method.label, strategy=method.records[0].trial.method.name, reference=method.reference,
        complete=method.complete, seeds=tuple(r.trial.seed for r in done),
        R=tuple(tuple(map(tuple, r.R)) for r in done), trainable=tuple(tuple(r.costs.trainable) for r in done),
        parameters=tuple(tuple(sum(kept.values()) for kept in r.costs.parameters) for r in done),
        bytes=tuple(tuple(sum(kept.values()) for kept in r.costs.bytes) for r in done),
        seconds=tuple(sum(r.timings.train) + sum(r.timings.consolidate) for r in done))


def _infers(method: _Method) -> bool:
    return any(r.task_inference for r in method.records)


def _table(title: str, measures: Sequence[Measure], methods: Sequence[_Method], joint: dict[int, Record]) -> Table:
    columns = [m.column for m in measures]
    rows = [Row(m.label, tuple(cell([x.value(r, joint.get(r.trial.seed)) for r in m.done], x.column.unit)
                               for x in measures), "†" if _infers(m) else "", m.reference) for m in methods]
    rows = list(embolden(columns, rows, [m.complete and not m.reference for m in methods]))
    rows = [Row(row.label, (Cell(m.state), *row.cells), row.marks, row.reference)
            for m, row in zip(methods, rows, strict=True)]
    return Table(title, (Column("seeds", "text"), *columns), tuple(rows))


def _matrix(method: _Method) -> Table | None:
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


def _problems(methods: Sequence[_Method]) -> Iterable[str]:
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


def _notes(methods: Sequence[_Method]) -> Iterable[str]:
    """Say what the comparison table alone would hide."""
    if any(_infers(m) for m in methods):
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
    yield from (f"{m.label}: R is not shown, its seeds have streams of different lengths"
                for m in methods if len({len(r.R) for r in m.done}) > 1)
