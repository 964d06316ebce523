"""Records grouped by setting and by method, and the value of a measure for each seed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import chain
from statistics import fmean

from clbench.core.errors import StoreError
from clbench.core.objective import Metric
from clbench.experiment.until import UntilDecided
from clbench.report.analysis.families import Answers, Family, Values, family, have_same_items
from clbench.report.analysis.method_records import MethodRecords, done_records
from clbench.report.analysis.names import titles
from clbench.report.columns import Measure, cell_of, cells
from clbench.report.formatting import clean
from clbench.report.metric_columns import final_of, measures_of, with_general
from clbench.report.model import Cell
from clbench.results.items import cross
from clbench.results.metrics import acc
from clbench.results.records import Record, item_ids, item_scores, metrics_of
from clbench.results.sequential import interval_of
from clbench.results.stats import Interval


@dataclass(frozen=True)
class Setting:
    """All methods of one setting in order of appearance, with references last."""

    title: str
    seeds: tuple[int, ...]
    methods: tuple[MethodRecords, ...]
    records: tuple[Record, ...]
    named_baseline: str | None = None  # label of the baseline that the user chose
    left_out: int = 0  # number of records beyond the most seeds of the rule that added seeds

    @cached_property
    def metric(self) -> Metric:
        """Return the metric of R, by which methods are ranked."""
        return metrics_of(self.records)[0]

    @cached_property
    def measures(self) -> tuple[Measure, ...]:
        """Return the columns of the setting's tables."""
        return with_general(measures_of(self.metric), self.records)

    @property
    def final(self) -> Measure:
        """Return the column of the metric's mean over tasks after the last task: ACC, or that of another metric."""
        return final_of(self.metric)

    def values(self, measure: Measure) -> dict[str, dict[int, float | None]]:
        """Return a measure of each method, by label and by seed, for the seeds that gave a result."""
        if measure not in self._values:
            joint = self.joint
            self._values[measure] = {m.label: {r.trial.seed: measure.value(r, joint.get(r.trial.seed)) for r in m.done}
                                     for m in self.methods}
        return self._values[measure]

    @cached_property
    def _values(self) -> dict[Measure, dict[str, dict[int, float | None]]]:
        """Return the cache of values. Several tables use each of them."""
        return {}

    def answers(self, measure: Measure) -> Answers:
        """Return the scores of items by method and seed if the measure is their mean and all seeds share the items.

        For a final mean, the items are the test samples. Their score is whether the answer is right or, for tasks
        without classes, the sample's value of the metric. For general texts, the items are the texts of a file.
        """
        if measure not in self._answers:
            self._answers[measure] = self._answers_by(measure)
        return self._answers[measure]

    @cached_property
    def _answers(self) -> dict[Measure, Answers]:
        """Return the cache of answers."""
        return {}

    def _answers_by(self, measure: Measure) -> Answers:
        metric, read = measure.metric, measure.items
        if metric is not None:
            records = done_records(self.methods)
            if not have_same_items(records):
                return {}
            read = partial(item_scores, metric=metric)
        if read is None:
            return {}
        scores = {m.label: {r.trial.seed: read(r) for r in m.done} for m in self.methods
                  if metric or any(value is not None for value in self.values(measure)[m.label].values())}
        known_scores = {label: {seed: values for seed, values in by_seed.items() if values is not None}
                        for label, by_seed in scores.items()}
        return (known_scores if all(len(known_scores[label]) == len(by_seed) for label, by_seed in scores.items())
                else {})

    @property
    def own_tests(self) -> bool:
        """Return whether each seed has its own test samples."""
        ids = {r.trial.seed: items for r in done_records(self.methods) if (items := item_ids(r))}
        trial = self.records[0].trial
        return (len(set(ids.values())) == len(ids) > 1 or trial.validation > 0
                or trial.benchmark.options.get("test_draw") == "seed")

    @property
    def own_training(self) -> bool:
        """Return whether each seed has its own training samples."""
        return self.records[0].trial.benchmark.options.get("train_draw") == "seed"

    @property
    def has_comparable_times(self) -> bool:
        """Return whether all trials ran on one device and machine, with the same number of threads."""
        return len({(r.provenance.device, r.provenance.machine, r.provenance.threads) for r in self.records}) < 2

    def interval(self, measure: Measure, label: str) -> Interval:
        """Return the mean of a method over its seeds with its interval.

        The interval is over seeds and test samples if the answers to the samples are known. It is a repeated interval
        if a rule added seeds.
        """
        values = {seed: value for seed, value in self.values(measure)[label].items() if value is not None}
        answers = self.answers(measure).get(label)
        if not answers or len(values) < 2:
            return interval_of([*values.values()], self.until)
        seeds = sorted(values)[:self.until.most if self.until else None]
        crossed = cross([values[s] for s in seeds], [answers[s] for s in seeds])
        return interval_of([values[s] for s in seeds], self.until, crossed)

    def cells(self, measure: Measure) -> list[Cell]:
        """Return the cell of each method in the column of a measure. None is marked as the best."""
        unit, values = measure.column.unit, [list(by_seed.values()) for by_seed in self.values(measure).values()]
        return [cell_of(self.interval(measure, m.label), unit, by_seed) if by_seed and None not in by_seed else
                cells([by_seed], unit)[0] for m, by_seed in zip(self.methods, values, strict=True)]

    def mean(self, measure: Measure, label: str) -> float | None:
        """Return the mean of a method over its seeds, or None if some seed has no value."""
        values = list(self.values(measure).get(label, {}).values())
        known_values = [value for value in values if value is not None]
        return fmean(known_values) if known_values and len(known_values) == len(values) else None

    def compared(self, measure: Measure, also: Iterable[str] = ()) -> dict[str, dict[int, float]]:
        """Return the values of the methods that have one for each seed with a result, so that they can be compared.

        Args:
            measure: the measure to compare.
            also: labels of references to include. Other references are left out.
        """
        included = {m.label for m in self.methods if not m.reference} | set(also)
        return {label: {seed: value for seed, value in by_seed.items() if value is not None}
                for label, by_seed in self.values(measure).items()
                if label in included and by_seed and None not in by_seed.values()}

    def tests(self, measure: Measure, values: Values, baseline: str | None = None, of: int | None = None) -> Family:
        """Return `family` for values from `compared`, with the setting's rule, answers and data."""
        streams = {m.label: {r.trial.seed: r.stream.fingerprint if r.stream else "" for r in m.done}
                   for m in self.methods}
        return family(measure.column, values, baseline, of, self.until, self.answers(measure), streams)

    @cached_property
    def cautions(self) -> dict[str, str]:
        """Return the marks `MethodRecords.cautions` of the methods that have any, by label."""
        return {m.label: m.cautions for m in self.methods if m.cautions}

    def mark_label(self, label: str) -> str:
        """Return a method's label with the marks that caution against it."""
        return f"{label} {self.cautions.get(label, '')}".strip()

    def has(self, measure: Measure) -> bool:
        """Return whether any record has a value of a measure."""
        values = chain.from_iterable(by_seed.values() for by_seed in self.values(measure).values())
        return any(value is not None for value in values)

    @cached_property
    def until(self) -> UntilDecided | None:
        """Return the rule that added seeds until the comparison was decided, if there was one."""
        return next((r.until for r in self.records if r.until), None)

    @cached_property
    def joint(self) -> dict[int, Record]:
        """Return the record of joint training for each seed. If several methods are joint, the first one counts."""
        joint_methods = [m for m in reversed(self._as_given) if m.joint]
        return {r.trial.seed: r for r in done_records(joint_methods)}

    @property
    def joint_label(self) -> str | None:
        """Return the label of joint training, or None if there is none."""
        return next((m.label for m in self._as_given if m.joint and m.done), None)

    @cached_property
    def baseline(self) -> str | None:
        """Return the label of the baseline: the named method if the setting has it, else sequential fine-tuning.

        Without fine-tuning, a setting with a single method and a single reference other than joint training (such as a
        linear probe) has that reference as its baseline.
        """
        if any(m.label == self.named_baseline and m.done for m in self.methods):
            return self.named_baseline
        if self.until and self.values(self.final).get(rule_baseline := self.label_of(self.until.baseline or "") or ""):
            return rule_baseline
        references = [m for m in self._as_given if m.reference and m.done and not m.joint]
        fine_tuning = [m for m in references if m.fine_tuning]
        lone_reference = (references if len(references) == sum(bool(m.done) and not m.reference for m in self.methods)
                          == 1 else [])
        return next((m.label for m in fine_tuning or lone_reference), None)

    def label_of(self, name: str) -> str | None:
        """Return the label of the method with this label or id, or None if there is none."""
        return next((m.label for m in self.methods if clean(name) in (m.label, m.id)), None)

    @cached_property
    def _as_given(self) -> list[MethodRecords]:
        """Return the methods in the order in which their records appear."""
        rows = {row: i for i, row in enumerate(dict.fromkeys(r.trial.method_config for r in self.records))}
        return sorted(self.methods, key=lambda m: rows[m.records[0].trial.method_config])

    def best_first(self) -> Setting:
        """Return the setting with its methods sorted by their final mean, the best first and references last."""
        def key(method: MethodRecords) -> tuple[bool, float]:
            return method.reference, (self.metric.rank(fmean(acc(r.R) for r in method.done)) if method.done
                                      else math.inf)
        return replace(self, methods=tuple(sorted(self.methods, key=key)))

    @cached_property
    def eligible(self) -> set[str]:
        """Return the methods that may be the best: those with a result for every seed, without references."""
        return {m.label for m in self.methods if m.complete and not m.reference}


