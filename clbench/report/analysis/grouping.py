"""Records grouped by setting and by method, and the value of a measure for each seed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from statistics import fmean

from clbench.core.errors import StoreError
from clbench.experiment.search import Searched
from clbench.experiment.until import UntilDecided
from clbench.report.analysis.levels import at_chance, underfit
from clbench.report.analysis.marks import CHANCE, INFERS, OUTPUTS, RECIPE, STALE, UNDERFIT
from clbench.report.analysis.titles import titles
from clbench.report.columns import ACC, Measure
from clbench.report.formatting import clean
from clbench.report.model import Result
from clbench.report.option_columns import options_of, plain
from clbench.results.metrics import acc
from clbench.results.records import Record


@dataclass(frozen=True)
class MethodRecords:
    """The records of one method in one setting."""

    label: str  # what tables call it: its display name, or its id
    records: tuple[Record, ...]  # by seed
    seeds: tuple[int, ...]  # of the whole setting; where seeds were added, of the method itself
    id: str = ""  # what `--methods` calls it

    def __post_init__(self) -> None:
        """Take the label for the id if there is no other one."""
        if not self.id:
            object.__setattr__(self, "id", self.label)

    @property
    def strategy(self) -> str:
        """Return the name of the method's strategy."""
        return self.records[0].trial.method.name

    @property
    def reference(self) -> bool:
        """Tell whether the method is a reference, which the tables set apart."""
        return self.records[0].reference

    @cached_property
    def done(self) -> list[Record]:
        """Return the records with a result."""
        return [r for r in self.records if r.status == "done"]

    @property
    def complete(self) -> bool:
        """Tell whether every one of `seeds` gave a result."""
        return len(self.done) == len(self.seeds)

    @property
    def missing(self) -> list[int]:
        """Return the seeds without a record."""
        return sorted(set(self.seeds) - {r.trial.seed for r in self.records})

    @property
    def infers(self) -> bool:
        """Tell whether the method had to infer the task of a test sample."""
        return any(r.task_inference for r in self.records)

    @property
    def marks(self) -> str:
        """Return the marks of the method's row, which `MARKS` explains."""
        own = {r.outputs for r in self.records}
        return "".join([INFERS if self.infers else "", *(mark for outputs, mark in OUTPUTS.items() if outputs in own),
                        STALE if self.stale or len(self.codes) > 1 else "",
                        RECIPE if self.records[0].trial.own_recipe else "", self.cautions])

    @cached_property
    def cautions(self) -> str:
        """Return the marks without which the method must not appear as worse than another."""
        return (UNDERFIT if underfit(self.done) else "") + (CHANCE if at_chance(self.done) else "")

    @property
    def stale(self) -> dict[str, list[int]]:
        """Return what had changed when results were kept all the same, with the seeds of each."""
        found: dict[str, list[int]] = {}
        for record in self.done:
            if record.stale:
                found.setdefault(" and ".join(record.stale), []).append(record.trial.seed)
        return found

    @property
    def codes(self) -> dict[str, list[int]]:
        """Return the states of the method's own code that gave its results, as far as known, with the seeds of each."""
        found: dict[str, list[int]] = {}
        for record in self.done:
            code = record.provenance.code.get("method")
            if code and code.hash:
                found.setdefault(code.hash, []).append(record.trial.seed)
        return found

    @property
    def searched(self) -> Searched | None:
        """Return the search that the method's options come from, None where they come from none."""
        return self.records[0].searched

    @property
    def joint(self) -> bool:
        """Tell whether the method is joint training: a reference that kept every training sample of all tasks so far.

        The records alone show it, so that reports do not depend on the plugins that are installed.
        """
        return self.reference and all(
            r.stream is not None and r.costs.replay_samples == list(accumulate(r.stream.train_samples))
            for r in self.done)

    @property
    def fine_tuning(self) -> bool:
        """Tell whether the method is plain fine-tuning: a reference that trains all it has and keeps nothing else.

        As with `joint`, the records alone show it.
        """
        sizes = [{*r.costs.trainable, *(sum(roles.values()) for roles in r.costs.parameters)} for r in self.done]
        return (self.reference and not any(any(r.costs.replay_samples) for r in self.done)
                and all(len(own) == 1 for own in sizes))

    @property
    def state(self) -> str:
        """Return how many seeds gave a result: `3`, or `1/3; 1 diverged, 1 missing`."""
        if self.complete:
            return str(len(self.seeds))
        counts = [(sum(r.status == s for r in self.records), s) for s in ("diverged", "failed")]
        counts.append((len(self.missing), "missing"))
        return f"{len(self.done)}/{len(self.seeds)}; " + ", ".join(f"{n} {what}" for n, what in counts if n)

    @cached_property
    def result(self) -> Result:
        """Return the raw numbers of the records with a result."""
        done = self.done
        return Result(
            label=self.label, strategy=self.strategy, reference=self.reference, complete=self.complete,
            seeds=tuple(r.trial.seed for r in done), R=tuple(tuple(map(tuple, r.R)) for r in done),
            trainable=tuple(tuple(r.costs.trainable) for r in done),
            parameters=tuple(tuple(sum(roles.values()) for roles in r.costs.parameters) for r in done),
            bytes=tuple(tuple(sum(roles.values()) for roles in r.costs.bytes) for r in done),
            curves=tuple(r.curve for r in done if r.curve),
            options=tuple((name, plain(value)) for name, value in options_of(self.records[0].trial).items()),
            seconds=tuple(sum(r.timings.train) + sum(r.timings.consolidate) for r in done))