def group_by_setting(records: Sequence[Record]) -> list[Setting]:
    """Return the settings of records in the order in which they appear, each with a distinct title.

    Raises:
        StoreError: there are no records, or one trial has two records that disagree.
    """
    groups: dict[tuple[str, ...], list[Record]] = {}
    for record in _drop_duplicates(records):
        groups.setdefault(record.trial.environment, []).append(record)
    if not groups:
        raise StoreError("no records to report; run an experiment first (clbench run --methods lora,ewc)")
    names = titles([group[0] for group in groups.values()])
    for title, group in zip(names, groups.values(), strict=True):
        if len(rules := dict.fromkeys(str(r.until) for r in group if r.until)) > 1:
            raise StoreError(f"{title}: seeds were added by different rules ({'; '.join(rules)}); no test holds for "
                             "all of them: report the run folders apart")
    return [_setting(title, group) for title, group in zip(names, groups.values(), strict=True)]


def _setting(title: str, records: Sequence[Record]) -> Setting:
    methods = _methods(records, tuple(sorted({r.trial.seed for r in records})))
    keys = {r.key for m in methods for r in m.records}
    counted = tuple(r for r in records if r.key in keys)
    return Setting(title, tuple(sorted({r.trial.seed for r in counted})), tuple(methods), counted,
                   left_out=len(records) - len(counted))


def _drop_duplicates(records: Iterable[Record]) -> list[Record]:
    """Return one record of each trial."""
    by_key: dict[str, Record] = {}
    for record in records:
        first = by_key.setdefault(record.key, record)
        if first is not record and first.outcome() != record.outcome():
            raise StoreError(f"trial {record.key} ({clean(record.label)}, seed {record.trial.seed}) has two records "
                             "that disagree; keep one of them")
    return list(by_key.values())


def _check_parents(records: Sequence[Record]) -> None:
    """Raise a `StoreError` if two records of a method have one seed, because they continue different trials."""
    by_seed: dict[int, Record] = {}
    for record in records:
        other = by_seed.setdefault(record.trial.seed, record)
        if other is not record:
            raise StoreError(f"{clean(record.label)} has two results for seed {record.trial.seed}: trials {other.key} "
                             f"and {record.key} continue different trials; put them into separate run folders")


def _methods(records: Sequence[Record], seeds: tuple[int, ...]) -> list[MethodRecords]:
    """Group records by method. If two methods share a label, each gets its full name as a label.

    If a rule added seeds until decided, methods have different numbers of seeds. The seeds of a method are then those
    up to its last one, and only as many count as the rule allows.
    """
    until = next((record.until for record in records if record.until), None)
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(record.trial.method_config, []).append(record)
    for group in groups.values():
        _check_parents(group)
    labels = [clean(group[0].label) for group in groups.values()]
    methods = []
    for label, (full_name, group) in zip(labels, groups.items(), strict=True):
        counted = tuple(sorted(group, key=lambda r: r.trial.seed))[:until.most if until else None]
        methods.append(MethodRecords(label if labels.count(label) == 1 else clean(full_name), counted,
                                     tuple(s for s in seeds if not until or s <= counted[-1].trial.seed)))
    return sorted(methods, key=lambda m: m.reference)  # the sort is stable, so methods stay in order of appearance