@dataclass(frozen=True)
class Setting:
    """All methods of one setting, in the order in which they appear but for references, which come last."""

    title: str
    seeds: tuple[int, ...]
    methods: tuple[MethodRecords, ...]
    records: tuple[Record, ...]
    named_baseline: str | None = None  # the label of what somebody wants methods to be held against

    def values(self, measure: Measure) -> dict[str, dict[int, float | None]]:
        """Return a measure of each method, by label and by seed, for the seeds that gave a result."""
        if measure not in self._values:
            joint = self.joint
            self._values[measure] = {m.label: {r.trial.seed: measure.value(r, joint.get(r.trial.seed)) for r in m.done}
                                     for m in self.methods}
        return self._values[measure]

    @cached_property
    def _values(self) -> dict[Measure, dict[str, dict[int, float | None]]]:
        """Return the values that were asked for before: each is asked for by several tables."""
        return {}

    def compared(self, measure: Measure, also: Iterable[str] = ()) -> dict[str, dict[int, float]]:
        """Return the values of the methods that can be compared: those that have one for each seed with a result.

        Args:
            measure: what is compared.
            also: labels of references to include; the others are left out.
        """
        included = {m.label for m in self.methods if not m.reference} | set(also)
        return {label: {seed: value for seed, value in by_seed.items() if value is not None}
                for label, by_seed in self.values(measure).items()
                if label in included and by_seed and None not in by_seed.values()}

    @cached_property
    def cautions(self) -> dict[str, str]:
        """Return the marks `MethodRecords.cautions` of the methods that have any, by label."""
        return {m.label: m.cautions for m in self.methods if m.cautions}

    def marked(self, label: str) -> str:
        """Return a method's label with the marks that caution against it."""
        return f"{label} {self.cautions.get(label, '')}".strip()

    def has(self, measure: Measure) -> bool:
        """Tell whether some record has a value of a measure."""
        return any(value is not None for by_seed in self.values(measure).values() for value in by_seed.values())

    @cached_property
    def until(self) -> UntilDecided | None:
        """Return the rule by which seeds were added where the question was open, if they were."""
        return next((r.until for r in self.records if r.until), None)

    @cached_property
    def joint(self) -> dict[int, Record]:
        """Return the record of joint training for each seed; of several such methods the first counts."""
        return {r.trial.seed: r for m in reversed(self._as_given) if m.joint for r in m.done}

    @property
    def upper(self) -> str | None:
        """Return the label of joint training, None where there is none."""
        return next((m.label for m in self._as_given if m.joint and m.done), None)

    @cached_property
    def baseline(self) -> str | None:
        """Return the label of what methods are held against: what is named, if it is here, else plain fine-tuning.

        Without fine-tuning, the only method of a setting is held against the only reference but joint training, such as
        a linear probe.
        """
        if any(m.label == self.named_baseline and m.done for m in self.methods):
            return self.named_baseline
        if self.until and self.values(ACC).get(named := self.label_of(self.until.baseline or "") or ""):
            return named
        references = [m for m in self._as_given if m.reference and m.done and not m.joint]
        fine_tuning = [m for m in references if m.fine_tuning]
        only = references if len(references) == sum(bool(m.done) and not m.reference for m in self.methods) == 1 else []
        return next((m.label for m in fine_tuning or only), None)

    def label_of(self, name: str) -> str | None:
        """Return the label of the method with this label or id, None if there is none."""
        return next((m.label for m in self.methods if name in (m.label, m.id)), None)

    @cached_property
    def _as_given(self) -> list[MethodRecords]:
        """Return the methods in the order in which their records appear."""
        rows = {row: i for i, row in enumerate(dict.fromkeys(r.trial.row for r in self.records))}
        return sorted(self.methods, key=lambda m: rows[m.records[0].trial.row])

    def by_accuracy(self) -> Setting:
        """Return the setting with its methods by their mean ACC, the best first, references last."""
        def key(method: MethodRecords) -> tuple[bool, float]:
            return method.reference, -fmean(acc(r.R) for r in method.done) if method.done else math.inf
        return replace(self, methods=tuple(sorted(self.methods, key=key)))

    @cached_property
    def eligible(self) -> set[str]:
        """Return the methods that may be the best: those with a result for every seed, references left out."""
        return {m.label for m in self.methods if m.complete and not m.reference}


def by_setting(records: Sequence[Record]) -> list[Setting]:
    """Return the settings of records in the order in which they appear, each with a distinct title.

    Raises:
        StoreError: there are no records, or one trial has two records that disagree.
    """
    groups: dict[tuple[str, ...], list[Record]] = {}
    for record in _distinct(records):
        groups.setdefault(record.trial.setting, []).append(record)
    if not groups:
        raise StoreError("no records to report; run an experiment first (clbench run --methods lora,ewc)")
    names = titles([group[0] for group in groups.values()])
    for title, group in zip(names, groups.values(), strict=True):
        if len(rules := dict.fromkeys(str(r.until) for r in group if r.until)) > 1:
            raise StoreError(f"{title}: seeds were added by different rules ({'; '.join(rules)}); no test holds for "
                             "all of them: report the run folders apart")
    return [_setting(title, group) for title, group in zip(names, groups.values(), strict=True)]


def _setting(title: str, records: Sequence[Record]) -> Setting:
    seeds = tuple(sorted({r.trial.seed for r in records}))
    return Setting(title, seeds, tuple(_methods(records, seeds)), tuple(records))


def _distinct(records: Iterable[Record]) -> list[Record]:
    """Return one record of each trial."""
    by_key: dict[str, Record] = {}
    for record in records:
        first = by_key.setdefault(record.key, record)
        if first is not record and first.outcome() != record.outcome():
            raise StoreError(f"trial {record.key} ({clean(record.label)}, seed {record.trial.seed}) has two records "
                             "that disagree; keep one of them")
    return list(by_key.values())


def _methods(records: Sequence[Record], seeds: tuple[int, ...]) -> list[MethodRecords]:
    """Group records by method; where two methods share a label, each is called by its full name.

    Where seeds were added until decided, methods have different numbers of them: those up to a method's last are its.
    """
    added = any(record.until for record in records)
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(record.trial.row, []).append(record)
    labels = [clean(group[0].label) for group in groups.values()]
    methods = [MethodRecords(label if labels.count(label) == 1 else clean(full),
                             tuple(sorted(group, key=lambda r: r.trial.seed)),
                             tuple(s for s in seeds if not added or s <= max(r.trial.seed for r in group)))
               for label, (full, group) in zip(labels, groups.items(), strict=True)]
    return sorted(methods, key=lambda m: m.reference)  # stable
